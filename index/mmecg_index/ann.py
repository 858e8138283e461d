"""An approximate FAISS index over positions: built once, tuned on its own vectors, then only searched.

No fixed ``efSearch`` or ``nprobe`` is safe: the same value gives a recall of 1.0 on one set of vectors and 0.4 on
another. So the effort is chosen at build time, on the vectors themselves, and the recall that was measured is kept.
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import normalise
from mmecg.errors import ConfigError
from mmecg_index.priority import lower_priority

FLAT_LIMIT = 200_000
"""Up to this size a scan of everything is fast enough (about 8 ms of one core), and exact."""

HNSW_LIMIT = 5_000_000
"""Above it, HNSW's links (300 bytes a vector) and build time argue for inverted lists."""

TUNED_K = 10
TARGET_RECALL = 0.99
_TUNING_QUERIES = 256
_ADD_BATCH = 20_000
_HNSW_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_EF_CONSTRUCTION = 80
_CANDIDATES = (2, 4, 8, 16, 32)
_ENOUGH = 0.002
"""Recall by which an index may fall short of its best with more candidates, before it is given more."""

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and positions, each of shape (queries, k), best first; ``-inf`` and -1 where there are fewer."""


class BuildCancelledError(Exception):
    """The build was told to stop."""


@dataclass(frozen=True, eq=False)
class Ann:
    """A trained and filled HNSW or IVF index, and the vectors it was made of.

    Attributes
    ----------
    factory : str
        FAISS factory string.
    index : faiss.Index
        Never changed again, so that any number of threads may search it.
    matrix : float32, shape (n, dim), unit norm
        The vectors; the index's own storage where it keeps them.
    effort : int
        ``efSearch`` (HNSW) or ``nprobe`` (IVF) that reached the target recall at build time, or the largest tried.
    recall : float
        Recall@10 that was measured with it, see :meth:`tuned`.
    candidates : int
        Of a lossy index: for each hit that is asked for, so many are fetched, and ranked anew by their vectors.
    """

    factory: str
    index: Any
    matrix: NDArray[np.float32]
    effort: int
    recall: float
    candidates: int = 2

    @property
    def lossy(self) -> bool:
        """True if the index stores codes instead of the vectors."""
        return not isinstance(self.index, faiss.IndexHNSWFlat | faiss.IndexIVFFlat)

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Return scores (true cosines, also of a lossy index) and positions of the nearest ``k``."""
        effort = self.effort
        if k > TUNED_K:  # The effort was tuned for ten hits; a longer list reaches further out.
            effort = math.ceil(effort * math.sqrt(k / TUNED_K))
            effort = min(effort, self.index.nlist) if is_ivf(self.index) else max(effort, k + k // 2)
        return self._ranked(queries, k, effort)

    def _ranked(self, queries: NDArray[np.float32], k: int, effort: int) -> Found:
        if not self.lossy:
            return self._call(queries, k, effort)
        _, positions = self._call(queries, min(self.candidates * k + 10, len(self.matrix)), effort)
        scores = np.einsum("qd,qkd->qk", queries, self.matrix[positions])
        scores[positions < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(positions, best, axis=1)

    def _call(self, queries: NDArray[np.float32], k: int, effort: int) -> Found:
        # Parameters travel with the call: setting them on the shared index would be a race.
        if is_ivf(self.index):
            parameters = faiss.SearchParametersIVF(nprobe=effort)  # type: ignore[call-arg]
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=effort)  # type: ignore[attr-defined]
        found: Found = self.index.search(queries, k, params=parameters)
        return found

    def tuned(self, target_recall: float) -> Ann:
        """Return the same index with the least effort and candidates for a recall@10, for queries like its vectors.

        A stored vector as query would flatter the index: it finds itself, and its links are its neighbours. So each
        sampled vector is moved in a random direction as far as its tenth neighbour lies.
        """
        random = np.random.default_rng(0)
        sample = self.matrix[random.permutation(len(self.matrix))[:_TUNING_QUERIES]]
        k = min(TUNED_K, len(self.matrix))
        nearest, _ = faiss.knn(sample, self.matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
        radius = np.sqrt(np.maximum(2 - 2 * nearest[:, -1:], 1e-6))
        queries = normalise(sample + radius * normalise(random.standard_normal(sample.shape)))
        exact, _ = faiss.knn(queries, self.matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
        ladder = [2**i for i in range(self.index.nlist.bit_length())] if is_ivf(self.index) else _HNSW_EFFORTS

        def measured(ann: Ann, effort: int) -> Ann:
            scores, _ = ann._ranked(queries, k, effort)
            # Ties may stand in any order: a hit counts if it scores no worse than the last of the exact answer.
            return replace(ann, effort=effort, recall=float((scores >= exact[:, -1:] - 1e-5).mean()))

        tried = self
        if self.lossy:  # What no effort finds, because codes are coarse, more candidates do.
            for candidates in _CANDIDATES:
                tried = measured(replace(self, candidates=candidates), ladder[-1])
                if tried.recall >= min(target_recall + _ENOUGH, 1.0):
                    break
        for effort in ladder:
            tried = measured(tried, effort)
            if tried.recall >= target_recall:
                break
        return tried


def choose_factory(count: int) -> str:
    """Return the factory string for a number of vectors: exact, then HNSW, then inverted lists of 8-bit codes."""
    if count <= FLAT_LIMIT:
        return "Flat"
    if count <= HNSW_LIMIT:
        return "HNSW32"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},SQ8"


def build_ann(
    matrix: NDArray[np.float32],
    factory: str,
    *,
    target_recall: float = TARGET_RECALL,
    cancel: threading.Event | None = None,
) -> Ann:
    """Train, fill and tune an index.

    Parameters
    ----------
    matrix : float32, shape (n, dim), unit norm
    factory : str
        FAISS factory string of an HNSW or IVF index.
    target_recall : float
        Recall@10 to reach.
    cancel : threading.Event, optional
        Looked at between batches.

    Raises
    ------
    ConfigError
        FAISS does not know the factory string, it is neither HNSW nor IVF, or there are too few vectors for it.
    BuildCancelledError
        ``cancel`` was set.
    """
    index = new_index(matrix.shape[1], factory)
    if is_ivf(index) and len(matrix) < index.nlist * 39:  # FAISS's own minimum of training points a centroid
        raise ConfigError(
            f"index factory {factory[:60]!r} needs at least {index.nlist * 39} vectors to train on, got {len(matrix)}"
        )
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.train(matrix)
    for start in range(0, len(matrix), _ADD_BATCH):
        if cancel is not None and cancel.is_set():
            raise BuildCancelledError
        index.add(matrix[start : start + _ADD_BATCH])
    stored = stored_vectors(index)
    return Ann(factory, index, matrix if stored is None else stored, 0, 0.0).tuned(target_recall)


def new_index(dim: int, factory: str) -> Any:
    """Return an empty HNSW or IVF index over cosines.

    Raises
    ------
    ConfigError
        FAISS does not know the factory string, or it is neither HNSW nor IVF.
    """
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ConfigError(
            f"FAISS cannot make an index of factory {factory[:60]!r}, expected for example HNSW32 or IVF1024,SQ8"
        ) from None
    if not (is_ivf(index) or isinstance(index, faiss.IndexHNSW)):
        raise ConfigError(f"index factory {factory[:60]!r} is neither HNSW nor IVF, expected Flat, HNSW… or IVF…")
    return index


def step_back() -> None:
    """Let this thread build on half of the cores, when others leave them idle."""
    faiss.omp_set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    lower_priority()


def is_ivf(index: Any) -> bool:
    """Return True for an index of inverted lists."""
    return isinstance(index, faiss.IndexIVF)


def stored_vectors(index: Any) -> NDArray[np.float32] | None:
    """Return the vectors that an HNSW index holds, without a copy, or None if it holds them in another form."""
    if not isinstance(index, faiss.IndexHNSWFlat):
        return None
    storage: Any = faiss.downcast_index(index.storage)
    vectors: NDArray[np.float32] = faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * index.d)
    return vectors.reshape(index.ntotal, index.d)
