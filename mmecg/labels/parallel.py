"""Label mining on all cores: batches go to worker processes and come back in order.

Workers are spawned, so a script that mines this way needs the usual ``if __name__ == "__main__":`` guard. Each holds a
miner of its own; a batch is mined as :meth:`~mmecg.labels.mining.LabelMiner.mine_batches` does, whoever mines it.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice

import polars as pl

from mmecg.datasets.bulk import available_cores
from mmecg.labels.mining import BATCH_ROWS, LabelMiner
from mmecg.labels.report_rows import TableBatch, table_batches
from mmecg.labels.tables import Probability, mine_batch

MIN_PARALLEL_BATCHES = 4
"""Tables of fewer batches are mined in this process unless a number of jobs is given: workers take seconds to start."""

_Mined = tuple[pl.DataFrame, pl.DataFrame]


def mine_in_parallel(
    table: pl.DataFrame | pl.LazyFrame,
    text_columns: Sequence[str] = ("report",),
    *,
    id_column: str | None = None,
    probability: Probability | None = None,
    typos: Mapping[bytes, bytes] | None = None,
    jobs: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[_Mined]:
    """Mine a table batch by batch, on several cores; the rest is as for :meth:`LabelMiner.mine_batches`.

    Parameters
    ----------
    typos : mapping of bytes to bytes
        As for :class:`LabelMiner`.
    jobs : int, optional
        Worker processes; each holds two batches at most. 1 mines in this process. Default is one a core, and 1 for
        tables of fewer than :data:`MIN_PARALLEL_BATCHES` batches.

    Yields
    ------
    assertions, rows : polars.DataFrame
        In order of the table.
    """
    batches = table_batches(table, text_columns, id_column, batch_rows)
    if jobs is None:
        first = list(islice(batches, MIN_PARALLEL_BATCHES))
        jobs = available_cores() if len(first) == MIN_PARALLEL_BATCHES else 1
        batches = chain(first, batches)
    work = _Work(typos, tuple(text_columns), id_column, probability)
    if jobs == 1:
        yield from map(work, batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(work,)) as pool:
        pending: deque[Future[_Mined]] = deque()
        for batch in batches:
            pending.append(pool.submit(_mine, batch))
            if len(pending) > 2 * jobs - 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Work:
    """Mines batches of one table; its miner is made where it is first needed, as a miner cannot be sent."""

    def __init__(
        self,
        typos: Mapping[bytes, bytes] | None,
        text_columns: tuple[str, ...],
        id_column: str | None,
        probability: Probability | None,
    ) -> None:
        self._typos, self._text_columns, self._id_column = typos, text_columns, id_column
        self._probability = probability
        self._miner: LabelMiner | None = None

    def __call__(self, batch: TableBatch) -> _Mined:
        if self._miner is None:
            self._miner = LabelMiner(typos=self._typos)
        return mine_batch(self._miner, batch, self._text_columns, self._id_column, probability=self._probability)


_work: list[_Work] = []


def _start(work: _Work) -> None:
    """Keep a worker process's work."""
    _work[:] = [work]


def _mine(batch: TableBatch) -> _Mined:
    return _work[0](batch)
