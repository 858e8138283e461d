"""Life of a server: loading, health, reflection, overload, deadlines, drain, logs, and refusing to start."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from mmecg_index.corpus import Corpus
from mmecg_server import __main__ as program
from mmecg_server import open_services
from mmecg_server.config import LimitsConfig
from mmecg_server.server import Server
from mmecg_server.service import PREDICTION, SERVICES

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import MmecgError, NotReadyError, OverloadedError
from mmecg.report import Report
from mmecg.retriever import Query, Retriever
from mmecg.study import ClinicalNote

ONCE = ChannelOptions(retry=RetryPolicy(attempts=1))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HeldEncoder:
    """Lets the encoder behind it answer only while ``free`` is set."""

    def __init__(self, encoder) -> None:
        self._encoder = encoder
        self.fingerprint = encoder.fingerprint
        self.free = threading.Event()
        self.entered = threading.Event()

    def encode_text(self, texts):
        self.entered.set()
        assert self.free.wait(120)
        return self._encoder.encode_text(texts)

    def __getattr__(self, name):
        return getattr(self._encoder, name)


def until_refused(client: Client) -> None:
    """Call until an error is raised; the calls that fill the server may still be on their way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        client.stats()
    pytest.fail("no call was refused for 60 s")


def health_of(channel: grpc.Channel, service: str) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def test_not_serving_while_loading_then_serving(config, retriever):
    with Server(config) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert [health_of(channel, name) for name in ("", *SERVICES)] == [NOT_SERVING] * (len(SERVICES) + 1)
        with Client(f"127.0.0.1:{server.port}", ONCE) as client:
            with pytest.raises(NotReadyError, match="loading") as caught:
                client.stats()
            assert caught.value.retry_after_s > 0
            server.serve(retriever)
            others = [name for name in SERVICES if name != PREDICTION]
            assert [health_of(channel, name) for name in ("", *others)] == [SERVING] * len(SERVICES)
            assert health_of(channel, PREDICTION) == NOT_SERVING
            assert client.stats().studies == 0


def test_a_patient_client_waits_for_loading(config, retriever):
    with Server(config) as server, Client(f"127.0.0.1:{server.port}") as client:
        timer = threading.Timer(0.3, server.serve, [retriever])
        timer.start()
        assert client.stats().studies == 0
        timer.join()


def test_reflection_lists_the_services(channel):
    names = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


def code_at_the_end(stream) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    return caught.value.code().name


def test_strangers_cannot_hold_every_thread_by_reflection(config, monkeypatch):
    monkeypatch.setattr(open_services, "OPEN_S", 0.3)
    held = threading.Event()

    def requests():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        held.wait(30)

    with Server(config) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        codes = sorted(code_at_the_end(stream) for stream in [reflect(requests()) for _ in range(60)])
        held.set()
        assert codes == ["CANCELLED"] * 2 + ["RESOURCE_EXHAUSTED"] * 58
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert set(SERVICES) <= set(names)


def test_reflection_can_be_turned_off(config, retriever):
    with Server(replace(config, reflection=False)) as server:
        server.serve(retriever)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_overload_is_refused_at_once_with_a_pause(config, encoder, corpus):
    held = HeldEncoder(encoder)
    config = replace(config, limits=LimitsConfig(max_in_flight=2, max_streams=1))
    with Server(config) as server, ThreadPoolExecutor(4) as pool:
        server.serve(Retriever(held, corpus))
        with Client(f"127.0.0.1:{server.port}", ONCE) as client:
            running = [pool.submit(client.embed_text, ["a"]) for _ in range(2)]
            assert held.entered.wait(60)
            with pytest.raises(OverloadedError, match="2 calls") as caught:
                until_refused(client)
            assert caught.value.retry_after_s > 0
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                assert health_of(channel, "") == SERVING
            held.free.set()
            assert [call.result().shape for call in running] == [(1, 256)] * 2
            assert client.stats().studies == 0


