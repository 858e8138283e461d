"""A block of vectors that never changes, and the exact scan over it.

The scan calls FAISS's brute-force kernels on NumPy memory. No FAISS index object is involved, so nothing can be added
to one while it is searched, and the vectors are not held twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmecg_index.ann import Ann, Found

EXACT_ROWS = 100_000
"""Up to this many passing rows are scanned one by one (0.15 us each); above, the approximate index is asked."""

_MAX_FETCH = 4096
"""Length of a ranking beyond which the exact scan is cheaper."""

_TABLES = frozenset({"_tie_rows", "_position_of_row"})
"""Of a block: what depends on its rows alone, or is looked through for what is still alive."""

_MAX_SPREAD = 8
"""Rows are looked up in a table unless it would be so many times longer than the block."""


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors under rows, and which of them count.

    Attributes
    ----------
    rows : int64, shape (n,)
        Row of each position; a row may repeat, but only one of its positions is alive.
    matrix : float32, shape (n, dim), unit norm
        C-contiguous.
    alive : bool, shape (n,)
        False where the vector was removed or replaced.
    ann : Ann, optional
        Approximate index over the positions.
    mapped : bool
        True if the vectors lie in a file that is mapped, not in memory.
    """

    rows: NDArray[np.int64]
    matrix: NDArray[np.float32]
    alive: NDArray[np.bool_]
    ann: Ann | None = None
    mapped: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def count(self) -> int:
        """Number of vectors that count."""
        return int(np.count_nonzero(self.alive))

    @cached_property
    def _tie_rows(self) -> NDArray[np.int64] | None:
        """The rows by which equal scores are ordered; None if the positions are in that order anyway."""
        return None if (np.diff(self.rows) > 0).all() else self.rows

    @cached_property
    def living(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that are alive, ascending, and their positions."""
        positions = np.flatnonzero(self.alive)
        order = np.argsort(self.rows[positions], kind="stable")
        positions = positions[order]
        return self.rows[positions], positions

    @cached_property
    def _position_of_row(self) -> NDArray[np.int64] | None:
        """The position of each row that is alive, or was, and -1 for others; None where the rows are too far apart."""
        positions = np.flatnonzero(self.alive)
        rows = self.rows[positions]
        last = int(rows.max(initial=-1))
        if last >= _MAX_SPREAD * len(self) + 1024:
            return None
        table = np.full(last + 1, -1, np.int64)
        table[rows] = positions
        return table

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of those of the given ascending rows that are here and alive."""
        table = self._position_of_row
        if table is not None:
            here: NDArray[np.int64] = table[rows[: np.searchsorted(rows, len(table))]]
            here = here if here.min(initial=0) >= 0 else here[here >= 0]
            return here if self.count == len(self) else here[self.alive[here]]
        known, positions = self.living
        at = np.searchsorted(known, rows)
        at = at[at < len(known)] if len(at) and at[-1] == len(known) else at
        found: NDArray[np.int64] = positions[at[known[at] == rows[: len(at)]]]
        return found

    def without(self, positions: NDArray[np.int64]) -> Block:
        """Return the same block with some positions dead."""
        if not len(positions):
            return self
        alive = self.alive.copy()
        alive[positions] = False
        return self.changed(alive=alive)

    def changed(self, **changes: Any) -> Block:
        """Return a block of the same rows at the same places, fewer of them alive or stored elsewhere.

        Tables of a million rows take some 10 ms to make: they are handed on.
        """
        block = replace(self, **changes)
        for name in _TABLES & self.__dict__.keys():
            block.__dict__[name] = self.__dict__[name]
        return block

    def prepare(self) -> None:
        """Make the tables, so that the first search finds them."""
        _ = self.count, self._tie_rows, self._position_of_row

    def search(
        self, queries: NDArray[np.float32], k: int, positions: NDArray[np.int64] | None = None
    ) -> tuple[Found, bool]:
        """Return the best ``k`` of the given positions, or of all that are alive, and whether that is exact."""
        count = self.count if positions is None else len(positions)
        if self.ann is None or (positions is not None and count <= EXACT_ROWS):
            return self._exact(queries, k, positions), True
        if count == len(self):
            found = self.ann.search(queries, k)
            if (found[1] >= 0).all():
                return found, False
        passing = self.alive
        if positions is not None:
            passing = np.zeros(len(self), np.bool_)
            passing[positions] = True
        return self._approximate(self.ann, queries, k, passing, count)

    def _exact(self, queries: NDArray[np.float32], k: int, positions: NDArray[np.int64] | None) -> Found:
        dead = len(self) - self.count
        if positions is None and dead > max(k, 512):
            positions = self.living[1]
        if positions is not None:
            return scan(self.matrix, queries, k, positions, self._tie_rows)
        # A full scan runs four times as fast as one with a selector: take a few more, and drop the dead.
        return first_passing(*scan(self.matrix, queries, k + dead, None, self._tie_rows), self.alive, k)

    def _approximate(
        self, ann: Ann, queries: NDArray[np.float32], k: int, passing: NDArray[np.bool_], count: int
    ) -> tuple[Found, bool]:
        """Take from an unfiltered ranking the first ``k`` that pass.

        That is as good as the ranking itself, whatever the filter has to do with the embedding. Handing FAISS the
        filter as a selector is not: where a filter leaves out a query's neighbourhood (a label does), the traversal
        stops before it meets enough that pass, and returns a full list of poor hits (measured: recall 0.13). A ranking
        that reaches beyond a neighbourhood is poor, too. So a query that stays short even when asked for twice as many
        (what is near it passes less than half as often as the rest) is scanned exactly: at the recall that is
        promised, that is also the fastest way.
        """
        enough = min(k, count) - 1
        scores = np.full((len(queries), k), -np.inf, np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        left = np.arange(len(queries))
        fetch = k if count == len(self) else int(1.2 * k * len(self) / count) + 8
        for depth in (fetch, 2 * fetch):
            if not len(left) or depth > _MAX_FETCH:
                break
            found = first_passing(*ann.search(np.ascontiguousarray(queries[left]), depth), passing, k)
            full = found[1][:, enough] >= 0
            scores[left[full]], positions[left[full]] = found[0][full], found[1][full]
            left = left[~full]
        if len(left):
            chosen = np.flatnonzero(passing)
            asked = np.ascontiguousarray(queries[left])
            scores[left], positions[left] = scan(self.matrix, asked, k, chosen, self._tie_rows)
        return (scores, positions), len(left) == len(queries)


def scan(
    matrix: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    positions: NDArray[np.int64] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> Found:
    """Return the ``k`` largest inner products of each query with the vectors of a matrix, or with some of them.

    Equal scores stand in the order of their rows, or else of their positions, also at the cut, so that a longer ranking
    begins with the shorter one. (Equal scores are common: many reports are the same sentence.)

    Parameters
    ----------
    matrix : float32, shape (n, dim)
    queries : float32, shape (queries, dim)
    k : int
    positions : int64, shape (passing,), optional
        Only these positions of the matrix.
    rows : int64, shape (n,), optional
        What orders equal scores.
    """
    # FAISS keeps arbitrary ones of those that tie at the cut: one more shows whether there is a tie.
    scores, found = _kernel(matrix, queries, k + 1, positions)
    # -1, what is not there, is last anyway: its score is minus infinity.
    order = np.lexsort((found if rows is None else rows[found], -scores), axis=1)
    scores, found = np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
    tied = np.flatnonzero((scores[:, k - 1] == scores[:, k]) & (found[:, k] >= 0))
    scores, found = scores[:, :k], found[:, :k]
    if len(tied) and k < _MAX_FETCH:
        longer = scan(matrix, np.ascontiguousarray(queries[tied]), 4 * k, positions, rows)
        scores[tied], found[tied] = longer[0][:, :k], longer[1][:, :k]
    return scores, found


def _kernel(
    matrix: NDArray[np.float32], queries: NDArray[np.float32], k: int, positions: NDArray[np.int64] | None
) -> Found:
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    q, m, s, f = (faiss.swig_ptr(array) for array in (queries, matrix, scores, found))
    selector = None if positions is None else faiss.IDSelectorArray(positions)
    faiss.knn_inner_product(q, m, matrix.shape[1], len(queries), len(matrix), k, s, f, selector)
    scores[found < 0] = -np.inf
    return scores, found


def first_passing(
    scores: NDArray[np.float32], positions: NDArray[np.int64], passing: NDArray[np.bool_], k: int
) -> Found:
    """Keep of each ranking the first ``k`` whose position passes; pad with -1.

    Parameters
    ----------
    scores : float32, shape (queries, fetched)
    positions : int64, shape (queries, fetched)
    passing : bool, shape (n,)
    k : int
    """
    keep = passing[positions] & (positions >= 0)
    if not keep.all():
        first = np.argsort(~keep, axis=1, kind="stable")
        keep = np.take_along_axis(keep, first, axis=1)
        scores = np.where(keep, np.take_along_axis(scores, first, axis=1), np.float32(-np.inf))
        positions = np.where(keep, np.take_along_axis(positions, first, axis=1), -1)
    return pad(scores[:, :k], positions[:, :k], k)


def pad(scores: NDArray[np.float32], positions: NDArray[np.int64], k: int) -> Found:
    """Widen to ``k`` columns with ``-inf`` and -1."""
    missing = k - scores.shape[1]
    if missing <= 0:
        return scores, positions
    widths = [(0, 0), (0, missing)]
    return (
        np.pad(scores, widths, constant_values=np.float32(-np.inf)),
        np.pad(positions, widths, constant_values=-1),
    )
