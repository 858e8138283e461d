"""The reference for vector indexes: every query against every vector, in NumPy."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from mmecg.search import IndexResult, SearchPlan, check_rows, check_top_k, check_vectors


class ExactIndex:
    """Every query against every vector, in NumPy: a :class:`VectorIndex` that is slow and obviously right.

    Equal scores are ordered by row. Every change replaces the arrays, so that a search sees one state.

    Parameters
    ----------
    dim : int
    fingerprint : str
        Fingerprint of the bundle whose embeddings it holds.
    """

    def __init__(self, dim: int, fingerprint: str) -> None:
        self.dim = dim
        self.fingerprint = fingerprint
        self._lock = threading.Lock()
        self._state = (np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def __len__(self) -> int:
        return len(self._state[0])

    def upsert(self, rows: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add vectors, replacing those whose row is there; of a repeated row the last counts."""
        vectors = check_vectors(embeddings, self.dim)
        check_rows(rows, len(vectors))
        with self._lock:
            stored = dict(zip(self._state[0].tolist(), self._state[1], strict=True))
            stored.update(zip(np.asarray(rows).tolist(), vectors, strict=True))
            ordered = sorted(stored)
            matrix = np.array([stored[row] for row in ordered], np.float32).reshape(-1, self.dim)
            self._state = (np.array(ordered, np.int64), matrix)

    def remove(self, rows: NDArray[np.int64]) -> int:
        """Remove rows; return how many were there."""
        with self._lock:
            have, matrix = self._state
            keep = ~np.isin(have, rows)
            self._state = (have[keep], matrix[keep])
            return int((~keep).sum())

    def search(self, queries: NDArray[np.float32], top_k: int, *, rows: NDArray[np.int64] | None = None) -> IndexResult:
        """Return the best ``top_k`` of all rows, or of ``rows`` only."""
        have, matrix = self._state
        total = len(have)
        vectors = check_vectors(queries, self.dim)
        if rows is not None:
            keep = np.isin(have, check_rows(rows))
            have, matrix = have[keep], matrix[keep]
        scores = vectors @ matrix.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, : check_top_k(top_k)]
        found_rows = np.full((len(vectors), top_k), -1, np.int64)
        found_scores = np.full((len(vectors), top_k), -np.inf, np.float32)
        found_rows[:, : best.shape[1]] = have[best]
        found_scores[:, : best.shape[1]] = np.take_along_axis(scores, best, axis=1)
        engine = "exact" if rows is None else "exact_rows"
        return IndexResult(found_rows, found_scores, SearchPlan(engine, True, total, len(have)))
