"""AdminService over the wire: erase, back up, verify, audit."""

import contextlib
import datetime
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from mmecg_index.administration import CorpusAdministration
from mmecg_index.audit import AuditEntry
from mmecg_index.backup import back_up, restore
from mmecg_index.calls import CallTrail
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import admin_service_pb2 as pb
from mmecg_pb.v1 import admin_service_pb2_grpc
from mmecg_server import __main__ as program
from mmecg_server.config import ServerConfig
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.config import load_config
from mmecg.errors import ConfigError, NotFoundError, SubjectNotFoundError
from mmecg.retriever import Retriever

FINGERPRINT = "f" * 64


@pytest.fixture
def server(config, retriever, corpus, tmp_path):
    (tmp_path / "backups").mkdir()
    with Server(config) as server:
        server.serve(retriever, administration=CorpusAdministration(corpus, backup_dir=tmp_path / "backups"))
        yield server


@pytest.fixture
def stub(channel):
    return admin_service_pb2_grpc.AdminServiceStub(channel)


def code_of(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code()


def test_an_erased_subject_is_in_no_answer_and_no_file(stub, filled, make_study):
    answer = stub.EraseSubject(pb.EraseSubjectRequest(subject_id="subject-1", check=True))
    assert (answer.studies, answer.traces) == (2, 0)
    with pytest.raises(SubjectNotFoundError):
        list(filled.list_studies("subject-1"))
    found = filled.search(ecg=make_study(2).ecg, top_k=12).hits
    assert not {"study-2", "study-3"} & {hit.study_id for hit in found}
    again = stub.EraseSubject(pb.EraseSubjectRequest(subject_id="subject-1"))
    assert again.studies == 0
    assert not again.HasField("traces")


def test_a_backup_is_made_while_the_server_serves_and_can_be_restored(stub, filled, tmp_path):
    made = stub.Backup(pb.BackupRequest(name="monday"))
    filled.delete_study("study-1")
    assert (made.studies, made.sequence) == (12, filled.stats().sequence - 1)
    restore(tmp_path / "backups" / "monday", tmp_path / "restored")
    with Corpus.open(tmp_path / "restored", FINGERPRINT) as restored:
        assert restored.stats().studies == 12
    assert code_of(stub.Backup, pb.BackupRequest(name="monday")) == grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "a" * 65, "é", "a\n"])
def test_a_backup_stays_in_its_directory(stub, filled, tmp_path, name):
    assert code_of(stub.Backup, pb.BackupRequest(name=name)) == grpc.StatusCode.INVALID_ARGUMENT
    assert list((tmp_path / "backups").iterdir()) == []


def test_without_a_directory_there_are_no_backups(config, retriever, corpus):
    with Server(config) as server:
        server.serve(retriever, administration=CorpusAdministration(corpus))
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            backup = admin_service_pb2_grpc.AdminServiceStub(channel).Backup
            assert code_of(backup, pb.BackupRequest(name="a")) == grpc.StatusCode.FAILED_PRECONDITION


def test_verification_reads_everything(stub, filled, corpus):
    sound = stub.Verify(pb.VerifyRequest())
    assert (sound.studies, list(sound.findings)) == (12, [])
    with contextlib.closing(sqlite3.connect(corpus.path / "corpus.sqlite")) as connection, connection:
        connection.execute("UPDATE embeddings SET crc = crc + 1 WHERE row = 3 AND modality = 'ecg'")
    damaged = stub.Verify(pb.VerifyRequest())
    assert damaged.findings
    assert not any("study-" in finding or "subject-" in finding for finding in damaged.findings)


