"""Unary Search with a 10 s ECG over gRPC beside the same encode and search in process, in one run.

    python benchmarks/bench_service.py [--seconds 10] [--rounds 3] [--rate 500]

The server runs in a process of its own on the bundled model and the demo corpus, as `python -m mmecg_server` starts it;
the clients are threads of this process, and all share the machine. In process means the same Retriever called directly,
with the same hits and studies: by one thread, by eight threads, and by one thread in batches of eight; the
best of the last two is what eight clients are compared with. Rounds are interleaved; the median is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mmecg_server.__main__ import open_retriever

from mmecg.client import Client
from mmecg.config import ServerConfig
from mmecg.ecg import Ecg
from mmecg.retriever import Query, Retriever

CLIENTS = 8


@dataclass
class Row:
    """Latencies of one way of calling, over one or more rounds."""

    name: str
    per_second: list[float]
    latencies_ms: list[float]

    def cells(self) -> list[str]:
        """Return the table cells: name, throughput, p50, p99."""
        p50, p99 = np.percentile(self.latencies_ms, (50, 99))
        return [self.name, f"{statistics.median(self.per_second):.0f}", f"{p50:.2f}", f"{p99:.2f}"]


def build_ecgs(count: int, rate: float) -> list[Ecg]:
    """Return distinct noise recordings of 10 s; the time of a call does not depend on what they show."""
    rng = np.random.default_rng(0)
    return [
        Ecg.from_array(rng.standard_normal((12, round(10 * rate))) * 0.3, sampling_rate_hz=rate) for _ in range(count)
    ]


def measure(row: Row, call: Callable[[int], int], threads: int, seconds: float) -> None:
    """Call from threads for some seconds; ``call`` takes a counter and returns how many ECGs it answered."""
    deadline = time.perf_counter() + seconds
    lock = threading.Lock()
    answered = 0

    def work(offset: int) -> None:
        nonlocal answered
        number, own, latencies = offset, 0, []
        while (started := time.perf_counter()) < deadline:
            own += call(number)
            latencies.append(1000 * (time.perf_counter() - started))
            number += threads
        with lock:
            answered += own
            row.latencies_ms.extend(latencies)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, offset) for offset in range(threads)]:
            future.result()
    row.per_second.append(answered / (time.perf_counter() - started))


def search_in_process(retriever: Retriever, ecgs: list[Ecg], number: int, size: int = 1) -> int:
    """Answer ``size`` searches in one call of the retriever."""
    queries = [Query(ecg=ecgs[(number * size + i) % len(ecgs)]) for i in range(size)]
    return len(retriever.search(queries, 10))


def run(retriever: Retriever, address: str, options: argparse.Namespace) -> list[Row]:
    """Measure every way of calling, round after round."""
    ecgs = build_ecgs(64, options.rate)
    rows = [
        Row(name, [], [])
        for name in (
            "gRPC, 1 client",
            f"gRPC, {CLIENTS} clients",
            "in process, 1 thread",
            f"in process, {CLIENTS} threads",
            f"in process, batches of {CLIENTS}",
        )
    ]
    with Client(address) as client:

        def remote(number: int) -> int:
            return len([client.search(ecg=ecgs[number % len(ecgs)], top_k=10)])

        def local(number: int) -> int:
            return search_in_process(retriever, ecgs, number)

        def batched(number: int) -> int:
            return search_in_process(retriever, ecgs, number, CLIENTS)

        ways = ((remote, 1), (remote, CLIENTS), (local, 1), (local, CLIENTS), (batched, 1))
        for call, threads in ways:
            measure(Row("warm-up", [], []), call, threads, 1.0)
        for _ in range(options.rounds):
            for row, (call, threads) in zip(rows, ways, strict=True):
                measure(row, call, threads, options.seconds)
    return rows


def start_server() -> tuple[subprocess.Popen[str], int]:
    """Start the server on a free port and wait until it serves."""
    process = subprocess.Popen([sys.executable, "-m", "mmecg_server", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "serving":
            # The log must be read on, or the server would stop at a full pipe.
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
            return process, int(event["port"])
    raise RuntimeError(f"the server did not start (exit code {process.wait()})")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="Search over gRPC beside the same search in process.")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--rate", type=float, default=500.0, help="sampling rate of the query ECG in Hz")
    options = parser.parse_args()
    process, port = start_server()
    try:
        with open_retriever(ServerConfig()) as retriever:
            rows = run(retriever, f"127.0.0.1:{port}", options)
    finally:
        process.terminate()
        process.wait()
    print("| way | searches/s | p50 ms | p99 ms |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row.cells())} |")
    remote, threads, batches = (statistics.median(row.per_second) for row in (rows[1], rows[3], rows[4]))
    best, name = max((threads, rows[3].name), (batches, rows[4].name))
    print(f"\n{CLIENTS} clients reach {remote / best:.0%} of the best in process ({name})")


if __name__ == "__main__":
    main()
