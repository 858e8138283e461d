"""The rows that pass a filter, kept for the filters that come again: the pages of a list, many queries in one cohort.

At a million studies a filter on labels or text takes some 20 ms, many times what the search behind it takes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.search import Filter

_REMEMBERED = 8
"""Filters; each holds 8 bytes a passing row."""


class PassingRows:
    """Filters over one snapshot of the metadata table. Safe to use from many threads.

    Parameters
    ----------
    table : polars.DataFrame
        See :data:`mmecg.search.METADATA_SCHEMA`.
    """

    def __init__(self, table: pl.DataFrame) -> None:
        self.table = table
        self._of = lru_cache(_REMEMBERED)(self._read)

    def of(self, where: Filter, excluded: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows that pass but for some, ascending; not to be written to.

        Parameters
        ----------
        where : Filter
        excluded : int64, shape (n,)
            Kept out of ``where``, because who is excluded changes from query to query.
        """
        rows = self._of(where)
        if not len(excluded) or not len(rows):
            return rows
        places = np.searchsorted(rows, excluded)
        places = places[places < len(rows)]
        return np.delete(rows, places[np.isin(rows[places], excluded)])

    def _read(self, where: Filter) -> NDArray[np.int64]:
        rows = where.passing_rows(self.table)
        rows = self.table["row"].to_numpy() if rows is None else rows
        rows.setflags(write=False)
        return rows
