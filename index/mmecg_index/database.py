"""The SQLite file of a corpus: schema, settings, one writer, a pool of readers."""

from __future__ import annotations

import json
import logging
import os
import queue
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mmecg.errors import IndexFormatError, NotReadyError, OverloadedError
from mmecg.study import without_zone
from mmecg_index import schema

Synchronous = Literal["full", "normal"]

_LOG = logging.getLogger(__name__)

_MAX_VALUES = 500
"""Values of one statement; SQLite takes no more than 999 everywhere."""

_LOG_BYTES = 8 * 2**20
"""Of the write-ahead log, from which on it is moved into the file."""

_CHECKED_BYTES = 64 * 2**20
"""Up to this size a file is checked as a whole when it is opened, which takes a fraction of a second; see structure.py
for a larger one."""

_FAULTS = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
)

_UNKNOWN_TIME = "~"
"""Sorts behind every time."""


def connect(path: Path, synchronous: Synchronous = "full") -> sqlite3.Connection:
    """Open a connection with a write-ahead log, whose commits survive a power cut if ``synchronous`` is full."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        # SQLite keeps quiet about a checkpoint of its own that fails, so the writer does them.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_structure(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file is small enough to be checked now; raise ``IndexFormatError`` if its trees do not fit."""
    if path.stat().st_size > _CHECKED_BYTES:
        return False
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise damaged(path)
    return True


def create(path: Path, *, fingerprint: str, dim: int) -> None:
    """Write the file of an empty corpus, which only its owner may read."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = connect(path)
    try:
        schema.create_tables(connection, fingerprint=fingerprint, dim=dim)
    finally:
        connection.close()


def is_fault(error: sqlite3.Error) -> bool:
    """Return True for an error of the disk or of the file, after which nobody knows what is stored."""
    return _code(error) in _FAULTS


def translated(error: sqlite3.Error) -> Exception:
    """Return what a caller is told about an error that is not of the program's making; else the error itself."""
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return OverloadedError("the disk of the corpus is full; make room, then send it again", limit="disk")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OverloadedError("the corpus is held by another program; send it again")
    if code == sqlite3.SQLITE_CANTOPEN:
        return NotReadyError("the corpus cannot be opened again now (too many open files?); send it again")
    if code in _FAULTS or type(error) is sqlite3.DatabaseError or _is_undecodable(error):
        return damaged()
    return error


def next_sequence(connection: sqlite3.Connection) -> int:
    """Return the number of the write that the connection is in the middle of."""
    return int(connection.execute("UPDATE corpus SET sequence = sequence + 1 RETURNING sequence").fetchone()[0])


