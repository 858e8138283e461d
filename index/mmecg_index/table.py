"""The metadata table that filters read: held in memory, behind the database by nothing that was answered.

Parsing a million documents takes half a minute, so the table has snapshots of its own, with the rules of those of the
indexes: a directory ``index/metadata-<sequence>`` that is written whole, checked byte by byte, and caught up.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mmecg.errors import ArtifactError, IndexFormatError
from mmecg.search import METADATA_SCHEMA
from mmecg_index.codec import check_study, metadata_record
from mmecg_index.database import Database
from mmecg_index.durable import new_directory
from mmecg_index.folder import SnapshotFolder
from mmecg_index.manifest import check_snapshot, write_manifest
from mmecg_index.writer import Writer

METADATA = "metadata"
FORMAT = "mmecg-metadata"
_FILE = "table.arrow"
_COLUMNS = [f"{name} {kind}" for name, kind in METADATA_SCHEMA.items()]
_MAX_CHUNKS = 64
_MAX_PENDING = 1024
"""Rows that are worked in by the next reader, in some 5 ms."""
_END = "\0"
"""Behind every text in the file, so that no two make a third: what was erased is looked for as bytes."""


class MetadataTable:
    """One row a study, read once and changed with the database. Safe to use from many threads.

    Parameters
    ----------
    directory : Path
        Where snapshots lie.
    database : Database
    writer : Writer
        Of the database: what is saved is as of a moment between two of its writes.

    Attributes
    ----------
    folder : SnapshotFolder

    Raises
    ------
    IndexFormatError
        A stored study is damaged.
    """

    def __init__(self, directory: Path, database: Database, writer: Writer) -> None:
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._pending: dict[int, tuple[Any, ...] | None] = {}
        self._database = database
        self._writer = writer
        self.folder = SnapshotFolder(directory, METADATA)
        self.folder.tidy()
        with database.reading() as connection:
            self._table, self._saved = self._load(connection)

    def change(self, records: Mapping[int, tuple[Any, ...] | None]) -> None:
        """Put records in place of the rows; None takes a row away. For one thread at a time.

        What is more than an addition to the end is done here, by the thread that writes: no search waits for it.
        """
        if not records:
            return
        with self._lock:
            table = self._table
            if _last(table) < min(records) and table.n_chunks() < _MAX_CHUNKS:
                self._pending.update(records)
                if len(self._pending) < _MAX_PENDING:
                    return
            pending = {**self._pending, **records}
        changed = _changed(table, pending)
        with self._lock:
            self._table, self._pending = changed, {}

    def current(self) -> pl.DataFrame:
        """Return the table (:data:`mmecg.search.METADATA_SCHEMA`), ascending by row; the same until a change."""
        with self._lock:
            if self._pending:
                self._table = _changed(self._table, self._pending)
                self._pending = {}
            return self._table

    def purge(self) -> None:
        """Do nothing: the table holds nothing that was removed, and :meth:`save_purged` packs what it writes."""

    def save(self) -> None:
        """Write a snapshot if the newest one lacks a write, then delete the older ones; writes go on meanwhile."""
        with self._writer.exclusive():
            self._writer.check(grows=False)
            sequence, table = self._database.sequence, self.current()
        with self._saving:
            if sequence > self._saved:
                self.folder.clear(sequence)
                save_table(table, self.folder.path(sequence), fingerprint=self._database.fingerprint, sequence=sequence)
                self._saved = sequence
                self.folder.keep_only(sequence)

    def save_purged(self) -> None:
        """Write a snapshot and delete every other one, also what a crash left behind of one."""
        self.save()
        with self._saving:
            self.folder.tidy()
            self.folder.keep_only(self._saved)

    def _load(self, connection: sqlite3.Connection) -> tuple[pl.DataFrame, int]:
        """Return what the database says, and the sequence number of the snapshot that helped (-1: none)."""
        (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        for path in self.folder.newest():
            try:
                table, saved = load_table(path, fingerprint=self._database.fingerprint)
            except ArtifactError as error:
                self.folder.refuse(path, error)
                continue
            if saved <= sequence:
                table = _caught_up(connection, table, saved)
                if len(table) == connection.execute("SELECT count(*) FROM studies").fetchone()[0]:
                    return table, saved
            self.folder.refuse(path, "does not fit the database")
        table = _frame(_read_records(connection, -1))
        self.folder.rebuilt(len(table))
        return table, -1


def save_table(table: pl.DataFrame, path: Path, *, fingerprint: str, sequence: int) -> None:
    """Write a metadata table to a new directory, atomically.

    The file is not compressed, so that a search for what was erased can read it, and holds nothing that is not in a
    row: texts are packed anew, whatever the table was cut from.
    """
    with new_directory(path) as directory:
        texts = pl.col(pl.String) + _END
        lists = pl.col(pl.List(pl.String)).list.eval(pl.element() + _END)
        table.with_columns(texts, lists).write_ipc(directory / _FILE, compat_level=pl.CompatLevel.oldest())
        content = {"format": FORMAT, "fingerprint": fingerprint, "sequence": sequence, "count": len(table)}
        write_manifest(directory, content | {"columns": _COLUMNS})


def load_table(path: Path, *, fingerprint: str) -> tuple[pl.DataFrame, int]:
    """Read a metadata table, after checking every byte; return it with its sequence number.

    Raises
    ------
    IndexFormatError
        Something is missing, damaged, of another format or version.
    FingerprintMismatchError
        It was written beside the indexes of another bundle.
    """
    manifest = check_snapshot(path, format_name=FORMAT, fingerprint=fingerprint)
    if manifest["columns"] != _COLUMNS:
        raise IndexFormatError(f"{path} has the columns of another release; it is made anew")
    try:
        stored = pl.read_ipc((path / _FILE).read_bytes())
        texts = pl.col(pl.String).str.strip_suffix(_END)
        lists = pl.col(pl.List(pl.String)).list.eval(pl.element().str.strip_suffix(_END))
        table = stored.with_columns(texts, lists).cast(METADATA_SCHEMA)  # type: ignore[arg-type]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IndexFormatError(f"{path} cannot be read ({type(error).__name__}); delete it, it is made anew") from error
    if len(table) != manifest["count"]:
        raise IndexFormatError(f"{path} holds {len(table)} rows, expected {manifest['count']}; delete it")
    return table, int(manifest["sequence"])


def _caught_up(connection: sqlite3.Connection, table: pl.DataFrame, saved: int) -> pl.DataFrame:
    """Return a table with everything that was committed after a sequence number."""
    gone = connection.execute("SELECT row FROM deletions WHERE sequence > ?", (saved,))
    changes: dict[int, tuple[Any, ...] | None] = {row: None for (row,) in gone}
    changes |= {record[0]: record for record in _read_records(connection, saved)}
    return _changed(table, changes) if changes else table


def _read_records(connection: sqlite3.Connection, after: int) -> list[tuple[Any, ...]]:
    """Return the records of studies that were written after a sequence number, ascending by row."""
    query = "SELECT row, study_id, subject_id, document, crc FROM studies WHERE sequence > ? ORDER BY row"
    records = []
    for row, study_id, subject_id, document, crc in connection.execute(query, (after,)):
        check_study(study_id, subject_id, document, crc)
        records.append(metadata_record(row, study_id, subject_id, document))
    return records


def _changed(table: pl.DataFrame, pending: Mapping[int, tuple[Any, ...] | None]) -> pl.DataFrame:
    """Return a table with changes; a few of them copy nothing of it."""
    last = _last(table)
    old = sorted(row for row in pending if row <= last)
    added = _frame([record for row in sorted(pending) if row > last and (record := pending[row]) is not None])
    if len(old) <= _MAX_CHUNKS // 4:
        table = pl.concat([*_pieces(table, old, pending), added])
    else:
        replaced = _frame([record for row in old if (record := pending[row]) is not None])
        kept = table.filter(~pl.col("row").is_in(pl.Series(old, dtype=pl.Int64).implode()))
        table = pl.concat([pl.concat([kept, replaced]).sort("row"), added])
    return table.rechunk() if table.n_chunks() > _MAX_CHUNKS else table


def _pieces(
    table: pl.DataFrame, old: list[int], pending: Mapping[int, tuple[Any, ...] | None]
) -> Iterator[pl.DataFrame]:
    """Yield the parts of a table between some ascending rows, and what takes the place of each."""
    rows, start = table["row"], 0
    for row in old:
        place = int(rows.search_sorted(row))
        if place > start:
            yield table.slice(start, place - start)
        if (record := pending[row]) is not None:
            yield _frame([record])
        start = place + int(rows[place] == row)
    yield table.slice(start)


def _last(table: pl.DataFrame) -> int:
    return int(table["row"][-1]) if len(table) else -1


def _frame(records: list[tuple[Any, ...]]) -> pl.DataFrame:
    columns = zip(*records, strict=True) if records else [()] * len(METADATA_SCHEMA)
    return pl.DataFrame([_series(*each) for each in zip(METADATA_SCHEMA.items(), columns, strict=True)])


def _series(column: tuple[str, Any], values: tuple[Any, ...]) -> pl.Series:
    name, kind = column
    if kind != pl.List(pl.String):
        return pl.Series(name, values, dtype=kind)
    # A list at a time takes polars five times as long, and would be most of what a row costs.
    return pl.Series(name, list(map(json.dumps, values)), dtype=pl.String).str.json_decode(kind)
