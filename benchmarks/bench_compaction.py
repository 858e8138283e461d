"""Does a compaction hold up a search? One thread searches without a pause, alone, and while another compacts and saves.

    python benchmarks/bench_compaction.py --count 1000000 --factory HNSW32 --seconds 60

Prints, for each kind of search, how long it took: p50, p99, p99.9, the longest, and how many took more than 50 ms. Run
it on a machine that does nothing else: whoever waits for a processor waits in both rows. ``--memory-map`` searches the
saved segment where it lies, as a corpus larger than memory does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from bench_index import make_vectors
from mmecg_index.ann import step_back
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.snapshot import map_segment, save_index
from numpy.typing import NDArray

LIMIT_MS = 50.0
K = 10


def compact_forever(
    index: FaissIndex, folder: Path, memory_map: bool, ended: threading.Event, done: list[float]
) -> None:
    """Compact and save as a corpus does, over and over; note how long each took."""
    step_back()
    while not ended.is_set() or not done:
        started = time.perf_counter()
        index.compact()
        path = folder / f"snapshot-{len(done)}"
        state = index.state
        save_index(index, path, sequence=len(done), state=state)
        if memory_map:
            index.exchange(state.segment, map_segment(path))
        done.append(time.perf_counter() - started)


def search(
    searches: dict[str, Callable[[int], object]], ended: Callable[[float], bool]
) -> dict[str, NDArray[np.float64]]:
    """Search in turn until it is enough; return the milliseconds of each search."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    started, number = time.perf_counter(), 0
    while not ended(time.perf_counter() - started):
        for name, call in searches.items():
            before = time.perf_counter()
            call(number)
            taken[name].append(1000 * (time.perf_counter() - before))
        number += 1
    return {name: np.array(times) for name, times in taken.items()}


def rows_of(what: str, taken: dict[str, NDArray[np.float64]]) -> list[tuple[Any, ...]]:
    """Return the rows of the table."""
    return [
        (what, name, len(times), *np.percentile(times, (50, 99, 99.9)), times.max(), int((times > LIMIT_MS).sum()))
        for name, times in taken.items()
    ]


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[float], pl.DataFrame]:
    """Return how long each compaction took, and the table."""
    vectors, _, _ = make_vectors(options.count + 1000, options.dim, 2000, 0.7, seed=1)
    stored, queries = vectors[: options.count], vectors[options.count :]
    index = FaissIndex(options.dim, "benchmark", factory=options.factory, spill=folder if options.memory_map else None)
    index.upsert(np.arange(options.count), stored)
    index.compact()
    passing = np.flatnonzero(np.random.default_rng(2).random(options.count) < options.share)
    searches: dict[str, Callable[[int], object]] = {
        "all": lambda number: index.search(queries[number % 1000][None], K),
        f"{options.share:.0%} of the rows": lambda number: index.search(queries[number % 1000][None], K, rows=passing),
    }
    rows = rows_of("alone", search(searches, lambda seconds: seconds > options.seconds))
    ended, done = threading.Event(), []
    arguments = (index, folder, options.memory_map, ended, done)
    background = threading.Thread(target=compact_forever, args=arguments, name="compact")
    background.start()
    rows += rows_of("beside a compaction", search(searches, lambda seconds: seconds > options.seconds and bool(done)))
    ended.set()
    background.join()
    columns = ["when", "searches of", "searches", "p50 ms", "p99 ms", "p99.9 ms", "longest ms", f"over {LIMIT_MS:g} ms"]
    return done, pl.DataFrame(rows, schema=columns, orient="row")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--factory", default="HNSW32")
    parser.add_argument("--share", type=float, default=0.01, help="of the rows, that pass the filter")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row, and until one compaction is saved")
    parser.add_argument("--memory-map", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-compaction-") as folder:
        done, table = measure(options, Path(folder))
    print(
        f"{options.count} x {options.dim}, {options.factory}{', mapped' if options.memory_map else ''}: "
        f"{len(done)} compactions of {min(done):.1f} to {max(done):.1f} s; load average {os.getloadavg()[0]:.1f}"
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, float_precision=2, tbl_hide_dataframe_shape=True):
        print(table)


if __name__ == "__main__":
    main()
