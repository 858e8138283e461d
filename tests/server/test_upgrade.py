"""The program with the bundled model, and a second bundle that takes over while clients search; killed and started."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import torch
from mmecg_pb.v1 import admin_service_pb2 as pb
from mmecg_pb.v1 import admin_service_pb2_grpc, search_service_pb2, search_service_pb2_grpc

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import load_bundle, save_bundle
from mmecg.client import Client
from mmecg.client.messages import render_ecg

pytestmark = pytest.mark.slow
STUDIES = 64


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The bundled model, and one with another projection of ECGs: name to bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "old").symlink_to(DEFAULT_BUNDLE)
    model = load_bundle(precision="float32")
    with torch.no_grad():
        torch.manual_seed(0)
        model.encoder.projection.linear.weight.normal_(std=0.05)
    save_bundle(folder / "new", model.encoder, model.config)
    return {name: load_bundle(folder / name, precision="float32") for name in ("old", "new")}


@pytest.fixture
def configured(tmp_path, bundles):
    (tmp_path / "bundle").symlink_to(DEFAULT_BUNDLE)
    (tmp_path / "server.toml").write_text(
        f'port = 0\ncorpus = "corpus"\nbundle = "bundle"\nprecision = "float32"\n'
        f'[admin]\nbundle_dir = "{bundles["new"].path.parent}"\n'
    )
    return tmp_path


class Program:
    """A running server, and what it logs."""

    def __init__(self, folder):
        command = [sys.executable, "-m", "mmecg_server", "--config", str(folder / "server.toml")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.events = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.address = f"127.0.0.1:{self.wait_for('serving')['port']}"

    def wait_for(self, event, count=1, timeout_s=240):
        end = time.monotonic() + timeout_s
        while len(found := [one for one in self.events if one["event"] == event]) < count:
            assert time.monotonic() < end, (event, self.events[-3:])
            assert self.process.poll() is None, self.events[-3:]
            time.sleep(0.02)
        return found[-1]

    def end(self, number):
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._thread.join()
        self.process.stderr.close()
        return code

    def _read(self):
        self.events.extend(json.loads(line) for line in self.process.stderr if line.startswith("{"))


def test_a_bundle_takes_over_a_program_under_load(configured, bundles, make_study):
    studies = [make_study(number) for number in range(STUDIES)]
    query = studies[3].ecg
    expected, names = {}, {bundle.fingerprint: name for name, bundle in bundles.items()}
    for bundle in bundles.values():
        vectors = bundle.encoder.encode_ecg([study.ecg for study in studies])
        scores = vectors @ bundle.encoder.encode_ecg([query])[0]
        expected[bundle.fingerprint] = {study.study_id: float(s) for study, s in zip(studies, scores, strict=True)}
    one = Program(configured)
    ended, wrong, seen, latency = threading.Event(), [], [], []

    def search():
        request = search_service_pb2.SearchRequest(top_k=10)
        request.query.ecg.CopyFrom(render_ecg(query))
        with grpc.insecure_channel(one.address) as channel:
            stub = search_service_pb2_grpc.SearchServiceStub(channel)
            while not ended.is_set():
                started = time.monotonic()
                try:
                    answer = stub.Search(request, timeout=60)
                except grpc.RpcError as error:
                    seen.append(error.code().name)
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        wrong.append(error.details())
                    continue
                latency.append(time.monotonic() - started)
                seen.append(names[answer.fingerprint])
                scores = expected[answer.fingerprint]
                wrong.extend(hit for hit in answer.hits if abs(hit.score - scores[hit.study.study_id]) > 1e-3)

    def search_patiently():
        with Client(one.address) as client:
            while not ended.is_set():
                if client.search(ecg=query, top_k=1).hits[0].study.study_id != "study-3":
                    wrong.append("first")

    def update():
        with Client(one.address) as client:
            for number in itertools.count():
                if ended.wait(0.3):
                    return
                client.update_study(studies[number % STUDIES], ["report"])

    threads = [threading.Thread(target=each) for each in (search, search_patiently, update)]
    try:
        with Client(one.address) as client:
            assert [outcome.error for outcome in client.upsert(studies)] == [None] * STUDIES
        for thread in threads:
            thread.start()
        with grpc.insecure_channel(one.address) as channel:
            admin = admin_service_pb2_grpc.AdminServiceStub(channel)
            assert admin.Reindex(pb.ReindexRequest(bundle="new")).fingerprint == bundles["new"].fingerprint
            while not (state := admin.GetReindex(pb.GetReindexRequest())).done:
                assert not state.error
                time.sleep(0.05)
        count = len(seen)
        while seen[count:].count("new") < 3:
            time.sleep(0.01)
    finally:
        ended.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        code = one.end(signal.SIGKILL)
    assert wrong == []
    assert code == -signal.SIGKILL
    assert [key for key, _ in itertools.groupby(name for name in seen if name in bundles)] == ["old", "new"]
    assert max(latency) < 30

    # It opens under the new bundle, although the configuration names the old one; the link is then brought up to date.
    again = Program(configured)
    try:
        assert again.wait_for("other_bundle")["fingerprint"] == bundles["new"].fingerprint
        with Client(again.address) as client:
            assert client.info().fingerprint == bundles["new"].fingerprint
            hits = client.search(ecg=query, top_k=10).hits
            scores = expected[bundles["new"].fingerprint]
            np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.study_id] for hit in hits], atol=1e-3)
            _link(configured / "link", bundles["new"].path).replace(configured / "bundle")
            again.process.send_signal(signal.SIGHUP)
            assert again.wait_for("reloaded")["what"] == "prediction heads"
            # And back to the bundled model, by signal.
            _link(configured / "link", DEFAULT_BUNDLE).replace(configured / "bundle")
            again.process.send_signal(signal.SIGHUP)
            again.wait_for("reindexed")
            assert client.info().fingerprint == bundles["old"].fingerprint
            assert client.predict(query).fingerprint == bundles["old"].fingerprint
    finally:
        code = again.end(signal.SIGTERM)
    assert code == 0


def _link(path, target):
    path.symlink_to(target)
    return path
