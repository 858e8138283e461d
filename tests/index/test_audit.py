from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mmecg_index import audit
from mmecg_index.audit import AuditEntry, AuditTrail
from mmecg_index.reading import reading

from mmecg.errors import ConfigError, OverloadedError

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = bytes(range(32))


def entry(number: int, **changes: object) -> AuditEntry:
    values: dict = {
        "time": START + timedelta(minutes=number),
        "principal": ["anna", "bela"][number % 2],
        "method": "CorpusService.GetStudies",
        "request_id": f"{number:032x}",
        "touched": ((f"patient-{number % 3:04d}", f"study-{number:04d}-é"),),
        "items": 1,
    }
    return AuditEntry(**(values | changes))


@pytest.fixture
def file(filled: Path) -> Iterator[tuple[sqlite3.Connection, bytes]]:
    with reading(filled) as view:
        secret = view.secret
    connection = sqlite3.connect(filled / "corpus.sqlite", isolation_level=None, check_same_thread=False)
    yield connection, secret
    connection.close()


def refuse_nothing(connection: sqlite3.Connection) -> None:
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")


def test_entries_are_found_by_subject_principal_request_and_time(file) -> None:
    connection, secret = file
    audit.insert(connection, secret, [entry(i) for i in range(6)])
    (first, second) = audit.select(connection, secret, subject_id="patient-0001")
    assert (first.entry, second.entry) == (2, 5)
    assert (first.time, first.principal, first.outcome, first.items) == (START + timedelta(minutes=1), "bela", "OK", 1)
    assert [each.entry for each in audit.select(connection, secret, principal="anna", after=1)] == [3, 5]
    assert [each.entry for each in audit.select(connection, secret, since=START + timedelta(minutes=4))] == [5, 6]
    assert [each.entry for each in audit.select(connection, secret, request_id=f"{3:032x}")] == [4]
    assert [each.entry for each in audit.select(connection, secret, limit=2)] == [1, 2]
    assert audit.select(connection, secret, subject_id="patient-0009") == []


def test_ids_are_named_only_while_the_study_is_there(file) -> None:
    connection, secret = file
    audit.insert(connection, secret, [entry(1), entry(2, touched=(("somebody-else", "gone-study"),))])
    there, gone = audit.select(connection, secret)
    assert (there.touched[0].subject_id, there.touched[0].study_id) == ("patient-0001", "study-0001-é")
    assert (gone.touched[0].subject_id, gone.touched[0].study_id) == ("", "")
    assert gone.touched[0].subject_digest == audit.digest(secret, "subject", "somebody-else").hex()
    assert audit.select(connection, secret, resolve=False)[0].touched[0].study_id == ""


def test_no_id_stands_in_the_trail(file, filled: Path) -> None:
    connection, secret = file
    audit.insert(
        connection, secret, [entry(1, touched=(("CANARY-SUBJECT", "CANARY-STUDY"),), request_id="CANARY-REQUEST")]
    )
    (found,) = audit.select(connection, secret, request_id="CANARY-REQUEST")
    assert found.request_id.startswith("#")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"CANARY" not in (filled / "corpus.sqlite").read_bytes()


def test_the_trail_is_only_added_to(file) -> None:
    connection, secret = file
    audit.insert(connection, secret, [entry(1)])
    for statement in (
        "UPDATE audit SET principal = 'x'",
        "DELETE FROM audit",
        "UPDATE audit_touched SET study = x''",
        "DELETE FROM audit_touched",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            connection.execute(statement)


def test_a_whole_trail_verifies(file) -> None:
    connection, secret = file
    assert audit.verify(connection, secret) == audit.TrailState(0, "")
    audit.insert(connection, secret, [entry(i) for i in range(3)])
    audit.insert(connection, secret, [entry(3, touched=()), entry(4, touched=(("a", "b"), ("c", "d")))])
    state = audit.verify(connection, secret)
    assert (state.entries, len(state.seal), state.findings) == (5, 32, ())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET principal = 'nobody' WHERE entry = 3",
        "UPDATE audit SET time = replace(time, '2026', '2025') WHERE entry = 1",
        "UPDATE audit SET outcome = 'NOT_FOUND' WHERE entry = 6",
        "UPDATE audit SET seal = zeroblob(16) WHERE entry = 4",
        "UPDATE audit_touched SET subject = zeroblob(16) WHERE entry = 2",
        "DELETE FROM audit_touched WHERE entry = 2",
        "INSERT INTO audit_touched VALUES (2, 1, zeroblob(16), zeroblob(16))",
        "DELETE FROM audit WHERE entry = 3",
        "DELETE FROM audit WHERE entry = 1",
        "DELETE FROM audit WHERE entry = 6",
        "DELETE FROM audit",
    ],
)
def test_any_change_is_seen(file, statement: str) -> None:
    connection, secret = file
    audit.insert(connection, secret, [entry(i) for i in range(6)])
    refuse_nothing(connection)
    connection.execute(statement)
    assert audit.verify(connection, secret).findings


