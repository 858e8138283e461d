"""The SQLite file of a corpus: schema, settings, one writer, a pool of readers."""

from __future__ import annotations

import json
import os
import queue
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from mmecg.errors import IndexFormatError, NotReadyError, SubjectNotFoundError
from mmecg.study import without_zone
from mmecg_index import schema

_MAX_VALUES = 500
"""Values of one statement; SQLite takes no more than 999 everywhere."""

_UNKNOWN_TIME = "~"
"""Sorts behind every time."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection whose commits survive a power cut (write-ahead log, synchronous FULL)."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path, *, fingerprint: str, dim: int) -> None:
    """Write the file of an empty corpus, which only its owner may read."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = connect(path)
    try:
        schema.create_tables(connection, fingerprint=fingerprint, dim=dim)
    finally:
        connection.close()


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


def check_subject(connection: sqlite3.Connection, subject_id: str) -> None:
    """Raise ``SubjectNotFoundError`` if a subject has no study."""
    if connection.execute("SELECT 1 FROM studies WHERE subject_id = ?", (subject_id,)).fetchone() is None:
        raise SubjectNotFoundError(f"subject {subject_id!r} has no study in the corpus")


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

    The caller sees to it that only one thread writes, or closes, at a time.

    Raises
    ------
    IndexFormatError
        The file is damaged, not a corpus, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        try:
            self._writer = connect(path)
        except sqlite3.DatabaseError as error:
            raise _damaged(path) from error
        try:
            schema.migrate(self._writer, path)
            fingerprint, dim = self._writer.execute("SELECT fingerprint, dim FROM corpus").fetchone()
            settings = dict(self._writer.execute("SELECT name, value FROM settings").fetchall())
            secret = bytes.fromhex(settings["secret"])
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            self._writer.close()
            raise _damaged(path) from error
        except IndexFormatError:
            self._writer.close()
            raise

        self.fingerprint: str = fingerprint
        self.dim: int = dim
        self.secret: bytes = secret
        self.factory: str | None = settings.get("factory")

    def remember_factory(self, factory: str) -> None:
        """Store the FAISS factory string that was asked for, for the next time the corpus is opened."""
        if factory != self.factory:
            self._writer.execute("INSERT OR REPLACE INTO settings VALUES ('factory', ?)", (factory,))
            self.factory = factory

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read from; every statement sees the last commit."""
        self._check_open()
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
        try:
            yield connection
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            raise _damaged() from error
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.put(connection)

    @contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """Give the connection and the new sequence number; commit durably on leaving, roll back on an exception."""
        self._check_open()
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            (sequence,) = self._writer.execute(
                "UPDATE corpus SET sequence = sequence + 1 RETURNING sequence"
            ).fetchone()
            yield self._writer, sequence
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close every connection; harmless when done twice."""
        self._closed = True
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._writer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise NotReadyError("the corpus is closed; open it again")


def _damaged(path: Path | None = None) -> IndexFormatError:
    """Return the error; with the path only where the corpus is opened, because what reads raise reaches callers."""
    what = "the corpus" if path is None else path
    return IndexFormatError(f"{what} is damaged or not a corpus; restore it from a backup, or rebuild it")
