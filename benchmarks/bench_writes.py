"""Durable writes a second, one study each, with group commit and without, by threads; both in the same run.

Without: the same operations, each in a transaction of its own, as the writer does when nobody else waits. Prints ratios
because the disk of one machine says nothing about another's.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmecg_index import writer
from mmecg_index.corpus import Corpus

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, MODALITIES, normalise
from mmecg.report import Report
from mmecg.study import Study


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each cell")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--signal", action="store_true", help="with 10 s of 12 leads at 100 Hz")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; a temporary one otherwise")
    args = parser.parse_args(argv)
    group = writer.GROUP
    print("threads  together 1/s  one by one 1/s  ratio  normal, together 1/s  ratio to full")
    for threads in args.threads:
        together = measure(args, threads, group)
        alone = measure(args, threads, 1)
        normal = measure(args, threads, group, synchronous="normal")
        ratios = f"{together / alone:6.1f} {normal:21.0f} {normal / together:14.1f}"
        print(f"{threads:7d} {together:13.0f} {alone:15.0f} {ratios}")


def measure(args: argparse.Namespace, threads: int, group: int, synchronous: str = "full") -> float:
    """Return durable studies a second."""
    writer.GROUP = group
    random = np.random.default_rng(0)
    ecg = Ecg.from_array(random.integers(-900, 900, (12, 1000)) / 1000, sampling_rate_hz=100) if args.signal else None
    vectors = {modality: normalise(random.standard_normal(EMBEDDING_DIM)) for modality in MODALITIES}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        corpus = Corpus.create(Path(folder) / "corpus", "f" * 64, synchronous=synchronous)
        with corpus:

            def write(thread: int, number: int) -> None:
                study = Study(
                    study_id=f"{thread}-{number}",
                    subject_id=f"p{thread}",
                    ecg=ecg,
                    report=Report.from_text("Sinus rhythm"),
                )
                corpus.store([study], [vectors])

            run(write, threads, 0.5)
            return run(write, threads, args.seconds, offset=1_000_000)


def run(write: Callable[[int, int], None], threads: int, seconds: float, offset: int = 0) -> float:
    """Return calls a second of threads that call one after the other."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def loop(thread: int) -> None:
        while time.perf_counter() < end:
            write(thread, offset + counts[thread])
            counts[thread] += 1

    workers = [threading.Thread(target=loop, args=(thread,)) for thread in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
