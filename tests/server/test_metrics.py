"""What Prometheus scrapes: every metric is in the README, follows the conventions, and tells nothing private."""

import re
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmecg_server.config import LimitsConfig, MetricsConfig, ServerConfig
from mmecg_server.metrics import Metrics
from mmecg_server.server import Server
from prometheus_client.parser import text_string_to_metric_families

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.config import load_config
from mmecg.errors import ConfigError, NotFoundError, OverloadedError, QueryError
from mmecg.report import Report
from mmecg.retriever import Retriever

ROOT = Path(__file__).parents[2]
ONCE = ChannelOptions(retry=RetryPolicy(attempts=1))
CANARY = "Zvulon"


@pytest.fixture
def measured(config, retriever):
    """A server with a metrics endpoint, and its address there."""
    with Server(replace(config, metrics=MetricsConfig(port=0, recall_probe_s=0.05))) as server:
        server.serve(retriever)
        yield server


def scrape(server) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_calls_stages_batches_and_traffic_are_counted(measured, make_study):
    with Client(f"127.0.0.1:{measured.port}", ONCE) as client:
        assert [outcome.error for outcome in client.upsert(make_study(number) for number in range(5))] == [None] * 5
        for _ in range(3):
            client.search(ecg=make_study(0).ecg, top_k=2)
        with pytest.raises(NotFoundError):
            client.get_study("nobody")
    found = scrape(measured)
    calls = found["mmecg_calls_total"]
    assert calls[labelled(method="SearchService/Search", code="OK")] == 3
    assert calls[labelled(method="CorpusService/GetStudy", code="NOT_FOUND")] == 1
    assert calls[labelled(method="CorpusService/UpsertStudies", code="OK")] == 1
    assert found["mmecg_call_duration_seconds_count"][labelled(method="SearchService/Search")] == 3
    stages = {dict(labels)["stage"]: count for labels, count in found["mmecg_stage_duration_seconds_count"].items()}
    assert stages["encode"] == stages["queue"] >= 3 + 1
    assert stages["search"] == 3
    assert stages["decode"] >= 3 + 5
    assert stages["store"] >= 3 + 1
    assert stages["predict"] == stages["mine"] == 0
    items = {dict(labels)["tower"]: total for labels, total in found["mmecg_batch_items_sum"].items()}
    assert items["ecg"] == 5 + 3
    assert found["mmecg_stream_items_total"][labelled(method="CorpusService/UpsertStudies")] == 5
    assert found["mmecg_received_bytes_total"][labelled(method="CorpusService/UpsertStudies")] > 5 * 12 * 1000
    assert found["mmecg_sent_bytes_total"][labelled(method="SearchService/Search")] > 0
    assert found["mmecg_calls_in_flight"] == {labelled(kind="unary"): 0, labelled(kind="stream"): 0}
    assert set(found["mmecg_queue_items"].values()) == {0}


def test_the_corpus_says_its_state(measured, make_study):
    with Client(f"127.0.0.1:{measured.port}", ONCE) as client:
        assert [outcome.error for outcome in client.upsert(make_study(number) for number in range(5))] == [None] * 5
        client.delete_study("study-3")
        found = scrape(measured)
        assert found["mmecg_corpus_studies"] == {(): 4}
        assert found["mmecg_corpus_sequence"] == {(): client.stats().sequence}
    assert found["mmecg_corpus_writable"] == {(): 1}
    assert found["mmecg_index_lag_commits"] == {(): 0}
    for name in ("mmecg_corpus_unfinished_erasures", "mmecg_index_refused_snapshots", "mmecg_index_rebuilt"):
        assert found[name] == {(): 0}
    assert found["mmecg_index_rows"][labelled(modality="ecg")] == 4
    assert found["mmecg_index_tombstones"][labelled(modality="ecg")] == 1
    assert found["mmecg_index_unsaved_commits"][labelled(modality="ecg")] == found["mmecg_corpus_sequence"][()]
    assert "mmecg_index_snapshot_timestamp_seconds" not in found
    assert found["process_open_fds"][()] > 0


def test_a_closed_corpus_leaves_the_other_metrics(config, retriever):
    with Server(replace(config, metrics=MetricsConfig(port=0))) as server:
        server.serve(retriever)
        retriever.corpus.close()
        found = scrape(server)
        assert "mmecg_corpus_studies" not in found
        assert "mmecg_calls_in_flight" in found


def test_recall_is_probed_in_the_background(measured, retriever, make_study):
    probed = threading.Event()
    observe = measured.metrics.observe_recall

    def seen(modality, recall, seconds):
        observe(modality, recall, seconds)
        if modality == "vitals":
            probed.set()

    measured.metrics.observe_recall = seen
    retriever.ingest([make_study(number) for number in range(20)])
    assert probed.wait(60)
    found = scrape(measured)
    assert found["mmecg_index_recall_ratio"][labelled(modality="ecg")] == 1.0
    assert found["mmecg_index_recall_probe_timestamp_seconds"][()] > 1.7e9


def test_refusals_say_why(config, encoder, corpus):
    started, free = threading.Event(), threading.Event()

    class Held:
        def __getattr__(self, name):
            return getattr(encoder, name)

        def encode_text(self, texts):
            started.set()
            assert free.wait(60)
            return encoder.encode_text(texts)

    limits = LimitsConfig(max_in_flight=1)
    with (
        Server(replace(config, limits=limits, metrics=MetricsConfig(port=0))) as server,
        Client(f"127.0.0.1:{server.port}", ONCE) as client,
    ):
        server.serve(Retriever(Held(), corpus))
        calls = [threading.Thread(target=client.embed_text, args=(["a"],))]
        calls[0].start()
        assert started.wait(60)
        with pytest.raises(OverloadedError):
            client.stats()
        free.set()
        calls[0].join()
        assert scrape(server)["mmecg_calls_refused_total"] == {labelled(reason="calls"): 1}