def test_streams_beyond_the_limit_are_refused(config, encoder, corpus):
    held = HeldEncoder(encoder)
    config = replace(config, limits=LimitsConfig(max_streams=1))
    with Server(config) as server, ThreadPoolExecutor(2) as pool:
        server.serve(Retriever(held, corpus))
        with Client(f"127.0.0.1:{server.port}", ONCE) as client:
            running = pool.submit(lambda: list(client.embed_many([Query(text="a")])))
            assert held.entered.wait(60)
            with pytest.raises(OverloadedError, match="1 streams"):
                list(client.embed_many([Query(text="b")]))
            held.free.set()
            assert running.result()[0].error is None


def test_deadline_is_honoured(config, encoder, corpus):
    held = HeldEncoder(encoder)
    with Server(config) as server:
        server.serve(Retriever(held, corpus))
        options = ChannelOptions(timeout_s=0.3, retry=RetryPolicy(attempts=1))
        with Client(f"127.0.0.1:{server.port}", options) as client:
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                client.embed_text(["a"])
            assert time.monotonic() - started < 60
            held.free.set()


def test_server_deadline_bounds_a_call_without_one(config, encoder, corpus):
    held = HeldEncoder(encoder)
    with Server(replace(config, limits=LimitsConfig(default_deadline_s=0.2))) as server:
        server.serve(Retriever(held, corpus))
        with Client(f"127.0.0.1:{server.port}", ONCE) as client, pytest.raises(TimeoutError, match="deadline"):
            client.embed_text(["a"])
        held.free.set()


def test_drain_lets_running_calls_end_and_refuses_new_ones(config, encoder, corpus):
    held = HeldEncoder(encoder)
    server = Server(config)
    server.serve(Retriever(held, corpus))
    address = f"127.0.0.1:{server.port}"
    with Client(address, ONCE) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.embed_text, ["a"])
        assert held.entered.wait(60)
        stopping = pool.submit(server.stop)
        with pytest.raises(NotReadyError):
            until_refused(client)
        assert not stopping.done()
        held.free.set()
        assert running.result().shape == (1, 256)
        stopping.result(timeout=60)


def test_drain_ends_a_stream_between_chunks_with_everything_acknowledged_kept(config, retriever, make_study):
    server = Server(config)
    server.serve(retriever)
    stopped = threading.Event()

    def endless():
        number = 0
        while not stopped.is_set():
            yield make_study(number)
            number += 1

    acknowledged, stopping = [], []
    with Client(f"127.0.0.1:{server.port}", ONCE) as client, ThreadPoolExecutor(1) as pool:

        def collect():
            for outcome in client.upsert(endless()):
                acknowledged.append(outcome)
                if len(acknowledged) == 3:
                    stopping.append(pool.submit(server.stop))

        with pytest.raises(NotReadyError):
            collect()
        stopped.set()
        stopping[0].result(timeout=60)
    assert all(outcome.error is None for outcome in acknowledged)
    kept, _ = retriever.corpus.list_studies(page_size=1000)
    assert {f"study-{outcome.item}" for outcome in acknowledged} <= set(kept)


def test_a_taken_port_is_a_configuration_error(server, config):
    from mmecg.errors import ConfigError

    with pytest.raises(ConfigError, match="cannot be bound"):
        Server(replace(config, port=server.port))


CANARY = "Canarybird"


class Exploding:
    """Fails on texts about explosions, with an error that quotes the text."""

    def __init__(self, encoder) -> None:
        self._encoder = encoder
        self.fingerprint = encoder.fingerprint

    def encode_text(self, texts):
        if any("explosion" in text for text in texts):
            raise KeyError(f"cannot encode {texts}")
        return self._encoder.encode_text(texts)

    def __getattr__(self, name):
        return getattr(self._encoder, name)


