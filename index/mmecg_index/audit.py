"""The audit trail: who did what to which study, when, and how it ended. No clinical text, and no ids in clear.

Subjects and studies stand as keyed hashes: whoever holds the corpus can look up the entries of a subject, and can name
again what is still there; of somebody who was erased nothing is left that says who it was. Rows are only ever added
(triggers refuse the rest), numbered without gaps, and each carries a seal: a keyed hash over itself and the seal
before it. A trail from which something was taken, or in which something was changed, does not verify.

The key lies in the same file. The seals show damage and edits by whoever does not have the key; against whoever may
write the file, keep the newest seal (:attr:`TrailState.seal`) somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from mmecg.administration import AuditRecord as AuditRecord
from mmecg.administration import AuditTouched as AuditTouched
from mmecg.errors import ConfigError, MmecgError
from mmecg_index.writer import Operation, Writer, Written

ReadsMode = Literal["buffered", "durable", "off"]
"""What becomes of entries about reads: written within a second, written before the answer, or left out."""

_LOG = logging.getLogger(__name__)
_FLUSH_S = 1.0
_FLUSH_ENTRIES = 512
_MAX_WAITING = 100_000
_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"})
_MADE_BY_MACHINE = re.compile(
    r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-7][0-9A-HJKMNP-TV-Z]{25}"
)


@dataclass(frozen=True)
class AuditEntry:
    """One call.

    Attributes
    ----------
    time : datetime
        With a zone.
    principal, method, outcome : str
        Who called what, and the name of the status it ended with.
    request_id : str
        Kept as it is if it is a UUID or a ULID; of another, which might hold an id, a keyed hash.
    touched : tuple of (str, str)
        Subject id and study id of what was read or written.
    items : int
        How many studies; ``touched`` may list fewer. Of calls that were refused alike: how many calls.
    """

    time: datetime
    principal: str
    method: str
    outcome: str = "OK"
    request_id: str = ""
    touched: tuple[tuple[str, str], ...] = ()
    items: int = 0


@dataclass(frozen=True)
class TrailState:
    """What :func:`verify` found.

    Attributes
    ----------
    entries : int
    seal : str
        The newest seal, hexadecimal; empty for an empty trail.
    findings : tuple of str
        What is wrong; empty if nothing is.
    """

    entries: int
    seal: str
    findings: tuple[str, ...] = field(default=())


def digest(secret: bytes, kind: Literal["subject", "study", "request"], value: str) -> bytes:
    """Return the keyed hash (16 bytes) under which an id is stored; nothing for an id that is not known."""
    if not value:
        return b""
    return hashlib.blake2b(value.encode(), key=secret, digest_size=16, person=kind.encode()).digest()


def insert(connection: sqlite3.Connection, secret: bytes, entries: Iterable[AuditEntry]) -> None:
    """Add entries to the trail in the transaction that the connection is in."""
    last = connection.execute("SELECT entry, seal FROM audit ORDER BY entry DESC LIMIT 1").fetchone()
    number, seal = last or (0, b"")
    for entry in entries:
        number += 1
        row = (
            number,
            entry.time.astimezone(UTC).isoformat(timespec="microseconds"),
            entry.principal,
            entry.method,
            entry.outcome,
            request_name(secret, entry.request_id),
            entry.items,
        )
        touched = [
            (digest(secret, "subject", subject), digest(secret, "study", study)) for subject, study in entry.touched
        ]
        seal = _seal(secret, seal, row, touched)
        connection.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, seal))
        connection.executemany(
            "INSERT INTO audit_touched VALUES (?, ?, ?, ?)",
            [(number, place, *pair) for place, pair in enumerate(touched)],
        )


def audited(operation: Operation, secret: bytes, principal: str, method: str, request_id: str = "") -> Operation:
    """Return an operation that enters what it changed in the trail, in its own transaction; as it is for nobody."""
    if not principal:
        return operation

    def run(connection: sqlite3.Connection) -> Written:
        written = operation(connection)
        if written.touched:
            moment = datetime.now(UTC)
            entry = AuditEntry(moment, principal, method, "OK", request_id, written.touched, len(written.touched))
            insert(connection, secret, [entry])
        return written

    return run


def request_name(secret: bytes, request_id: str) -> str:
    """Return what stands in the trail for a request id."""
    if not request_id or _MADE_BY_MACHINE.fullmatch(request_id):
        return request_id
    return "#" + digest(secret, "request", request_id).hex()


def select(
    connection: sqlite3.Connection,
    secret: bytes,
    *,
    subject_id: str | None = None,
    principal: str | None = None,
    request_id: str | None = None,
    since: datetime | None = None,
    after: int = 0,
    limit: int = 1000,
    resolve: bool = True,
) -> list[AuditRecord]:
    """Return entries, oldest first.

    Parameters
    ----------
    connection : sqlite3.Connection
    secret : bytes
    subject_id, principal, request_id : str, optional
        Only entries that touched this subject, of this principal, of this request.
    since : datetime, optional
        Only entries of this time or later; without a zone it is UTC.
    after : int
        Only entries with a larger number: that of the last one of the page before.
    limit : int
        At most so many.
    resolve : bool
        Name the subjects and studies that are in the corpus. Reads all ids of the corpus (1 to 2 s a million).
    """
    where, values = ["entry > ?"], [after]
    conditions: list[tuple[str, object]] = []
    if subject_id is not None:
        digested = digest(secret, "subject", subject_id)
        conditions.append(("entry IN (SELECT entry FROM audit_touched WHERE subject = ?)", digested))
    if principal is not None:
        conditions.append(("principal = ?", principal))
    if request_id is not None:
        conditions.append(("request_id = ?", request_name(secret, request_id)))
    if since is not None:
        first = since if since.tzinfo else since.replace(tzinfo=UTC)
        conditions.append(("time >= ?", first.astimezone(UTC).isoformat(timespec="microseconds")))
    where += [condition for condition, _ in conditions]
    found = connection.execute(
        "SELECT entry, time, principal, method, outcome, request_id, items FROM audit "  # noqa: S608
        f"WHERE {' AND '.join(where)} ORDER BY entry LIMIT ?",
        (*values, *(value for _, value in conditions), limit),
    ).fetchall()
    records = []
    for entry, time, who, method, outcome, request, items in found:
        query = "SELECT subject, study FROM audit_touched WHERE entry = ? ORDER BY place"
        pairs = tuple(AuditTouched(*map(bytes.hex, touched)) for touched in connection.execute(query, (entry,)))
        moment = datetime.fromisoformat(time)
        records.append(AuditRecord(entry, moment, who, method, outcome, request, items, pairs))
    return _named(connection, secret, records) if resolve else records


def verify(connection: sqlite3.Connection, secret: bytes) -> TrailState:
    """Recompute every seal."""
    findings: list[str] = []
    seal, count = b"", 0
    touched = connection.execute("SELECT entry, subject, study FROM audit_touched ORDER BY entry, place")
    waiting = touched.fetchone()
    for *row, stored in connection.execute(
        "SELECT entry, time, principal, method, outcome, request_id, items, seal FROM audit ORDER BY entry"
    ):
        count += 1
        pairs = []
        while waiting is not None and waiting[0] <= row[0]:
            pairs.append(waiting[1:])
            waiting = touched.fetchone()
        if row[0] != count:
            findings.append(f"audit entry {count} is missing (the next is {row[0]})")
            count = row[0]
        if _seal(secret, seal, row, pairs) != stored:
            findings.append(f"audit entry {row[0]} does not fit its seal: it, or the one before it, was changed")
        seal = stored
    (given,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'audit'").fetchone()
    if count != (given or 0):
        findings.append(f"audit entries are missing at the end (last {count}, expected {given})")
    return TrailState(count, seal.hex(), tuple(findings[:20]))


class AuditTrail:
    """The trail of an open corpus. Entries about reads wait in memory for a moment and are written together.

    Parameters
    ----------
    writer : Writer
    secret : bytes
        Key of the corpus.
    reads : {"buffered", "durable", "off"}
        What becomes of :meth:`append`; "durable" returns when the entries are on the disk, but for calls that were
        refused unread, which wait in either case to be entered together.
    """

    def __init__(
        self,
        writer: Writer,
        secret: bytes,
        *,
        reads: ReadsMode = "buffered",
    ) -> None:
        if reads not in ("buffered", "durable", "off"):
            raise ConfigError(f"audit.reads is {str(reads)[:20]!r}, expected buffered, durable or off")
        self._writer = writer
        self._secret = secret
        self.reads = reads
        self._waiting: list[AuditEntry] = []
        self._lost = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def insert(self, connection: sqlite3.Connection, entries: Iterable[AuditEntry]) -> None:
        """Add entries about a write in the write's own transaction."""
        insert(connection, self._secret, entries)

    def append(self, entries: Sequence[AuditEntry], *, are_reads: bool = True) -> None:
        """Add entries about calls that wrote nothing; "off" leaves out those of reads that were answered."""
        if (self.reads == "off" and are_reads) or not entries:
            return
        # Never of strangers: whoever is refused would have a commit, and an entry, for each attempt.
        if self.reads == "durable" and not all(map(_is_refusal, entries)):
            self._write(entries)
            return
        with self._lock:
            self._waiting += entries
            if len(self._waiting) > _MAX_WAITING:
                self._lost += len(self._waiting) - _MAX_WAITING
                del self._waiting[: len(self._waiting) - _MAX_WAITING]
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            if len(self._waiting) >= _FLUSH_ENTRIES:
                self._wake.set()

    def flush(self) -> None:
        """Write what waits; what cannot be written goes on waiting (beyond 100,000 the oldest is lost, and counted)."""
        with self._flushing:
            with self._lock:
                taken, self._waiting = self._waiting, []
                lost, self._lost = self._lost, 0
            if lost:
                taken.insert(0, AuditEntry(datetime.now(UTC), "", "audit", "LOST", items=lost))
            taken = _joined(taken)
            if not taken:
                return
            try:
                self._write(taken)
            except BaseException:
                with self._lock:
                    self._waiting = taken[1 if lost else 0 :] + self._waiting
                    self._lost += lost
                raise

    def close(self) -> None:
        """Write what waits and end the thread; harmless when done twice."""
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except (MmecgError, sqlite3.Error) as error:
            fields = {"entries": len(self._waiting), "reason": type(error).__name__}
            _LOG.error(
                "%d audit entries could not be written: %s",
                *fields.values(),
                extra={"event": "audit_lost", "fields": fields},
            )

    def _write(self, entries: Sequence[AuditEntry]) -> None:
        def operation(connection: sqlite3.Connection) -> Written:
            insert(connection, self._secret, entries)
            return Written()

        self._writer.write(operation, grows=False)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(_FLUSH_S)
            self._wake.clear()
            try:
                self.flush()
            except (MmecgError, sqlite3.Error) as error:
                fields = {"entries": len(self._waiting), "reason": type(error).__name__}
                _LOG.error(
                    "%d audit entries wait, they cannot be written now: %s",
                    *fields.values(),
                    extra={"event": "audit_waits", "fields": fields},
                )
                self._wake.wait(_FLUSH_S)