def select_in(
    connection: sqlite3.Connection, query: str, column: str, values: Sequence[int] | Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Yield what ``query`` selects where a column has one of the values, in any order."""
    for start in range(0, len(values), _MAX_VALUES):
        chunk = values[start : start + _MAX_VALUES]
        yield from connection.execute(f"{query} WHERE {column} IN ({','.join('?' * len(chunk))})", chunk)


def sort_time(moment: datetime | None) -> str:
    """Return a time as the column ``sort_time`` holds it: text in the order of time; what has no time comes last."""
    return _UNKNOWN_TIME if moment is None else without_zone(moment).isoformat(timespec="microseconds")


def count_of(connection: sqlite3.Connection, subject_id: str) -> int:
    """Return how many studies a subject has."""
    return int(connection.execute("SELECT count(*) FROM studies WHERE subject_id = ?", (subject_id,)).fetchone()[0])


def select_earlier(
    connection: sqlite3.Connection, subject_id: str, before: str, limit: int, exclude: Collection[str]
) -> tuple[list[str], int]:
    """Return the ids of a subject's last studies strictly before a time, latest first, and how many there are."""
    where = "FROM studies WHERE subject_id = ? AND sort_time < ? AND study_id NOT IN (SELECT value FROM json_each(?))"
    values = (subject_id, before, json.dumps(sorted(exclude)))
    query = f"SELECT study_id {where} ORDER BY sort_time DESC, study_id DESC LIMIT ?"
    latest = [study_id for (study_id,) in connection.execute(query, (*values, limit))]
    (count,) = connection.execute(f"SELECT count(*) {where}", values).fetchone()
    return latest, count


class Database:
    """One connection that writes, and as many that read as there are threads reading at the same time.

    Parameters
    ----------
    path : Path
    synchronous : {"full", "normal"}
        When a commit is on the disk: at once, or with the next checkpoint.

    Attributes
    ----------
    path : Path
    writer : sqlite3.Connection
        For one thread at a time; see :mod:`mmecg_index.writer`.
    fingerprint : str
        Of the bundle whose embeddings are searched.
    dim : int
    secret : bytes
        Key of the hashes that are stored.
    factory : str, optional
        FAISS factory string that was asked for.
    memory_map : bool
        Whether indexes are mapped.
    overwritten : bool
        Whether what was deleted in its past is overwritten.
    is_checked : bool
        Whether its structure was checked when it was opened.
    is_damaged : bool
        Whether it was found damaged since, see :meth:`condemn`.

    Raises
    ------
    IndexFormatError
        The file is damaged, not a corpus, or of another version.
    """

    def __init__(self, path: Path, *, synchronous: Synchronous = "full") -> None:
        self.path = path
        self._log = path.with_name(path.name + "-wal")
        self._closed = False
        self.is_damaged = False
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        try:
            self.writer = connect(path, synchronous)
        except sqlite3.DatabaseError as error:
            raise damaged(path) from error
        try:
            self.is_checked = _check_structure(self.writer, path)
            schema.migrate(self.writer, path)
            fingerprint, dim = self.writer.execute("SELECT fingerprint, dim FROM corpus").fetchone()
            settings = dict(self.writer.execute("SELECT name, value FROM settings").fetchall())
            secret = bytes.fromhex(settings["secret"])
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            self.writer.close()
            raise damaged(path) from error
        except IndexFormatError:
            self.writer.close()
            raise

        self.fingerprint: str = fingerprint
        self.dim: int = dim
        self.secret: bytes = secret
        self.factory: str | None = settings.get("factory")
        self.memory_map: bool = settings.get("memory_map") == "1"
        self.overwritten: bool = settings.get(schema.OVERWRITTEN) == "1"

    @property
    def sequence(self) -> int:
        """Number of the last committed write."""
        with self.reading() as connection:
            return int(connection.execute("SELECT sequence FROM corpus").fetchone()[0])

    def remember(self, factory: str | None, memory_map: bool) -> None:
        """Store how the indexes were asked for, for the next time the corpus is opened."""
        before = {"factory": self.factory, "memory_map": "1" if self.memory_map else None}
        for name, value in {"factory": factory, "memory_map": "1" if memory_map else None}.items():
            if value != before[name] and value is None:
                self.writer.execute("DELETE FROM settings WHERE name = ?", (name,))
            elif value != before[name]:
                self.writer.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))
        self.factory, self.memory_map = factory, memory_map

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read from; every statement sees the last commit.

        Raises
        ------
        IndexFormatError
            The file is damaged.
        NotReadyError
            The corpus is closed.
        """
        self.check_open()
        try:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = self._open_reader()
            try:
                yield connection
            finally:
                self._give_back(connection)
        except sqlite3.Error as error:
            told = translated(error)
            if told is error:
                raise
            # What the one says quotes the text that is stored.
            raise told from (None if _is_undecodable(error) else error)

    @property
    def checkpoint_is_due(self) -> bool:
        """True if the log has grown so long that it should be moved into the file."""
        try:
            return self._log.stat().st_size > _LOG_BYTES
        except FileNotFoundError:
            return False

    def checkpoint(self, mode: str = "PASSIVE") -> None:
        """Move the log into the file; what is being read stays in the log."""
        self.writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def check_open(self) -> None:
        """Raise ``NotReadyError`` if it is closed, ``IndexFormatError`` if it was found damaged."""
        if self._closed:
            raise NotReadyError("the corpus is closed; open it again")
        if self.is_damaged:
            raise damaged()

    def condemn(self) -> None:
        """Answer nothing from it any more, and write nothing to it: its structure is damaged."""
        if not self.is_damaged:
            _LOG.critical(
                "the structure of the database is damaged; run `mmecg verify`, and restore a backup",
                extra={"event": "database_damaged", "fields": {}},
            )
        self.is_damaged = True

    def close(self) -> None:
        """Close every connection; harmless when done twice."""
        self._closed = True
        with suppress(queue.Empty):  # others may be taking and giving back
            while True:
                self._idle.get_nowait().close()
        self.writer.close()

    def _open_reader(self) -> sqlite3.Connection:
        connection = connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.put(connection)


def _is_undecodable(error: sqlite3.Error) -> bool:
    """Return True if a text is no UTF-8 any more, which Python's module says in an error without a code."""
    return not _code(error) and str(error).startswith("Could not decode")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def damaged(path: Path | None = None) -> IndexFormatError:
    """Return the error; with the path only where the corpus is opened, because what reads raise reaches callers."""
    what = "the corpus" if path is None else path
    return IndexFormatError(f"{what} is damaged or not a corpus; restore it from a backup, or rebuild it")
