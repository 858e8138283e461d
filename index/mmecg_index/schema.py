"""The tables of a corpus: format version 2, and the way to it from version 1."""

from __future__ import annotations

import os
import sqlite3
import zlib

from mmecg.errors import IndexFormatError
from mmecg_index.codec import study_checksum, vector_checksum

APPLICATION_ID = 0x6D6D6543
VERSION = 2

OVERWRITTEN = "overwritten"
"""Setting of a file in which everything that was ever deleted is overwritten, but for what SQLite copies itself."""

_EMBEDDINGS = """
-- One row a space: those of a second bundle are filled in beside those of the first.
CREATE TABLE embeddings (
    row INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
    modality TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    vector BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (row, modality, fingerprint)
) STRICT;
"""

_SINCE_1 = """
CREATE TABLE corpus (
    fingerprint TEXT NOT NULL,
    dim INTEGER NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;
-- AUTOINCREMENT: a row is never given to a second study, so that an index that lags behind cannot confuse the two.
-- content_hash, recipe: see writer.py; NULL is not known, and counts as changed. site: what the document says.
CREATE TABLE studies (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    study_id TEXT NOT NULL UNIQUE,
    subject_id TEXT NOT NULL,
    sort_time TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    document TEXT NOT NULL,
    crc INTEGER NOT NULL,
    signal BLOB,
    site TEXT,
    content_hash BLOB,
    recipe TEXT
) STRICT;
CREATE INDEX studies_by_subject ON studies (subject_id, sort_time, study_id);
CREATE INDEX studies_by_sequence ON studies (sequence);
-- Neither ids nor content: only what an index needs to catch up.
CREATE TABLE deletions (row INTEGER PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
CREATE INDEX deletions_by_sequence ON deletions (sequence);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

_SINCE_2 = """
CREATE INDEX studies_by_site ON studies (site);
-- Writes that were answered, so that a retry gets the same answer. request: keyed hash of the caller's request id.
CREATE TABLE requests (
    principal TEXT NOT NULL,
    request BLOB NOT NULL,
    digest BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (principal, request)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_time ON requests (time);
-- Who did what, see audit.py. Ids are keyed hashes; seal covers the row, what it touched and the seal before it.
CREATE TABLE audit (
    entry INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    outcome TEXT NOT NULL,
    request_id TEXT NOT NULL,
    items INTEGER NOT NULL,
    seal BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (time);
CREATE TABLE audit_touched (
    entry INTEGER NOT NULL REFERENCES audit,
    place INTEGER NOT NULL,
    subject BLOB NOT NULL,
    study BLOB NOT NULL,
    PRIMARY KEY (entry, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_by_subject ON audit_touched (subject, entry);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is only added to'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is only added to'); END;
CREATE TRIGGER audit_touched_is_not_changed BEFORE UPDATE ON audit_touched
    BEGIN SELECT RAISE(ABORT, 'the audit trail is only added to'); END;
CREATE TRIGGER audit_touched_is_not_deleted BEFORE DELETE ON audit_touched
    BEGIN SELECT RAISE(ABORT, 'the audit trail is only added to'); END;
-- Subjects that were erased, as keyed hashes; done: 0 while files may still hold what the commit took away.
CREATE TABLE erasures (
    subject BLOB PRIMARY KEY,
    sequence INTEGER NOT NULL,
    time TEXT NOT NULL,
    done INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
"""What version 1 had nothing of: made by ``create`` and by the migration alike."""

_FROM_1 = f"""
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
ALTER TABLE studies ADD COLUMN site TEXT;
ALTER TABLE studies ADD COLUMN content_hash BLOB;
ALTER TABLE studies ADD COLUMN recipe TEXT;
-- Checksums cover ids too, from version 2 on.
UPDATE studies SET site = json_extract(document, '$.site'),
    crc = renewed(crc, CAST(document AS BLOB), study_checksum(study_id, subject_id, document));
ALTER TABLE embeddings RENAME TO embeddings_1;
{_EMBEDDINGS}
INSERT INTO embeddings SELECT row, modality, fingerprint, vector,
    renewed(crc, vector, vector_checksum(row, modality, fingerprint, vector)) FROM embeddings_1 ORDER BY row, modality;
DROP TABLE embeddings_1;
{_SINCE_2}
"""  # noqa: S608


def create_tables(connection: sqlite3.Connection, *, fingerprint: str, dim: int) -> None:
    """Make the tables of an empty corpus, in one transaction."""
    _run(connection, f"PRAGMA application_id = {APPLICATION_ID};{_SINCE_1}{_EMBEDDINGS}{_SINCE_2}", (fingerprint, dim))


def migrate(connection: sqlite3.Connection, what: object) -> None:
    """Bring a corpus to :data:`VERSION`, in one transaction: a crash leaves the old version, or the new one.

    Parameters
    ----------
    connection : sqlite3.Connection
        To an open file.
    what : object
        How an error names the file.

    Raises
    ------
    IndexFormatError
        The file is a database of another program, or of a version that this program does not know.
    """
    application_id, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application_id != APPLICATION_ID:
        raise IndexFormatError(f"{what} is a database of another program; name the directory of a corpus")
    if not 1 <= version <= VERSION:
        raise IndexFormatError(
            f"{what} has format version {version}, expected 1 to {VERSION}; "
            "open it with the release of mmecg that wrote it, or a later one"
        )
    if version == 1:
        for function in (study_checksum, vector_checksum, _renewed):
            name = function.__name__.strip("_")
            connection.create_function(name, -1, function, deterministic=True)
        _run(connection, _FROM_1)


def _renewed(before: int, data: bytes, now: int) -> int:
    """Return the new checksum of what had another kind; of what was damaged before, one that is wrong again."""
    return now if zlib.crc32(data) == before else now ^ 1


def _run(connection: sqlite3.Connection, script: str, corpus: tuple[str, int] | None = None) -> None:
    """Run statements and what every corpus of this version holds in one transaction."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE;{script};PRAGMA user_version = {VERSION}")
        if corpus is not None:
            connection.execute("INSERT INTO corpus VALUES (?, ?, 0)", corpus)
            connection.execute("INSERT INTO settings VALUES (?, '1')", (OVERWRITTEN,))
        # The key of the hashes that are stored.
        connection.execute("INSERT INTO settings VALUES ('secret', ?)", (os.urandom(32).hex(),))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
