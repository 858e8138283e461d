"""Bad bundles and corpora: `mmecg serve` refuses them with one line, an exit code, and every file as it was.

Damage that is met later, while serving, is FAILED_PRECONDITION; a damaged index, a cache, is passed over and rebuilt.
"""

import json
import logging
import re
import shutil
import signal
import sqlite3

import grpc
import pytest
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import corpus_service_pb2 as corpus_pb
from mmecg_pb.v1 import corpus_service_pb2_grpc
from mmecg_server.server import Server

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.cli import main
from mmecg.client import Client
from mmecg.retriever import Retriever


def truncated(file, size):
    with file.open("r+b") as stream:
        stream.truncate(size)


def zeroed(file):
    file.write_bytes(bytes(4096) + file.read_bytes()[4096:])


def edited(file, statement):
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(statement)
    connection.close()


BUNDLES = {
    "truncated": (lambda b: truncated(b / "model.safetensors", 1000), r"model\.safetensors is damaged \(checksum\)"),
    "half a manifest": (lambda b: truncated(b / "MANIFEST.json", 200), "MANIFEST.json is damaged"),
    "a file short": (lambda b: (b / "config.json").unlink(), "lacks config.json"),
    "missing": (shutil.rmtree, "has no MANIFEST.json"),
}


def changed_without_snapshots(corpus):
    """Change what the checksums of studies cover; with a sound snapshot of the metadata it would be found when read."""
    edited(corpus / "corpus.sqlite", "UPDATE studies SET crc = crc + 1")
    shutil.rmtree(corpus / "index")


CORPORA = {
    "foreign": (lambda c: None, "corpus holds embeddings of fingerprint ffffffffffff, expected"),
    "overwritten": (lambda c: zeroed(c / "corpus.sqlite"), "is not a corpus|damaged"),
    "truncated": (lambda c: truncated(c / "corpus.sqlite", 5000), "damaged|cannot be read"),
    "a study changed": (lambda c: changed_without_snapshots(c), "study is damaged"),
    "of a later version": (lambda c: edited(c / "corpus.sqlite", "PRAGMA user_version = 99"), "version 99"),
    "no corpus in it": (lambda c: (c / "corpus.sqlite").unlink(), "holds no corpus"),
}


@pytest.fixture
def serve(monkeypatch, capsys):
    """Run `mmecg serve` in this process; return its exit code, and the reason that it logged."""
    handlers, level = logging.root.handlers[:], logging.root.level
    own = logging.getLogger("mmecg_server").level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(Server, "serve", lambda *_: pytest.fail("it serves"))

    def run(*arguments):
        code = main(["serve", "--port", "0", *map(str, arguments)])
        printed = capsys.readouterr()
        assert printed.out == ""
        events = [json.loads(line) for line in printed.err.splitlines()]
        (reason,) = [event["reason"] for event in events if event["event"] == "refused_to_start"]
        assert "\n" not in reason
        return code, reason

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("mmecg_server").setLevel(own)
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def stored(tmp_path, encoder, make_study):
    """A corpus of four studies, closed, with its indexes saved."""
    with Corpus.create(tmp_path / "corpus", encoder.fingerprint) as corpus:
        Retriever(encoder, corpus).ingest(make_study(number) for number in range(4))
    return tmp_path / "corpus"


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("damage", "words"), BUNDLES.values(), ids=BUNDLES)
def test_bad_bundle(serve, tmp_path, damage, words):
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    damage(tmp_path / "bundle")
    before = content_of(tmp_path)
    code, reason = serve("--bundle", tmp_path / "bundle", "--corpus", tmp_path / "new")
    assert code == 1
    assert re.search(words, reason), reason
    assert content_of(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("damage", "words"), CORPORA.values(), ids=CORPORA)
def test_bad_corpus(serve, stored, damage, words):
    damage(stored)
    before = content_of(stored)
    for _ in range(2):  # The first refusal left no lock behind.
        code, reason = serve("--corpus", stored)
        assert code == 1
        assert re.search(words, reason), reason
        assert content_of(stored) == before


def test_corpus_in_use(serve, stored, encoder):
    with Corpus.open(stored, encoder.fingerprint) as corpus:
        code, reason = serve("--corpus", stored)
        assert code == 1
        assert "in use" in reason or "uses" in reason
        assert len(corpus.list_studies()[0]) == 4


@pytest.mark.parametrize("damage", [lambda file: truncated(file, 100), zeroed], ids=["truncated", "overwritten"])
@pytest.mark.parametrize("name", ["MANIFEST.json", "tail_vectors.npy"])
def test_damaged_index_is_rebuilt(stored, encoder, config, make_study, caplog, name, damage):
    for file in (stored / "index").glob(f"*/{name}"):
        damage(file)
    with Corpus.open(stored, encoder.fingerprint) as corpus, Server(config) as server:
        refused = len([record for record in caplog.records if "snapshot refused" in record.message])
        assert refused == len(list((stored / "index").glob("*"))) if name == "MANIFEST.json" else refused == 3
        server.serve(Retriever(encoder, corpus))
        with Client(f"127.0.0.1:{server.port}") as client:
            assert client.search(ecg=make_study(2).ecg).hits[0].study_id == "study-2"
            assert client.stats().embeddings["ecg"] == 4
    caplog.clear()
    with Corpus.open(stored, encoder.fingerprint):
        assert caplog.records == []


def test_study_damaged_under_a_running_server(stored, encoder, config):
    with Corpus.open(stored, encoder.fingerprint) as corpus, Server(config) as server:
        server.serve(Retriever(encoder, corpus))
        edited(stored / "corpus.sqlite", "UPDATE studies SET crc = crc + 1 WHERE study_id = 'study-1'")
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetStudy(corpus_pb.GetStudyRequest(study_id="study-1"))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "damaged (checksum)" in caught.value.details()
            assert stub.GetStudy(corpus_pb.GetStudyRequest(study_id="study-2")).study.subject_id == "subject-1"
