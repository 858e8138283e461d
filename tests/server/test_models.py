"""Another bundle takes over while clients search and write. Quick: the bundles are directories with small encoders."""

import json
import threading
import time
from types import SimpleNamespace

import grpc
import pytest
from mmecg_index.administration import CorpusAdministration
from mmecg_index.corpus import Corpus
from mmecg_index.reembed import Reembedding
from mmecg_pb.v1 import admin_service_pb2 as pb
from mmecg_pb.v1 import admin_service_pb2_grpc, search_service_pb2, search_service_pb2_grpc
from mmecg_server import __main__ as program
from mmecg_server.config import AdminConfig, ServerConfig
from mmecg_server.models import Models, find_bundle
from mmecg_server.server import Server

from mmecg.bundle import Bundle, write_manifest
from mmecg.client import Client
from mmecg.client.messages import render_ecg
from mmecg.errors import AlreadyExistsError, BundleError
from mmecg.retriever import Retriever

STUDIES = 24


def write_bundle(path, weights: bytes) -> str:
    """Write a directory that is a bundle as far as its manifest says; return its fingerprint."""
    (path / "text").mkdir(parents=True)
    (path / "text" / "modules.json").write_text("[]")
    (path / "config.json").write_text('{"model": {}}')
    (path / "model.safetensors").write_bytes(weights)
    return write_manifest(path)


@pytest.fixture
def bundles(tmp_path):
    """The directory of bundles: name to fingerprint."""
    return {name: write_bundle(tmp_path / "bundles" / name, name.encode()) for name in ("old", "new", "third")}


@pytest.fixture
def encoders(encoder, bundles):
    """A space of its own for each bundle."""

    def make(name, seed):
        class Other(type(encoder)):
            fingerprint = bundles[name]

            @staticmethod
            def _project(features, tower):
                return type(encoder)._project(features, tower + seed)

        return Other()

    return {bundles[name]: make(name, 100 * number) for number, name in enumerate(bundles)}


@pytest.fixture
def started(tmp_path, bundles, encoders, make_study):
    """Start a server on the corpus of the bundle that `bundle` links to, as the program does."""
    open_ones = []

    def start(**changes):
        config = ServerConfig(
            port=0, corpus=tmp_path / "corpus", bundle=tmp_path / "bundle", drain_s=5,
            admin=AdminConfig(bundle_dir=tmp_path / "bundles"),
        )  # fmt: skip
        if not config.bundle.exists():
            config.bundle.symlink_to(tmp_path / "bundles" / "old")
        loaded = []

        def load(path):
            loaded.append(path)
            fingerprint = json.loads((path / "MANIFEST.json").read_text())["fingerprint"]
            return Bundle(path, encoders[fingerprint], None, fingerprint)

        bundle = load(program.choose_bundle(config))
        opened = program.open_corpus(config, bundle.fingerprint)
        corpus = opened.__enter__()
        server = Server(config)
        engine = program.CorpusEngine(corpus)
        if "rest" in changes:
            engine.reembed = lambda encoder, on_switch: Reembedding(
                corpus, encoder, batch=4, rest=changes["rest"], on_switch=on_switch
            )
        models = Models(
            server, engine, bundle, path=config.bundle, load=load,
            open_predictor=lambda bundle, view: loaded.append("heads"),
        )  # fmt: skip
        administration = CorpusAdministration(corpus, bundle_dir=config.admin.bundle_dir, reindexer=models)
        retriever = Retriever(bundle.encoder, corpus.in_space(bundle.fingerprint))
        if not corpus.sequence:
            retriever.ingest(make_study(number) for number in range(STUDIES))
        server.serve(retriever, administration=administration)
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        found = SimpleNamespace(
            config=config, corpus=corpus, server=server, models=models, channel=channel, loaded=loaded, opened=opened,
            admin=admin_service_pb2_grpc.AdminServiceStub(channel), address=f"127.0.0.1:{server.port}",
        )  # fmt: skip
        open_ones.append(found)
        return found

    def stop(one):
        if one in open_ones:
            open_ones.remove(one)
            one.channel.close()
            one.models.close()
            one.server.stop()
            one.opened.__exit__(None, None, None)

    yield SimpleNamespace(start=start, stop=stop)
    for one in open_ones:
        stop(one)


