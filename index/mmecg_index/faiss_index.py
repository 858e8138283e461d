"""`FaissIndex`: one large segment that never changes, one small exact tail, and marks on what is gone.

FAISS indexes of the fast kinds cannot remove, and must not be searched while they are added to. So nothing is ever
changed in place: a write makes a new state (blocks are shared, marks copied) and swaps one pointer; a search works on
the state it found. :meth:`FaissIndex.compact` folds the tail into a new segment while searches and writes go on.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ConfigError
from mmecg.search import IndexResult, SearchPlan, check_rows, check_top_k, check_vectors
from mmecg_index.ann import TARGET_RECALL, Found, build_ann, choose_factory, new_index
from mmecg_index.block import Block

_MIN_TAIL = 50_000
_MAX_DEAD_TAIL = 512
_SLICE = 10_000
"""Vectors copied at a time: 10 MB."""


@dataclass(frozen=True)
class State:
    """What one search sees: the segment with its approximate index (empty in a small index), and the exact tail."""

    segment: Block
    tail: Block

    @property
    def blocks(self) -> tuple[Block, Block]:
        """Both."""
        return self.segment, self.tail

    def __len__(self) -> int:
        return self.segment.count + self.tail.count


def empty_block(dim: int) -> Block:
    """Return a block without vectors."""
    return Block(np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty(0, np.bool_))


class FaissIndex:
    """A :class:`~mmecg.search.VectorIndex` on FAISS: exact while small, HNSW or IVF beyond.

    Parameters
    ----------
    dim : int
    fingerprint : str
        Fingerprint of the bundle whose embeddings it holds.
    factory : str, optional
        FAISS factory string (``"Flat"``, ``"HNSW32"``, ``"IVF4096,SQ8"``, …) instead of the choice by size.
    target_recall : float
        Recall@10 that a build tunes the search effort for.
    spill : Path, optional
        Directory where a compaction puts the vectors, in a file that is mapped and has no name, instead of in memory.

    Attributes
    ----------
    compaction_s : float, optional
        Duration of the last compaction.
    """

    def __init__(
        self,
        dim: int,
        fingerprint: str,
        *,
        factory: str | None = None,
        target_recall: float = TARGET_RECALL,
        spill: Path | None = None,
    ) -> None:
        if factory not in (None, "Flat"):
            new_index(dim, factory)
        self.dim = dim
        self.fingerprint = fingerprint
        self.factory = factory
        self.target_recall = target_recall
        self.spill = spill
        self._write_lock = threading.Lock()
        self._compact_lock = threading.Lock()
        self._compacting = False
        self.compaction_s: float | None = None
        self._last_row = -1
        """The highest that was ever here."""
        self._state = State(empty_block(dim), empty_block(dim))
        # The tail's blocks are views of these buffers; writes go behind the end of every view.
        self._buffers = (self._state.tail.rows, self._state.tail.matrix)

    def __len__(self) -> int:
        return len(self._state)

    @property
    def state(self) -> State:
        """The current state; it never changes."""
        return self._state

    def restore(self, state: State) -> None:
        """Replace everything by a state that was read from disk."""
        state.segment.prepare()
        with self._write_lock:
            self._buffers = (state.tail.rows, state.tail.matrix)
            self._last_row = max(int(block.rows.max(initial=-1)) for block in state.blocks)
            self._state = state

    def exchange(self, segment: Block, mapped: Block) -> None:
        """Put the same segment, mapped from the disk, in place of one in memory; unless that was replaced meanwhile."""
        with self._write_lock:
            now = self._state
            if now.segment.ann is segment.ann:
                self._state = State(
                    now.segment.changed(rows=mapped.rows, matrix=mapped.matrix, ann=mapped.ann, mapped=True), now.tail
                )

    def upsert(self, rows: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add vectors, replacing those whose row is there; of a repeated row the last counts."""
        vectors = check_vectors(embeddings, self.dim)
        check_rows(rows, len(vectors))
        # np.unique finds first occurrences; reversed, those are the last.
        unique, last = np.unique(np.asarray(rows, np.int64)[::-1], return_index=True)
        with self._write_lock:
            state = self._state
            if len(unique) and unique[0] <= self._last_row:  # else nobody has to look for what they replace
                state = self._without(unique)[0]
            self._append(state, unique, vectors[len(vectors) - 1 - last])
            self._last_row = max(self._last_row, int(unique.max(initial=-1)))

    def remove(self, rows: NDArray[np.int64]) -> int:
        """Remove rows; return how many were there."""
        if not len(rows):
            return 0
        with self._write_lock:
            state, removed = self._without(check_rows(rows))
            self._state = state
            self._tidy_tail()
            return removed

    def search(self, queries: NDArray[np.float32], top_k: int, *, rows: NDArray[np.int64] | None = None) -> IndexResult:
        """Return the best ``top_k`` of all rows, or of ``rows`` only; always ``top_k`` when that many pass.

        The plan's engine is ``"exact"``, ``"exact_rows"``, or the factory string of the approximate index.
        """
        check_top_k(top_k)
        return search_state(
            self._state, check_vectors(queries, self.dim), top_k, None if rows is None else check_rows(rows)
        )

    def search_without(self, queries: NDArray[np.float32], top_k: int, excluded: NDArray[np.int64]) -> IndexResult:
        """Return the best ``top_k`` of all rows but a few, without walking over all the others.

        Parameters
        ----------
        queries : float32, shape (queries, dim), unit norm
        top_k : int
        excluded : int64, shape (n,)
            That many more hits are fetched, so let it be short.
        """
        state = self._state
        check_top_k(top_k)
        gone = check_rows(excluded)
        there = sum(len(block.positions(gone)) for block in state.blocks)
        found = search_state(state, check_vectors(queries, self.dim), top_k + there)
        # Stable: what is excluded moves behind the rest, which keeps its order.
        order = np.argsort(np.isin(found.rows, gone), axis=1, kind="stable")[:, :top_k]
        rows = np.take_along_axis(found.rows, order, axis=1)
        scores = np.take_along_axis(found.scores, order, axis=1)
        plan = replace(found.plan, rows_passing=len(state) - there)
        if top_k > plan.rows_passing:
            rows[:, plan.rows_passing :], scores[:, plan.rows_passing :] = -1, -np.inf
        return IndexResult(rows, scores, plan)

    @property
    def needs_compaction(self) -> bool:
        """True if the tail or the removed part has grown so much that :meth:`compact` pays."""
        segment, tail = self._state.blocks
        factory = self.factory or choose_factory(len(self._state))
        if factory == "Flat" and segment.ann is None:
            return False
        if segment.ann is None:
            return len(self._state) > _MIN_TAIL
        return tail.count > max(_MIN_TAIL, len(segment) // 4) or len(segment) - segment.count > len(segment) // 4

    def compact(self, *, cancel: threading.Event | None = None, or_exact: bool = False) -> None:
        """Fold everything into a new segment (or, if small, into the tail); searches and writes go on meanwhile.

        Parameters
        ----------
        cancel : threading.Event, optional
            When set, a build under way raises ``BuildCancelledError`` and nothing has changed.
        or_exact : bool
            Go on without an approximate index if there are too few vectors for it, instead of ``ConfigError``.
        """
        with self._compact_lock:
            with self._write_lock:
                old = self._state
                self._compacting = True
            started = time.monotonic()
            try:
                self._swap(old, self._build(old, cancel, or_exact=or_exact))
                self.compaction_s = time.monotonic() - started
            finally:
                self._compacting = False

    def purge(self, *, cancel: threading.Event | None = None) -> None:
        """Build anew, without it, whatever holds a vector that was removed; searches and writes go on meanwhile.

        Parameters
        ----------
        cancel : threading.Event, optional
            See :meth:`compact`.
        """
        with self._compact_lock, self._write_lock:  # A compaction under way would put back what it began with.
            if self._state.segment.count == len(self._state.segment):
                self._tidy_tail(whole=True)
                return
        # One that begins now leaves out all that is gone now. What is removed meanwhile is for the next purge: to wait
        # for a segment without marks, beside somebody who writes all the time, would be to wait for ever.
        self.compact(cancel=cancel, or_exact=True)

    def _build(self, old: State, cancel: threading.Event | None, *, or_exact: bool) -> Block:
        rows = np.concatenate([block.living[0] for block in old.blocks])
        order = np.argsort(rows, kind="stable")
        matrix = self._room(len(rows))
        gather(old.blocks, order, matrix)
        factory = self.factory or choose_factory(len(rows))
        ann = None
        if factory != "Flat" and len(rows):
            try:
                ann = build_ann(matrix, factory, target_recall=self.target_recall, cancel=cancel)
                matrix = ann.matrix
            except ConfigError:
                if not or_exact:
                    raise
        block = Block(rows[order], matrix, np.ones(len(rows), np.bool_), ann)
        block.prepare()  # no search waits for it
        return block

    def _room(self, count: int) -> NDArray[np.float32]:
        if self.spill is None or not count:
            return np.empty((count, self.dim), np.float32)
        self.spill.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.spill) as file:
            return np.asarray(np.memmap(file, np.float32, "w+", shape=(count, self.dim)))

    def _swap(self, old: State, built: Block) -> None:
        """Put a built block in place, with what was written since ``old``."""
        with self._write_lock:
            now, kept = self._state, len(old.tail)
            # What was alive then and is not at the same place now was removed or replaced meanwhile.
            rows_then = np.concatenate([block.rows[block.alive] for block in old.blocks])
            still = np.concatenate([now.segment.alive[old.segment.alive], now.tail.alive[:kept][old.tail.alive]])
            built = built.without(built.positions(np.sort(rows_then[~still])))
            since = np.flatnonzero(now.tail.alive[kept:]) + kept
            rows, matrix = now.tail.rows[since], now.tail.matrix[since]
            self._buffers = (np.empty(0, np.int64), np.empty((0, self.dim), np.float32))
            if built.ann is None:
                self._buffers = (built.rows, built.matrix)
                self._append(State(empty_block(self.dim), built), rows, matrix)
            else:
                self._append(State(built, empty_block(self.dim)), rows, matrix)

    def _without(self, rows: NDArray[np.int64]) -> tuple[State, int]:
        """Return the state without some rows, and how many of them were there."""
        gone = [block.positions(rows) for block in self._state.blocks]
        blocks = [block.without(positions) for block, positions in zip(self._state.blocks, gone, strict=True)]
        return State(*blocks), sum(map(len, gone))

    def _append(self, state: State, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        start, end = len(state.tail), len(state.tail) + len(rows)
        if end > len(self._buffers[0]):
            capacity = max(end, 2 * start, 1024)
            grown = (np.empty(capacity, np.int64), np.empty((capacity, self.dim), np.float32))
            grown[0][:start], grown[1][:start] = state.tail.rows, state.tail.matrix
            self._buffers = grown
        self._buffers[0][start:end], self._buffers[1][start:end] = rows, vectors
        alive = np.concatenate([state.tail.alive, np.ones(len(rows), np.bool_)])
        self._state = State(state.segment, Block(self._buffers[0][:end], self._buffers[1][:end], alive))
        self._tidy_tail()

    def _tidy_tail(self, *, whole: bool = False) -> None:
        """Copy the tail without its dead when they would slow the scan, or when none may stay."""
        tail = self._state.tail
        if not whole and (self._compacting or len(tail) - tail.count <= _MAX_DEAD_TAIL):
            return
        rows, positions = tail.living
        self._buffers = (rows.copy(), tail.matrix[positions])
        self._state = State(self._state.segment, Block(*self._buffers, np.ones(len(rows), np.bool_)))


def gather(blocks: Sequence[Block], order: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Copy the living vectors of some blocks, one after the other, in an order of those.

    Parameters
    ----------
    blocks : sequence of Block
    order : int64, shape (n,)
    out : float32, shape (n, dim)
        Written to, a slice at a time, so that other threads run in between.
    """
    for start in range(0, len(order), _SLICE):
        part, first = order[start : start + _SLICE], 0
        for block in blocks:
            positions = block.living[1]
            mine = (part >= first) & (part < first + len(positions))
            out[start : start + _SLICE][mine] = block.matrix[positions[part[mine] - first]]
            first += len(positions)


def search_state(
    state: State, queries: NDArray[np.float32], top_k: int, wanted: NDArray[np.int64] | None = None
) -> IndexResult:
    """Return the best ``top_k`` of a state, or of the wanted ascending rows in it."""
    parts: list[Found] = []
    exact, passing = True, 0
    for block in state.blocks:
        positions = None if wanted is None else block.positions(wanted)
        count = block.count if positions is None else len(positions)
        if not count:
            continue
        (scores, found), block_exact = block.search(queries, top_k, positions)
        parts.append((scores, np.where(found >= 0, block.rows[found], -1)))
        exact, passing = exact and block_exact, passing + count
    engine = "exact" if wanted is None else "exact_rows"
    if not exact and state.segment.ann is not None:
        engine = state.segment.ann.factory
    merged_scores, merged_rows = _merge(parts, len(queries), top_k)
    return IndexResult(merged_rows, merged_scores, SearchPlan(engine, exact, len(state), passing))


def _merge(parts: list[Found], queries: int, k: int) -> Found:
    """Return the best ``k`` of several rankings; equal scores stand in the order of their rows."""
    if not parts:
        return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
    if len(parts) == 1:
        return parts[0]
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    best = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
