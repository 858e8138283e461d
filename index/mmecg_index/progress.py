"""How far the embeddings of another bundle are, as the corpus remembers it, and what is deleted after the change."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mmecg.administration import Reindexing
from mmecg.errors import MmecgError
from mmecg_index.writer import Written

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus

FORGET_ROWS = 500
"""Studies whose old embeddings are deleted in one transaction."""

_CURSOR, _OUTGROWN = "reembedding", "outgrown"


class CancelledError(MmecgError):
    """A re-embedding was told to end; it goes on where it was when it is started again."""


class Cursor(NamedTuple):
    """How far a re-embedding is: to which space, and the last study that has its embeddings."""

    fingerprint: str
    sequence: int = -1
    row: int = -1


def read_cursor(connection: sqlite3.Connection) -> Cursor | None:
    """Return how far a re-embedding is that has not ended; None if there is none."""
    found = connection.execute("SELECT value FROM settings WHERE name = ?", (_CURSOR,)).fetchone()
    return None if found is None else Cursor(**json.loads(found[0]))


def read_progress(connection: sqlite3.Connection) -> Reindexing | None:
    """Return the state of a re-embedding that has not ended; None if there is none."""
    cursor = read_cursor(connection)
    if cursor is None:
        return None
    (total,) = connection.execute("SELECT count(*) FROM studies").fetchone()
    return Reindexing(cursor.fingerprint, False, count_done(connection, cursor), total)


def abandon(corpus: Corpus) -> None:
    """Give up a re-embedding that has not ended, and delete what it made."""

    def operation(connection: sqlite3.Connection) -> Written:
        end(connection)
        return Written()

    corpus._writer.write(operation, grows=False)
    forget_outgrown(corpus)


def forget_outgrown(corpus: Corpus, cancel: threading.Event | None = None, *, rest: float = 1.0) -> None:
    """Delete the embeddings of spaces that are neither the corpus's nor being filled; a few rows at a time.

    Parameters
    ----------
    corpus : Corpus
    cancel : threading.Event, optional
        When set, ``CancelledError`` is raised.
    rest : float
        See :class:`Reembedding`.
    """
    cancel = cancel or threading.Event()
    with corpus._database.reading() as connection:
        mark = connection.execute("SELECT value FROM settings WHERE name = ?", (_OUTGROWN,)).fetchone()
        (last,) = connection.execute("SELECT coalesce(max(row), 0) FROM embeddings").fetchone()
    if mark is None:
        return
    for start in range(0, last + 1, FORGET_ROWS):
        started = time.monotonic()
        corpus._writer.write(partial(_forget, first=start), grows=False)
        if cancel.wait(rest * (time.monotonic() - started)):
            raise CancelledError("deleting old embeddings was ended; it goes on at the next start")

    def operation(connection: sqlite3.Connection) -> Written:
        connection.execute("DELETE FROM settings WHERE name = ? AND value = ?", (_OUTGROWN, *mark))
        return Written()

    corpus._writer.write(operation, grows=False)


def _forget(connection: sqlite3.Connection, first: int) -> Written:
    cursor = read_cursor(connection)
    connection.execute(
        "DELETE FROM embeddings WHERE row BETWEEN ? AND ? AND fingerprint NOT IN ((SELECT fingerprint FROM corpus), ?)",
        (first, first + FORGET_ROWS - 1, cursor.fingerprint if cursor else ""),
    )
    return Written()


def write_cursor(connection: sqlite3.Connection, cursor: Cursor) -> None:
    """Store how far it is, in the transaction that stores the embeddings."""
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_CURSOR, json.dumps(cursor._asdict())))


def end(connection: sqlite3.Connection) -> None:
    """Forget how far it is; one of two spaces has embeddings that are to be deleted then."""
    connection.execute("DELETE FROM settings WHERE name = ?", (_CURSOR,))
    mark_outgrown(connection)


def mark_outgrown(connection: sqlite3.Connection) -> None:
    """Say that there are embeddings of a space that is no longer wanted."""
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_OUTGROWN, os.urandom(8).hex()))


def count_done(connection: sqlite3.Connection, cursor: Cursor) -> int:
    """Return how many studies have their embeddings."""
    query = "SELECT count(*) FROM studies WHERE (sequence, row) <= (?, ?)"
    return int(connection.execute(query, cursor[1:]).fetchone()[0])
