"""The metadata table that filters read: held in memory, behind the database by nothing that was answered."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import polars as pl

from mmecg.search import METADATA_SCHEMA
from mmecg_index.codec import check_study, metadata_record
from mmecg_index.database import Database

_MAX_CHUNKS = 64


class MetadataTable:
    """One row a study, read once from the database and changed with it. Safe to use from many threads.

    Raises
    ------
    IndexFormatError
        A stored study is damaged.
    """

    def __init__(self, database: Database) -> None:
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[Any, ...] | None] = {}
        records = []
        with database.reading() as connection:
            found = connection.execute("SELECT row, study_id, subject_id, document, crc FROM studies ORDER BY row")
            for row, study_id, subject_id, document, crc in found:
                check_study(study_id, subject_id, document, crc)
                records.append(metadata_record(row, study_id, subject_id, document))
        self._table = _frame(records)

    def change(self, records: Mapping[int, tuple[Any, ...] | None]) -> None:
        """Put records in place of the rows; None takes a row away."""
        with self._lock:
            self._pending.update(records)

    def current(self) -> pl.DataFrame:
        """Return the table (:data:`mmecg.search.METADATA_SCHEMA`), ascending by row; the same until a change."""
        with self._lock:
            if self._pending:
                self._table = _changed(self._table, self._pending)
                self._pending = {}
            return self._table


def _changed(table: pl.DataFrame, pending: Mapping[int, tuple[Any, ...] | None]) -> pl.DataFrame:
    """Return a table with changes; what only adds to its end, as most do, copies nothing of it."""
    last = table["row"][-1] if len(table) else -1
    old = [row for row in pending if row <= last]
    if old:
        table = table.filter(~pl.col("row").is_in(pl.Series(old, dtype=pl.Int64).implode()))
    records = [pending[row] for row in sorted(pending)]
    added = _frame([record for record in records if record is not None])
    table = pl.concat([table, added])
    if any(pending[row] is not None for row in old):
        table = table.sort("row")
    return table.rechunk() if table.n_chunks() > _MAX_CHUNKS else table


def _frame(records: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(records, schema=METADATA_SCHEMA, orient="row")
