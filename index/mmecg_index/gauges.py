"""What a corpus says of itself to whoever runs it, and how well its index finds what an exact scan finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import normalise
from mmecg_index.cache import IndexCache
from mmecg_index.database import Database
from mmecg_index.faiss_index import FaissIndex, State, search_state
from mmecg_index.folder import SnapshotFolder

CANARIES = 32
"""Queries of a probe."""

TOP_K = 10

_SLICE = 20_000
"""Vectors scanned at a time: about 5 ms of one core."""

_IDLE_SHARE = 9
"""So many times as long as it scans, a probe waits: it takes a tenth of one core while it runs."""


@dataclass(frozen=True, kw_only=True)
class IndexGauges:
    """The state of the index of one modality.

    Attributes
    ----------
    rows : int
        Vectors that can be found.
    tombstones : int
        Vectors that were removed or replaced and still take room.
    tail_rows : int
        Vectors outside the approximate index, which are scanned.
    unsaved_commits : int
        Commits that the newest snapshot lacks.
    snapshot_at : float, optional
        When the newest snapshot was written, seconds since 1970.
    compaction_s : float, optional
        Duration of the last compaction since the corpus was opened.
    engine : str
        FAISS factory string of the approximate index; "exact" without one.
    effort : int, optional
        ``efSearch`` or ``nprobe`` that the approximate index was tuned to.
    recall : float, optional
        Recall@10 that was measured when it was built.
    snapshot_sequence : int
        Sequence number of the newest snapshot; -1 if there is none.
    snapshot_bytes : int
        Its size on the disk.
    memory_mapped : bool
        True if the vectors of the large part are mapped from the snapshot.
    """

    rows: int
    tombstones: int
    tail_rows: int
    unsaved_commits: int
    snapshot_at: float | None
    compaction_s: float | None
    engine: str
    effort: int | None
    recall: float | None
    snapshot_sequence: int
    snapshot_bytes: int
    memory_mapped: bool


@dataclass(frozen=True, kw_only=True)
class CorpusGauges:
    """The state of a corpus.

    Attributes
    ----------
    studies : int
    sequence : int
        Last committed sequence number.
    index_lag : int
        Commits that a search does not see yet.
    writable : bool
    unfinished_erasures : int
        Subjects that are out of all answers, but not yet out of the files.
    refused_snapshots : int
        Snapshots, of the indexes and of the metadata table, that could not be used when the corpus was opened.
    rebuilt : int
        How many of these were made anew from the database then.
    indexes : mapping of modality to IndexGauges
    """

    studies: int
    sequence: int
    index_lag: int
    writable: bool
    unfinished_erasures: int
    refused_snapshots: int
    rebuilt: int
    indexes: Mapping[str, IndexGauges]


def read_gauges(
    database: Database,
    caches: Mapping[str, IndexCache],
    table: SnapshotFolder,
    *,
    searchable: int | None,
    writable: bool,
) -> CorpusGauges:
    """Return the state of a corpus; three short statements, and no lock that a search or a write takes.

    Parameters
    ----------
    database : Database
    caches : mapping of modality to IndexCache
    table : SnapshotFolder
        Of the metadata table.
    searchable : int or None
        Sequence number up to which a search sees everything; None if that is always the last.
    writable : bool
    """
    with database.reading() as connection:
        (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        (studies,) = connection.execute("SELECT count(*) FROM studies").fetchone()
        (unfinished,) = connection.execute("SELECT count(*) FROM erasures WHERE done = 0").fetchone()
    indexes = {}
    for modality, cache in caches.items():
        state = cache.index.state
        ann = state.segment.ann
        indexes[modality] = IndexGauges(
            rows=len(state),
            tombstones=sum(len(block) - block.count for block in state.blocks),
            tail_rows=state.tail.count,
            unsaved_commits=sequence - max(cache.saved, 0),
            snapshot_at=cache.snapshot_at,
            compaction_s=cache.index.compaction_s,
            engine="exact" if ann is None else ann.factory,
            effort=None if ann is None else ann.effort,
            recall=None if ann is None else ann.recall,
            snapshot_sequence=cache.saved,
            snapshot_bytes=cache.snapshot_bytes,
            memory_mapped=state.segment.mapped,
        )
    lag = 0 if searchable is None else max(sequence - searchable, 0)
    folders = [table, *(cache.folder for cache in caches.values())]
    return CorpusGauges(
        studies=studies,
        sequence=sequence,
        index_lag=lag,
        writable=writable,
        unfinished_erasures=unfinished,
        refused_snapshots=sum(folder.refused for folder in folders),
        rebuilt=sum(folder.is_rebuilt for folder in folders),
        indexes=indexes,
    )


def probe_recall(index: FaissIndex, wait: Callable[[float], object] = time.sleep) -> float | None:
    """Return the recall@10 of an index against an exact scan of its vectors.

    The canary queries are stored vectors, each moved in a random direction as far as its tenth neighbour lies, as when
    the index was tuned: a stored vector would find itself, and flatter. Hits of equal score may stand in any order.

    Parameters
    ----------
    index : FaissIndex
    wait : callable
        Given a pause in seconds, between two slices of the scan. If it returns something true, the probe ends.

    Returns
    -------
    float or None
        None if the index is empty, or the probe was ended.
    """
    state = index.state
    k = min(TOP_K, len(state))
    if not k:
        return None
    sample = _sample(state)
    nearest = _scan(state, sample, k, wait)
    if nearest is None:
        return None
    radius = np.sqrt(np.maximum(2 - 2 * nearest[:, :1], 1e-6))
    directions = normalise(np.random.default_rng(1).standard_normal(sample.shape).astype(np.float32))
    queries = normalise(sample + radius * directions)
    exact = _scan(state, queries, k, wait)
    if exact is None:
        return None
    # One by one, as calls come: a batch would take every core.
    scores = np.concatenate([search_state(state, query[None], k).scores for query in queries])
    return float((scores >= exact[:, :1] - 1e-5).mean())


def _sample(state: State) -> NDArray[np.float32]:
    """Return the canaries: float32, shape (queries, dim); the same ones of the same state."""
    alive = [np.flatnonzero(block.alive) for block in state.blocks]
    chosen = np.sort(np.random.default_rng(0).permutation(sum(map(len, alive)))[:CANARIES])
    split = int(np.searchsorted(chosen, len(alive[0])))
    parts = (alive[0][chosen[:split]], alive[1][chosen[split:] - len(alive[0])])
    return np.concatenate([block.matrix[at] for block, at in zip(state.blocks, parts, strict=True)])


def _scan(
    state: State, queries: NDArray[np.float32], k: int, wait: Callable[[float], object]
) -> NDArray[np.float32] | None:
    """Return the ``k`` highest scores of each query, ascending; None if it was told to end."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for block in state.blocks:
        for start in range(0, len(block), _SLICE):
            began = time.monotonic()
            scores = queries @ block.matrix[start : start + _SLICE].T
            scores[:, ~block.alive[start : start + _SLICE]] = -np.inf
            best = np.partition(np.concatenate([best, scores], axis=1), -k, axis=1)[:, -k:]
            if wait(_IDLE_SHARE * (time.monotonic() - began)):
                return None
    return np.sort(best, axis=1)
