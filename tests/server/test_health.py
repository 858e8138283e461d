"""``mmecg health`` and what the health of each service says, also when the disk of the corpus fails."""

import json
import time

import pytest
from mmecg_server.server import Server
from mmecg_server.service import CORPUS, PREDICTION, SEARCH, SERVICES

from mmecg.cli import main
from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.client.health import check_health
from mmecg.errors import ArtifactError, NotReadyError


def test_health_is_an_exit_code(server, address, capsys):
    assert main(["health", address]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert main(["health", address, "--service", PREDICTION]) == 1
    assert capsys.readouterr().out == "NOT_SERVING\n"
    assert main(["health", address, "--service", "mmecg.v1.Nothing", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "SERVICE_UNKNOWN"


def test_no_answer_is_not_healthy(config, retriever, capsys):
    with Server(config) as server:
        address = f"127.0.0.1:{server.port}"
        assert main(["health", address]) == 1
        assert capsys.readouterr().out == "NOT_SERVING\n"
        server.serve(retriever)
        assert main(["health", address]) == 0
    capsys.readouterr()
    assert main(["health", address, "--timeout-s", "0.5"]) == 1
    assert capsys.readouterr().out == "UNREACHABLE\n"


def test_a_plaintext_server_is_not_healthy_over_tls(address):
    assert check_health(address, options=ChannelOptions(tls=True, timeout_s=2)) == "UNREACHABLE"


def until(expected, ask):
    deadline = time.monotonic() + 60
    while ask() != expected:
        assert time.monotonic() < deadline, ask()
        time.sleep(0.05)


def test_a_corpus_that_takes_no_writes_is_the_only_service_that_does_not_serve(server, address, retriever, make_study):
    with Client(address, ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
        assert next(iter(client.upsert([make_study(1)]))).error is None
        # SQLite answers the next write as it does on a disk that was mounted again as read-only.
        retriever.corpus._database.writer.execute("PRAGMA query_only = ON")
        assert isinstance(next(iter(client.upsert([make_study(2)]))).error, NotReadyError)
        until("NOT_SERVING", lambda: check_health(address, CORPUS))
        assert client.search(ecg=make_study(1).ecg).hits[0].study_id == "study-1"
        assert client.get_study("study-1").study_id == "study-1"
    others = [name for name in ("", *SERVICES) if name not in (CORPUS, PREDICTION)]
    assert {check_health(address, name) for name in others} == {"SERVING"}
    assert server.metrics.registry.get_sample_value("mmecg_corpus_writable") == 0


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_health_of_its_own(address, service):
    assert check_health(address, service) in ("SERVING", "NOT_SERVING")


def test_a_database_that_is_damaged_is_a_server_that_is_not_ready(server, address, retriever, make_study):
    with Client(address, ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
        assert next(iter(client.upsert([make_study(1)]))).error is None
        retriever.corpus._database.condemn()
        until("NOT_SERVING", lambda: check_health(address, SEARCH))
        for refused in (lambda: client.get_study("study-1"), lambda: client.search(text="sinus rhythm")):
            with pytest.raises(ArtifactError, match="damaged"):
                refused()
        assert isinstance(next(iter(client.upsert([make_study(2)]))).error, ArtifactError)
        assert len(client.embed_text(["sinus rhythm"])) == 1
    server.take(retriever)  # new heads make it no better
    idle = {name for name in ("", *SERVICES) if check_health(address, name) == "NOT_SERVING"}
    assert idle == {"", CORPUS, SEARCH, PREDICTION}
    # An alert on it works, although nothing else of the corpus can be read.
    assert server.metrics.registry.get_sample_value("mmecg_corpus_writable") == 0
    assert server.metrics.registry.get_sample_value("mmecg_corpus_studies") is None