def test_the_audit_trail_page_by_page(stub, filled, corpus):
    names = [f"{number:032x}" for number in range(7)]
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    corpus.audit.append(
        [
            AuditEntry(moment, f"ward-{number % 2}", "/mmecg.v1.CorpusService/GetStudy", "OK", f"{number:032x}",
                       (("subject-1", "study-2"),) if number < 3 else (("subject-2", "study-4"),), 1)
            for number in range(7)
        ]
    )  # fmt: skip
    entries, token, pages = [], "", 0
    while True:
        page = stub.ListAudit(pb.ListAuditRequest(principal="ward-0", page_size=2, page_token=token))
        entries, token, pages = [*entries, *page.entries], page.next_page_token, pages + 1
        if not token:
            break
    assert [entry.request_id for entry in entries] == [names[0], names[2], names[4], names[6]]
    assert pages == 2
    assert entries[0].touched[0].study_id == "study-2"
    assert entries[0].time.ToDatetime(datetime.UTC) == moment
    of_subject = stub.ListAudit(pb.ListAuditRequest(subject_id="subject-1")).entries
    assert set(names[:3]) <= {entry.request_id for entry in of_subject}
    stub.EraseSubject(pb.EraseSubjectRequest(subject_id="subject-1"))
    of_erased = stub.ListAudit(pb.ListAuditRequest(subject_id="subject-1")).entries
    assert set(names[:3]) <= {entry.request_id for entry in of_erased}
    assert {one.subject_id for entry in of_erased for one in entry.touched} <= {""}
    assert code_of(stub.ListAudit, pb.ListAuditRequest(page_token="x")) == grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(stub.ListAudit, pb.ListAuditRequest(page_size=1001)) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("reads", "at_once"), [("durable", True), ("buffered", False), ("off", False)], ids=["durable", "buffered", "off"]
)
def test_the_configuration_says_what_is_entered_of_reads(reads, at_once, tmp_path, encoder, make_study):
    (tmp_path / "a.toml").write_text(f'corpus = "corpus"\nport = 0\n[audit]\nreads = "{reads}"\n')
    config = load_config(ServerConfig, tmp_path / "a.toml")
    with program.open_corpus(config, encoder.fingerprint) as corpus, Server(config) as server:
        server.serve(Retriever(encoder, corpus), trail=CallTrail(corpus), administration=CorpusAdministration(corpus))
        with Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
            assert [outcome.error for outcome in client.upsert([make_study(1)])] == [None]
            client.get_study("study-1")
            with contextlib.closing(sqlite3.connect(corpus.path / "corpus.sqlite")) as connection:
                (entered,) = connection.execute("SELECT count(*) FROM audit WHERE method LIKE '%GetStudy'").fetchone()
            assert not at_once or entered == 1
            with pytest.raises(NotFoundError):
                client.get_study("study-2")
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            listed = admin_service_pb2_grpc.AdminServiceStub(channel).ListAudit(pb.ListAuditRequest(page_size=100))
    found = [(entry.method.partition("/")[2], entry.outcome) for entry in listed.entries]
    read = [] if reads == "off" else [("GetStudy", "OK")]
    assert found == [("UpsertStudies", "OK"), *read, ("GetStudy", "NOT_FOUND")]
    with program.open_corpus(config, encoder.fingerprint) as corpus:
        last = CorpusAdministration(corpus).audit()[-1]
    assert (last.method, last.outcome) == ("AdminService/ListAudit", "OK")


def test_another_word_for_reads_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('[audit]\nreads = "never"\n')
    with pytest.raises(ConfigError, match="buffered"):
        load_config(ServerConfig, tmp_path / "a.toml")


def test_a_long_backup_is_cut_short_by_no_deadline(config, retriever, corpus, make_study, tmp_path, monkeypatch):
    free = threading.Event()

    def slow(*arguments):
        assert free.wait(60)
        return back_up(*arguments)

    monkeypatch.setattr("mmecg_index.administration.back_up", slow)
    retriever.ingest([make_study(1)])
    (tmp_path / "backups").mkdir()
    limits = replace(config.limits, default_deadline_s=0.2)
    with Server(replace(config, limits=limits)) as server, ThreadPoolExecutor(1) as pool:
        administration = CorpusAdministration(corpus, backup_dir=tmp_path / "backups")
        server.serve(retriever, trail=CallTrail(corpus), administration=administration)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = admin_service_pb2_grpc.AdminServiceStub(channel)
            patient = pool.submit(stub.Backup, pb.BackupRequest(name="patient"), timeout=60)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Backup(pb.BackupRequest(name="left"), timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            free.set()
            assert patient.result().studies == 1
    corpus.audit.flush()
    assert [(entry.method, entry.outcome) for entry in administration.audit()] == [("AdminService/Backup", "OK")] * 2
    for name in ("patient", "left"):
        restore(tmp_path / "backups" / name, tmp_path / name)