def _is_refusal(entry: AuditEntry) -> bool:
    """Return True for a call that was refused before anything of it was read."""
    return entry.outcome in _REFUSALS and not entry.touched


def _joined(entries: Iterable[AuditEntry]) -> list[AuditEntry]:
    """Return entries with one, the first, for all calls of a principal that were refused alike and touched nothing.

    Otherwise whoever can connect, without any token, could fill the disk by being refused.
    """
    found: dict[object, AuditEntry] = {}
    for number, entry in enumerate(entries):
        key = (entry.principal, entry.method, entry.outcome) if _is_refusal(entry) else number
        first = found.get(key)
        found[key] = entry if first is None else replace(first, items=max(first.items, 1) + max(entry.items, 1))
    return list(found.values())


def _seal(secret: bytes, before: bytes, row: Sequence[object], touched: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = hashlib.blake2b(key=secret, digest_size=16, person=b"audit")
    body.update(json.dumps([before.hex(), *row]).encode())
    for pair in touched:
        body.update(b"".join(pair))
    return body.digest()


def _named(connection: sqlite3.Connection, secret: bytes, records: list[AuditRecord]) -> list[AuditRecord]:
    """Put ids beside the digests of what is in the corpus."""
    subjects: dict[str, str] = dict.fromkeys((each.subject_digest for record in records for each in record.touched), "")
    studies: dict[str, str] = dict.fromkeys((each.study_digest for record in records for each in record.touched), "")
    if not studies:
        return records
    last = None
    for subject_id, study_id in connection.execute("SELECT subject_id, study_id FROM studies ORDER BY subject_id"):
        if (name := digest(secret, "study", study_id).hex()) in studies:
            studies[name] = study_id
        if subject_id != last and (name := digest(secret, "subject", subject_id).hex()) in subjects:
            subjects[name] = subject_id
        last = subject_id
    return [
        replace(
            record,
            touched=tuple(
                replace(each, subject_id=subjects[each.subject_digest], study_id=studies[each.study_digest])
                for each in record.touched
            ),
        )
        for record in records
    ]
