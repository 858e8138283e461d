"""The metadata table that filters read: held in memory, behind the database by nothing that was answered."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import polars as pl

from mmecg.search import METADATA_SCHEMA
from mmecg_index.codec import check_study, metadata_record
from mmecg_index.database import Database


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
                changed = pl.Series(list(self._pending), dtype=pl.Int64)
                records = [record for record in self._pending.values() if record is not None]
                kept = self._table.filter(~pl.col("row").is_in(changed.implode()))
                self._table = pl.concat([kept, _frame(records)]).sort("row")
                self._pending = {}
            return self._table


def _frame(records: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(records, schema=METADATA_SCHEMA, orient="row")
