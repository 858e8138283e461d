"""Bulk reading: all cores, a progress bar, and broken records skipped with their reason.

Results come in the order of the items and are streamed: only a few chunks are held at a time. Worker processes are
spawned, so a script that reads in bulk needs the usual ``if __name__ == "__main__":`` guard.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import polars as pl

from mmecg.errors import MmecgError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_ITEMS = 128
MIN_PARALLEL_ITEMS = 4096
"""Below this, starting worker processes (seconds, more on a busy machine) costs more than it saves."""


@dataclass(frozen=True)
class BulkReport:
    """What became of the items of a bulk read.

    Attributes
    ----------
    read : int
        Items that were read.
    failures : polars.DataFrame
        Columns ``record`` and ``reason``, one row for every item that was skipped.
    """

    read: int
    failures: pl.DataFrame

    @property
    def ok(self) -> bool:
        """True if nothing was skipped."""
        return self.failures.is_empty()


class BulkRead(Generic[Item, Result]):
    """An iterable of ``(item, result)`` pairs; after the iteration, :attr:`report` says what was skipped.

    Parameters
    ----------
    read : callable
        Reads one item; a function of a module or a :func:`functools.partial` of one, so that it can be sent to workers.
        Whatever it raises skips the item.
    items : sequence
    name : callable
        Name of an item in the table of failures.
    processes : int, optional
        Worker processes; default one a core, and none for fewer than :data:`MIN_PARALLEL_ITEMS` items. 1 reads in this
        process.
    quiet : bool
        Draw no progress bar (it goes to standard error, and needs ``rich``).
    """

    def __init__(
        self,
        read: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        name: Callable[[Item], str] = str,
        processes: int | None = None,
        quiet: bool = True,
    ) -> None:
        self._read = read
        self._items = items
        self._name = name
        self._quiet = quiet
        self._processes = processes or (available_cores() if len(items) >= MIN_PARALLEL_ITEMS else 1)
        self._done = 0
        self._failures: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[Item, Result]]:
        self._done, self._failures = 0, []
        with _progress(len(self._items), quiet=self._quiet) as advance:
            for item, outcome in zip(self._items, self._outcomes(), strict=True):
                advance()
                if isinstance(outcome, _Failure):
                    self._failures.append((self._name(item), outcome.reason))
                else:
                    self._done += 1
                    yield item, outcome

    def reject(self, name: str, reason: str) -> None:
        """Count the last result as skipped after all: what the caller makes of it cannot be used."""
        self._done -= 1
        self._failures.append((name, reason))

    @property
    def report(self) -> BulkReport:
        """What became of the items so far."""
        schema = {"record": pl.String(), "reason": pl.String()}
        return BulkReport(self._done, pl.DataFrame(self._failures, schema=schema, orient="row"))

    def _outcomes(self) -> Iterator[Result | _Failure]:
        chunks = (self._items[start : start + CHUNK_ITEMS] for start in range(0, len(self._items), CHUNK_ITEMS))
        if self._processes == 1:
            for item in self._items:
                yield from _read_chunk(self._read, [item])
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._processes, mp_context=context) as pool:
            pending: deque[Future[list[Result | _Failure]]] = deque()
            for chunk in chunks:
                pending.append(pool.submit(_read_chunk, self._read, chunk))
                if len(pending) > 2 * self._processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Failure:
    reason: str


def _read_chunk(read: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | _Failure]:
    outcomes: list[Result | _Failure] = []
    for item in items:
        try:
            outcomes.append(read(item))
        except MmecgError as error:
            outcomes.append(_Failure(str(error)))
        except Exception as error:
            # One record must never end the reading of a million others.
            outcomes.append(_Failure(f"{type(error).__name__}: {error}"))
    return outcomes


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a progress bar by one, or does nothing."""
    if not quiet:
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            quiet = True
    if quiet:
        yield lambda: None
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda: bar.advance(task)
