"""A corpus read without its lock: one consistent view of the file, also while a server writes to it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmecg.errors import IndexFormatError
from mmecg_index import schema

FILE = "corpus.sqlite"


@dataclass(frozen=True)
class View:
    """What one read transaction sees.

    Attributes
    ----------
    connection : sqlite3.Connection
        In a transaction that reads; nothing that is committed later is seen.
    version : int
        Format version of the file.
    fingerprint : str
    dim, sequence : int
    secret : bytes
        Key of the stored hashes; empty in version 1, which has none.
    """

    connection: sqlite3.Connection
    version: int
    fingerprint: str
    dim: int
    sequence: int
    secret: bytes

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


@contextmanager
def reading(directory: Path) -> Iterator[View]:
    """Open a corpus or a backup to read from, whoever has it open, and change nothing.

    Raises
    ------
    IndexFormatError
        There is none, or it is damaged, foreign or of a version that this program does not know.
    """
    file = directory / FILE
    if not file.is_file():
        raise IndexFormatError(f"{directory} holds no corpus; make one with `mmecg build`")
    try:
        connection = _connect(file)
        try:
            yield _view(connection, file)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise IndexFormatError(
            f"{file} cannot be read ({type(error).__name__}); it is damaged or in use by something other than mmecg; "
            "run `mmecg verify`, restore a backup"
        ) from error


def _connect(file: Path) -> sqlite3.Connection:
    # Whoever reads beside a writer takes part in the log's index file; on a read-only medium there is no writer.
    writable = os.access(file.parent, os.W_OK) and os.access(file, os.W_OK)
    mode = "mode=rw" if writable else "mode=ro" if file.with_name(FILE + "-wal").exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _view(connection: sqlite3.Connection, file: Path) -> View:
    connection.execute("BEGIN")
    application_id, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application_id != schema.APPLICATION_ID:
        raise IndexFormatError(f"{file} is a database of another program; name the directory of a corpus")
    if not 1 <= version <= schema.VERSION:
        raise IndexFormatError(
            f"{file} has format version {version}, expected 1 to {schema.VERSION}; use a later release of mmecg"
        )
    found = connection.execute("SELECT fingerprint, dim, sequence FROM corpus").fetchall()
    try:
        ((fingerprint, dim, sequence),) = found
        secret = b""
        if version >= 2:
            (text,) = connection.execute("SELECT value FROM settings WHERE name = 'secret'").fetchone()
            secret = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise IndexFormatError(f"{file} is damaged (its settings); restore it from a backup") from error
    return View(connection, version, fingerprint, dim, sequence, secret)