def wait_for(what, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_clients_search_and_write_while_another_bundle_takes_over(started, bundles, encoders, make_study):
    one = started.start(rest=0)
    query = make_study(3).ecg
    expected = {
        fingerprint: {
            f"study-{number}": float(
                (encoder.encode_ecg([query]) @ encoder.encode_ecg([make_study(number).ecg]).T)[0, 0]
            )
            for number in range(STUDIES)
        }
        for fingerprint, encoder in encoders.items()
    }
    ended, wrong, seen = threading.Event(), [], []
    outcomes = []

    def search():
        """A bare stub: what the server says, unretried."""
        stub = search_service_pb2_grpc.SearchServiceStub(one.channel)
        request = search_service_pb2.SearchRequest(top_k=10)
        request.query.ecg.CopyFrom(render_ecg(query))
        while not ended.is_set():
            try:
                answer = stub.Search(request, timeout=30)
            except grpc.RpcError as error:
                seen.append(error.code())
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    wrong.append(error.details())
                continue
            seen.append(answer.fingerprint)
            scores = expected[answer.fingerprint]
            for hit in answer.hits:
                if hit.study.study_id in scores and abs(hit.score - scores[hit.study.study_id]) > 1e-4:
                    wrong.append((answer.fingerprint, hit.study.study_id))
                if abs(hit.modality_scores.ecg - hit.score) > 1e-4:
                    wrong.append((answer.fingerprint, "modality"))
            if answer.hits[0].study.study_id != "study-3":
                wrong.append((answer.fingerprint, "first"))

    def studies():
        number = 1000
        while not ended.is_set():
            yield make_study(number)
            number += 1
            time.sleep(0.05 if number < 1040 else 0.5)

    def write():
        with Client(one.address) as client:
            outcomes.extend(client.upsert(studies()))

    threads = [threading.Thread(target=search) for _ in range(2)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: bundles["old"] in seen)
        assert one.admin.Reindex(pb.ReindexRequest(bundle="new")).fingerprint == bundles["new"]
        wait_for(lambda: one.admin.GetReindex(pb.GetReindexRequest()).done)
        asked_after = len(seen)
        wait_for(lambda: seen[asked_after:].count(bundles["new"]) > 5)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert bundles["old"] not in seen[asked_after + 2 :]
    assert outcomes
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
    state = one.admin.GetReindex(pb.GetReindexRequest())
    assert (state.fingerprint, state.done, state.error) == (bundles["new"], True, "")
    assert state.studies == state.total == STUDIES + len(outcomes)
    with Client(one.address) as client:
        assert client.stats().embeddings["ecg"] == STUDIES + len(outcomes)
        assert client.info().fingerprint == bundles["new"]

    # The configuration still names the old one: the start finds the corpus's, and a SIGHUP does not lead back.
    started.stop(one)
    again = started.start()
    assert again.corpus.fingerprint == bundles["new"]
    assert again.loaded == [again.config.admin.bundle_dir / "new"]
    again.models._reload()
    assert again.models.state.done
    assert again.corpus.fingerprint == bundles["new"]


def test_a_signal_reads_heads_and_bundles_again(started, bundles, log_lines, tmp_path, make_study):
    one = started.start(rest=0)
    stub = search_service_pb2_grpc.SearchServiceStub(one.channel)
    request = search_service_pb2.SearchRequest(top_k=1)
    request.query.study_id = "study-3"

    def events(name):
        return [line for line in log_lines if f'"{name}"' in line]

    one.models._reload()  # the same bundle: heads that were fitted anew
    assert one.loaded[-1] == "heads"
    assert len(events("reloaded")) == 1

    broken = tmp_path / "broken"
    write_bundle(broken, b"broken")
    (broken / "model.safetensors").write_bytes(b"cut")
    for target in ("broken", "nowhere"):
        one.config.bundle.unlink()
        one.config.bundle.symlink_to(tmp_path / target)
        one.models._reload()
        assert stub.Search(request).fingerprint == bundles["old"]
    assert len(events("reload_failed")) == 2

    one.config.bundle.unlink()
    one.config.bundle.symlink_to(tmp_path / "bundles" / "third")
    one.models.reload()
    wait_for(lambda: events("reindexed"))
    assert stub.Search(request).fingerprint == one.corpus.fingerprint == bundles["third"]
    one.models._reload()
    assert len(events("reloaded")) == 2


def test_a_signal_while_the_last_re_embedding_still_tidies_up_is_not_lost(started, bundles, monkeypatch):
    one = started.start(rest=0)
    saving, free = threading.Event(), threading.Event()
    save = Reembedding._save

    def held(self, since):
        saving.set()
        assert free.wait(60)
        save(self, since)

    monkeypatch.setattr(Reembedding, "_save", held)
    one.models.start(one.config.admin.bundle_dir / "new")
    try:
        assert saving.wait(60)  # switched: the server answers with the new bundle
        one.config.bundle.unlink()
        one.config.bundle.symlink_to(one.config.admin.bundle_dir / "new")
        loaded = len(one.loaded)
        one.models._reload()
        assert one.loaded[loaded:] == ["heads"]
        with pytest.raises(AlreadyExistsError):
            one.models.start(one.config.admin.bundle_dir / "third")
    finally:
        free.set()
    one.models._thread.join(60)
    assert one.models.state.done


def test_a_switch_that_fails_is_made_again(started, bundles, log_lines, monkeypatch):
    monkeypatch.setattr("mmecg_server.models.AGAIN_S", 0.01)
    one = started.start(rest=0)
    take, failures = one.server.take, [RuntimeError("can't start new thread"), MemoryError()]

    def fail_twice(*arguments):
        if failures:
            raise failures.pop()
        take(*arguments)

    monkeypatch.setattr(one.server, "take", fail_twice)
    one.admin.Reindex(pb.ReindexRequest(bundle="new"))
    one.models._thread.join(60)
    assert not one.models._thread.is_alive()
    failed = [json.loads(line)["type"] for line in log_lines if '"switch_failed"' in line]
    assert failed == ["MemoryError", "RuntimeError"]
    with Client(one.address) as client:
        result = client.search(text="sinus rhythm")
        assert len(result.hits) > 0
        assert client.info().fingerprint == one.corpus.fingerprint == bundles["new"]
    assert one.models.state.done
    assert one.models.start(one.config.admin.bundle_dir / "new") == bundles["new"]  # it serves: nothing is embedded
    assert len([line for line in log_lines if '"reindexing"' in line]) == 1


def test_an_interrupted_re_embedding_goes_on_at_the_next_start(started, bundles, make_study):
    one = started.start(rest=1000.0)  # it rests after the first batch
    one.admin.Reindex(pb.ReindexRequest(bundle="new"))
    wait_for(lambda: one.admin.GetReindex(pb.GetReindexRequest()).studies > 0)
    state = one.admin.GetReindex(pb.GetReindexRequest())
    assert not state.done
    assert (state.studies, state.total) == (4, STUDIES)
    assert one.admin.Reindex(pb.ReindexRequest(bundle="new")).fingerprint == bundles["new"]  # it runs already
    with pytest.raises(grpc.RpcError) as caught:
        one.admin.Reindex(pb.ReindexRequest(bundle="third"))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    started.stop(one)
    again = started.start(rest=0)
    assert again.corpus.fingerprint == bundles["old"]
    program.go_on(again.config, again.corpus, again.models)
    wait_for(lambda: again.admin.GetReindex(pb.GetReindexRequest()).done)
    assert again.corpus.stats().embeddings["ecg"] == STUDIES


def test_a_bundle_that_cannot_be_loaded_changes_nothing(started, bundles, log_lines):
    one = started.start()

    def refuse(path):
        raise BundleError("model.safetensors does not fit config.json")

    one.models._load = refuse
    one.admin.Reindex(pb.ReindexRequest(bundle="new"))
    wait_for(lambda: one.admin.GetReindex(pb.GetReindexRequest()).error)
    state = one.admin.GetReindex(pb.GetReindexRequest())
    assert (state.fingerprint, state.done, state.studies) == (bundles["new"], False, 0)
    assert "does not fit" in state.error
    with Client(one.address) as client:
        assert client.info().fingerprint == bundles["old"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nowhere", grpc.StatusCode.FAILED_PRECONDITION),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("..", grpc.StatusCode.INVALID_ARGUMENT),
        ("../bundles/new", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_only_a_bundle_of_the_directory_may_take_over(started, name, code):
    one = started.start()
    with pytest.raises(grpc.RpcError) as caught:
        one.admin.Reindex(pb.ReindexRequest(bundle=name))
    assert caught.value.code() == code


def test_without_a_directory_no_bundle_takes_over(config, retriever, corpus):
    with Server(config) as server:
        server.serve(retriever, administration=CorpusAdministration(corpus))
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = admin_service_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Reindex(pb.ReindexRequest(bundle="new"))
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert stub.GetReindex(pb.GetReindexRequest()).done


def test_a_start_finds_the_bundle_of_the_corpus(bundles, tmp_path):
    (tmp_path / "bundles" / "notes.txt").write_text("not a bundle")
    (tmp_path / "bundles" / "new" / "MANIFEST.json").write_text("{")
    config = ServerConfig(
        bundle=tmp_path / "bundles" / "old", corpus=tmp_path / "c", admin=AdminConfig(bundle_dir=tmp_path / "bundles")
    )
    assert program.choose_bundle(config) == config.bundle
    for name, expected in (("old", "old"), ("third", "third"), ("new", None)):
        assert find_bundle(config, bundles[name]) == (expected and tmp_path / "bundles" / expected)
    Corpus.create(tmp_path / "c", bundles["third"]).close()
    assert program.choose_bundle(config) == tmp_path / "bundles" / "third"