def families(metrics: Metrics) -> dict[str, str]:
    return {family.name: family.type for family in metrics.registry.collect()}


def test_every_metric_is_in_the_readme_and_nothing_else(measured, retriever, make_study):
    retriever.ingest([make_study(1)])
    retriever.corpus.compact()
    retriever.corpus.gauges()
    ours = {
        name + ("_total" if kind == "counter" else "_info" if kind == "info" else "")
        for name, kind in families(measured.metrics).items()
        if name.startswith("mmecg_")
    }
    section = (ROOT / "server/README.md").read_text().split("### Metrics\n")[1].split("\n##")[0]
    assert set(re.findall(r"`(mmecg_\w+)`", section)) == ours


def test_names_follow_the_conventions(measured):
    units = ("_seconds", "_bytes", "_ratio", "_items", "_rows", "_commits", "_studies", "_tombstones")
    others = {"mmecg_calls", "mmecg_calls_refused", "mmecg_calls_in_flight", "mmecg_build"}
    others |= {"mmecg_corpus_sequence", "mmecg_corpus_writable", "mmecg_corpus_unfinished_erasures"}
    others |= {"mmecg_index_refused_snapshots", "mmecg_index_rebuilt"}
    ours = [name for name in families(measured.metrics) if name.startswith("mmecg_")]
    assert [name for name in ours if not name.endswith(units) and name not in others] == []
    assert all(name == name.lower() for name in ours)


def test_nothing_private_is_in_the_metrics(measured, make_study):
    study = replace(
        make_study(1), study_id=f"{CANARY}-1", subject_id=f"{CANARY}-2", report=Report.from_text(CANARY), site=CANARY
    )
    with Client(f"127.0.0.1:{measured.port}", ONCE) as client:
        assert next(iter(client.upsert([study]))).error is None
        client.search(text=CANARY)
        with pytest.raises(NotFoundError):
            client.get_study(CANARY)
        with pytest.raises(QueryError):
            client.search(text=CANARY, page_token=CANARY)
    with urllib.request.urlopen(f"http://127.0.0.1:{measured.metrics_port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "mmecg_calls_total" in text
    assert CANARY not in text


def test_labels_are_a_closed_set(measured, make_study):
    with Client(f"127.0.0.1:{measured.port}", ONCE) as client:
        client.search(ecg=make_study(0).ecg)
    names = {
        name for family in measured.metrics.registry.collect() for sample in family.samples for name in sample.labels
    }
    own = {"method", "code", "stage", "tower", "modality", "reason", "kind", "le", "version"}
    assert names <= own | {"generation", "implementation", "major", "minor", "patchlevel"}


def test_many_servers_have_metrics_of_their_own(config, retriever):
    with Server(config) as first, Server(config) as second:
        first.serve(retriever)
        with Client(f"127.0.0.1:{first.port}", ONCE) as client:
            client.stats()
        one, other = (
            server.metrics.registry.get_sample_value(
                "mmecg_calls_total", {"method": "CorpusService/GetStats", "code": "OK"}
            )
            for server in (first, second)
        )
        assert (one, other) == (1, None)


def test_the_endpoint_is_closed_with_the_server(config, retriever):
    with Server(replace(config, metrics=MetricsConfig(port=0))) as server:
        address = f"http://127.0.0.1:{server.metrics_port}/metrics"
        urllib.request.urlopen(address, timeout=30).close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=30)


def test_a_public_metrics_address_needs_words(tmp_path):
    with pytest.raises(ConfigError, match="allow_remote"):
        MetricsConfig(port=9464, host="0.0.0.0")
    (tmp_path / "a.toml").write_text('[metrics]\nport = 9464\nhost = "0.0.0.0"\nallow_remote = true\n')
    assert load_config(ServerConfig, tmp_path / "a.toml").metrics.port == 9464


def test_a_taken_metrics_port_is_a_configuration_error(measured, config):
    with pytest.raises(ConfigError, match=r"metrics\.port"):
        Server(replace(config, metrics=MetricsConfig(port=measured.metrics_port)))


@pytest.mark.parametrize("count", [3, 40, 3000])
def test_probe_of_an_exact_index_is_one(count):
    from mmecg_index.faiss_index import FaissIndex
    from mmecg_index.gauges import probe_recall

    index = FaissIndex(16, "f" * 64)
    assert probe_recall(index) is None
    vectors = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    index.upsert(np.arange(count), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    index.remove(np.arange(0, count, 3))
    assert probe_recall(index, wait=lambda seconds: None) == 1.0
    assert probe_recall(index, wait=lambda seconds: True) is None


def test_probe_of_a_poor_index_says_so():
    from mmecg_index.faiss_index import FaissIndex
    from mmecg_index.gauges import probe_recall

    vectors = np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    recalls = []
    for target in (0.05, 0.99):
        index = FaissIndex(32, "f" * 64, factory="HNSW4", target_recall=target)
        index.upsert(np.arange(3000), vectors)
        index.compact()
        recalls.append(probe_recall(index, wait=lambda seconds: None))
        assert abs(recalls[-1] - index.state.segment.ann.recall) < 0.15
    assert recalls[0] < 0.8 < recalls[1]