class PlainWriter:
    """One transaction an operation."""

    def __init__(self, connection: sqlite3.Connection, fail: list[Exception]) -> None:
        self.connection, self.fail = connection, fail

    def write(self, operation, *, grows: bool) -> None:
        assert not grows, "the trail must go on when the disk is nearly full"
        if self.fail:
            raise self.fail[0]
        self.connection.execute("BEGIN IMMEDIATE")
        operation(self.connection)
        self.connection.execute("COMMIT")


def trail(connection: sqlite3.Connection, secret: bytes, reads: str = "buffered", fail: list | None = None):
    return AuditTrail(PlainWriter(connection, fail if fail is not None else []), secret, reads=reads)


def test_durable_entries_are_there_at_once_and_off_writes_none(file) -> None:
    connection, secret = file
    trail(connection, secret, "durable").append([entry(1)])
    assert len(audit.select(connection, secret)) == 1
    trail(connection, secret, "off").append([entry(2)])
    assert len(audit.select(connection, secret)) == 1
    with pytest.raises(ConfigError, match="expected buffered, durable or off"):
        trail(connection, secret, "sometimes")


def test_buffered_entries_are_written_in_a_moment_and_on_close(file) -> None:
    connection, secret = file
    written = trail(connection, secret)
    written.append([entry(1)])
    ended = datetime.now(UTC) + timedelta(seconds=10)
    while not audit.select(connection, secret, resolve=False) and datetime.now(UTC) < ended:
        threading.Event().wait(0.05)
    assert len(audit.select(connection, secret)) == 1
    written.append([entry(2), entry(3)])
    written.close()
    written.close()
    assert len(audit.select(connection, secret)) == 3
    assert not audit.verify(connection, secret).findings


def test_entries_wait_while_nothing_can_be_written_and_loss_is_told(file, monkeypatch) -> None:
    connection, secret = file
    monkeypatch.setattr(audit, "_MAX_WAITING", 4)
    fail: list = [OverloadedError("full")]
    written = trail(connection, secret, fail=fail)
    written.append([entry(i) for i in range(6)])
    with pytest.raises(OverloadedError):
        written.flush()
    fail.clear()
    written.close()
    lost, *kept = audit.select(connection, secret)
    assert (lost.method, lost.outcome, lost.items) == ("audit", "LOST", 2)
    assert [each.time for each in kept] == [entry(i).time for i in range(2, 6)]


def test_calls_that_were_refused_alike_are_one_entry(file) -> None:
    connection, secret = file
    written = trail(connection, secret)
    nobody = {"principal": "", "outcome": "UNAUTHENTICATED", "touched": (), "items": 0}
    written.append([entry(0), *(entry(number, **nobody) for number in range(1, 8)), entry(8)])
    written.append([entry(9, **nobody | {"outcome": "NOT_FOUND"}), entry(10, **nobody | {"principal": "anna"})])
    written.close()
    found = [(each.request_id[-2:], each.outcome, each.items) for each in audit.select(connection, secret)]
    assert found == [
        ("00", "OK", 1),
        ("01", "UNAUTHENTICATED", 7),
        ("08", "OK", 1),
        ("09", "NOT_FOUND", 0),
        ("0a", "UNAUTHENTICATED", 0),
    ]


def test_many_threads_append(file) -> None:
    connection, secret = file
    written = trail(connection, secret)
    threads = [threading.Thread(target=lambda: [written.append([entry(i)]) for i in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written.close()
    state = audit.verify(connection, secret)
    assert (state.entries, state.findings) == (800, ())


def test_hashes_need_the_key() -> None:
    other = os.urandom(32)
    assert audit.digest(SECRET, "subject", "p1") == audit.digest(SECRET, "subject", "p1")
    assert len({audit.digest(key, kind, "p1") for key in (SECRET, other) for kind in ("subject", "study")}) == 4


def test_who_is_refused_unread_costs_no_commit_each_also_where_reads_are_durable(file) -> None:
    connection, secret = file
    written = trail(connection, secret, "durable")
    nobody = {"principal": "", "outcome": "UNAUTHENTICATED", "touched": (), "items": 0}
    for number in range(20):
        written.append([entry(number, **nobody)], are_reads=False)
    written.append([entry(20, outcome="PERMISSION_DENIED")], are_reads=False)  # names a study: there at once
    assert [each.outcome for each in audit.select(connection, secret)][-1] == "PERMISSION_DENIED"
    written.close()
    found = audit.select(connection, secret)
    assert sum(each.items for each in found if each.outcome == "UNAUTHENTICATED") == 20
    assert len(found) <= 3