def test_no_clinical_content_in_logs_or_errors(config, encoder, corpus, log_lines, make_study):
    """Send the canary everywhere, make everything fail, and look for it."""
    study = replace(
        make_study(1),
        study_id=f"{CANARY}-1",
        subject_id=f"{CANARY}-2",
        report=Report.from_text(f"{CANARY} in sinus rhythm"),
        notes=(ClinicalNote(f"{CANARY} complains"),),
        attributes={"name": CANARY},
        site=CANARY,
        labels={CANARY: 100.0},
    )
    explosive = replace(study, report=Report.from_text(f"{CANARY} explosion"))
    failures = []

    def fail(call) -> None:
        with pytest.raises((MmecgError, TimeoutError)) as caught:
            call()
        failures.append(str(caught.value))

    with Server(config) as server, Client(f"127.0.0.1:{server.port}", ONCE) as client:
        server.serve(Retriever(Exploding(encoder), corpus))
        assert next(iter(client.upsert([study]))).error is None
        assert client.search(text=f"{CANARY} rhythm", target="text").hits[0].study_id == study.study_id
        fail(lambda: client.search(text=f"{CANARY}\x00"))
        fail(lambda: client.search(text=CANARY, page_token=CANARY))
        fail(lambda: client.search(ecg=np.full((12, 1000), np.nan), sampling_rate_hz=100))
        failures.extend(str(outcome.error) for outcome in client.upsert([replace(study, labels={CANARY: 900.0})]))
        fail(lambda: client.search(text=f"{CANARY} explosion"))
        failures.extend(str(outcome.error) for outcome in client.upsert([explosive]))
    assert "internal error" in failures[-1]
    assert "internal error" in failures[-2]
    events = [json.loads(line) for line in log_lines]
    assert len([event for event in events if event["event"] == "call"]) == 7
    errors = [event for event in events if event["event"] == "internal_error"]
    assert [event["error_id"] in failure for event, failure in zip(errors, failures[-2:], strict=True)] == [True, True]
    assert errors[0]["type"] == "KeyError"
    assert [line for line in log_lines if CANARY in line] == []
    assert [text for text in failures if CANARY in text] == []


def test_unknown_key_exits_2_before_the_port_is_bound(tmp_path, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "server.toml").write_text(f"prot = {port}\n")
    assert program.main(["--config", str(tmp_path / "server.toml")]) == 2
    assert "did you mean port?" in capsys.readouterr().err


@pytest.fixture
def bundled() -> str:
    """The fingerprint of the bundled model; without one there is nothing to start."""
    from mmecg.bundle import load_bundle

    return load_bundle().fingerprint


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mmecg_server", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True
    )


def test_an_empty_directory_becomes_a_corpus(config, encoder, make_study, tmp_path, monkeypatch):
    from types import SimpleNamespace

    asked = []

    def load_bundle(path, *, precision):
        asked.append(precision)
        return SimpleNamespace(encoder=encoder)

    monkeypatch.setattr(program, "load_bundle", load_bundle)
    config = replace(config, precision="float32")
    for expected in (0, 1):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        chosen = replace(config, corpus=tmp_path / "corpus")
        with program.open_corpus(chosen, program.open_bundle(chosen).encoder.fingerprint) as corpus:
            assert corpus.sequence == expected
            corpus.upsert([make_study(0)], [{}])
    assert asked == ["float32", "float32"]


@pytest.mark.slow
def test_corpus_of_another_bundle_is_refused(tmp_path):
    Corpus.create(tmp_path / "corpus", "0" * 64).close()
    with start("--corpus", str(tmp_path / "corpus")) as process:
        lines = [json.loads(line) for line in process.stderr]
        assert process.wait(120) == 1
    assert lines[-1]["event"] in ("refused_to_start", "stopped")
    refused = next(line for line in lines if line["event"] == "refused_to_start")
    assert "fingerprint" in refused["reason"]


@pytest.mark.slow
def test_program_serves_and_drains_on_sigterm(tmp_path, bundled, make_study):
    with start("--corpus", str(tmp_path / "corpus")) as process:
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                break
        with Client(f"127.0.0.1:{event['port']}") as client:
            assert client.info().fingerprint == bundled
            assert next(iter(client.upsert([make_study(1)]))).error is None
            assert client.search(ecg=make_study(1).ecg, top_k=1).hits[0].study_id == "study-1"
        os.kill(process.pid, signal.SIGTERM)
        rest = [json.loads(line)["event"] for line in process.stderr]
        assert process.wait(60) == 0
    assert rest[-2:] == ["draining", "stopped"]
