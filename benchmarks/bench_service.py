"""Unary Search with a 10 s ECG over gRPC beside the same work in process, in one run.

    python benchmarks/bench_service.py [--seconds 10] [--rounds 3] [--rate 500]

The server runs in a process of its own on the bundled model and the demo corpus, as `python -m mmecg_server` starts it;
every client is a process of its own; all share the machine. In process means the same without transport: a serialised
request is parsed, encoded, searched, its hits put together and the response serialised, by one thread, by eight
threads, and by one thread in batches of eight; torch has all cores. `Retriever alone` leaves out both messages. Eight
clients are compared with the best of these. Rounds are interleaved; the median is reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mmecg_pb.v1.search_service_pb2 import SearchRequest
from mmecg_server import convert
from mmecg_server.__main__ import fill_demo, open_bundle, open_corpus
from mmecg_server.config import ServerConfig

from mmecg.client import Client
from mmecg.client.requests import search_request
from mmecg.ecg import Ecg
from mmecg.retriever import Query, Retriever

CLIENTS = 8
DISTINCT = 64

Call = Callable[[int], int]
"""Takes a counter and returns how many ECGs it answered."""


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


def work(call: Call, offset: int, seconds: float) -> tuple[int, list[float]]:
    """Call for some seconds; return how many ECGs were answered, and how many ms each call took."""
    deadline = time.perf_counter() + seconds
    number, answered, latencies = offset, 0, []
    while (started := time.perf_counter()) < deadline:
        answered += call(number)
        latencies.append(1000 * (time.perf_counter() - started))
        number += 1
    return answered, latencies


def measure(row: Row, pool: Executor, call: Call, callers: int, seconds: float) -> None:
    """Let callers, threads or processes, call at the same time."""
    started = time.perf_counter()
    running = [pool.submit(work, call, 7 * offset, seconds) for offset in range(callers)]
    outcomes = [future.result() for future in running]
    row.per_second.append(sum(answered for answered, _ in outcomes) / (time.perf_counter() - started))
    for _, latencies in outcomes:
        row.latencies_ms.extend(latencies)


class Remote:
    """A client in its own process: connected once, by :meth:`connect`."""

    client: Client
    ecgs: list[Ecg]

    @classmethod
    def connect(cls, address: str, rate: float) -> None:
        """Prepare this process."""
        cls.client, cls.ecgs = Client(address), build_ecgs(DISTINCT, rate)

    @classmethod
    def search(cls, number: int) -> int:
        """Search once."""
        return len([cls.client.search(ecg=cls.ecgs[number % DISTINCT], top_k=10)])


class Local:
    """The same work in this process."""

    def __init__(self, retriever: Retriever, rate: float) -> None:
        self._retriever = retriever
        self._queries = [Query(ecg=ecg) for ecg in build_ecgs(DISTINCT, rate)]
        self._requests = [search_request(query, {"top_k": 10}).SerializeToString() for query in self._queries]

    def one(self, number: int) -> int:
        """Answer one request."""
        return self._answer(number, 1)

    def batch(self, number: int) -> int:
        """Answer eight requests in one call."""
        return self._answer(number, CLIENTS)

    def retriever_alone(self, number: int) -> int:
        """Answer eight queries that nobody has to parse, into objects that nobody has to render."""
        queries = [self._queries[(number * CLIENTS + i) % DISTINCT] for i in range(CLIENTS)]
        return len(self._retriever.search(queries, 10))

    def _answer(self, number: int, size: int) -> int:
        messages = [SearchRequest.FromString(self._requests[(number * size + i) % DISTINCT]) for i in range(size)]
        searches = [convert.parse_search(message) for message in messages]
        results = self._retriever.search([search.query for search in searches], **searches[0].options)
        fingerprint = self._retriever.encoder.fingerprint
        for search, result in zip(searches, results, strict=True):
            convert.render_result(result, search.fields, fingerprint, 0).SerializeToString()
        return size


def run(retriever: Retriever, address: str, options: argparse.Namespace) -> list[Row]:
    """Measure every way of calling, round after round."""
    local = Local(retriever, options.rate)
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(CLIENTS, spawn, initializer=Remote.connect, initargs=(address, options.rate)) as processes,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        ways: list[tuple[str, Executor, Call, int]] = [
            ("gRPC, 1 client", processes, Remote.search, 1),
            (f"gRPC, {CLIENTS} clients", processes, Remote.search, CLIENTS),
            ("in process, 1 thread", threads, local.one, 1),
            (f"in process, {CLIENTS} threads", threads, local.one, CLIENTS),
            (f"in process, batches of {CLIENTS}", threads, local.batch, 1),
            (f"Retriever alone, batches of {CLIENTS}", threads, local.retriever_alone, 1),
        ]
        rows = [Row(name, [], []) for name, *_ in ways]
        for _, pool, call, callers in reversed(ways):  # eight clients before one: they all start here
            measure(Row("warm-up", [], []), pool, call, callers, 1.0)
        for _ in range(options.rounds):
            for row, (_, pool, call, callers) in zip(rows, ways, strict=True):
                measure(row, pool, call, callers, options.seconds)
    return rows


def start_server(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start the server on a free port and wait until it serves."""
    command = [sys.executable, "-m", "mmecg_server", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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
        config = ServerConfig(torch_threads=os.cpu_count() or 1)
        bundle = open_bundle(config)
        with open_corpus(config, bundle.fingerprint) as corpus:
            retriever = Retriever(bundle.encoder, corpus)
            fill_demo(config, retriever)
            rows = run(retriever, f"127.0.0.1:{port}", options)
    finally:
        process.terminate()
        process.wait()
    print("| way | searches/s | p50 ms | p99 ms |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row.cells())} |")
    remote = statistics.median(rows[1].per_second)
    print()
    for others in (rows[2:5], rows[5:]):
        best = max(others, key=lambda row: statistics.median(row.per_second))
        print(f"{CLIENTS} clients reach {remote / statistics.median(best.per_second):.0%} of: {best.name}")


if __name__ == "__main__":
    main()
