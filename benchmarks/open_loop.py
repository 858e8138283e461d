"""An open-loop load generator: calls start at moments fixed in advance, whether or not earlier ones were answered.

A closed loop (call, wait, call) stops asking while the server is slow, and so never sees how long others would have
waited ("coordinated omission"). Here a call's latency counts from the moment at which it was due. Where that differs
from the latency since it was sent, the generator was late: it is one thread, and needs CPU of its own.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

READY_S = 120.0
MAX_OPEN = 20_000
"""Calls that may be open at once; beyond, the generator itself is the bottleneck and says so."""


@dataclass(frozen=True)
class Answer:
    """What became of one call: seconds since the start of the run, and the name of the status code."""

    kind: str
    due: float
    started: float
    ended: float
    code: str

    @property
    def latency_ms(self) -> float:
        """From the moment at which the call was due."""
        return 1000 * (self.ended - self.due)

    @property
    def sent_latency_ms(self) -> float:
        """From the moment at which the call was sent."""
        return 1000 * (self.ended - self.started)


Call = Callable[[int], Awaitable[object]]
"""Makes the call of a number; raises ``grpc.RpcError`` if it is refused."""


async def run(calls: dict[str, tuple[float, Call]], seconds: float, *, seed: int) -> list[Answer]:
    """Make calls at random moments (Poisson) for some seconds; return what became of each once all are answered.

    Parameters
    ----------
    calls : dict of str to (calls a second, call)
    seconds : float
    seed : int
        Of the moments.
    """
    random = np.random.default_rng(seed)
    plan: list[tuple[float, str, int]] = []
    for kind, (rate, _) in calls.items():
        moments = np.cumsum(random.exponential(1 / rate, int(rate * seconds * 2) + 50)) if rate else np.zeros(0)
        plan.extend((float(moment), kind, number) for number, moment in enumerate(moments[moments < seconds]))
    answers: list[Answer] = []
    begin = time.perf_counter()

    async def make(due: float, kind: str, number: int) -> None:
        started, code = time.perf_counter() - begin, "OK"
        try:
            await calls[kind][1](number)
        except grpc.RpcError as error:
            code = error.code().name  # type: ignore[attr-defined]
        answers.append(Answer(kind, due, started, time.perf_counter() - begin, code))

    open_calls: set[asyncio.Task[None]] = set()
    for due, kind, number in sorted(plan):
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - begin)))
        if len(open_calls) >= MAX_OPEN:
            raise RuntimeError(f"{MAX_OPEN} calls are open; lower the rate")
        task = asyncio.ensure_future(make(due, kind, number))
        open_calls.add(task)
        task.add_done_callback(open_calls.discard)
    await asyncio.gather(*open_calls)
    return answers


def percentiles(answers: Sequence[Answer], *, code: str = "OK", sent: bool = False) -> tuple[float, float, float]:
    """Return p50, p99 and the longest latency in ms of the calls with a status; NaN if there are none.

    Parameters
    ----------
    answers : sequence of Answer
    code : str
    sent : bool
        Since the calls were sent, not since they were due.
    """
    latencies = [answer.sent_latency_ms if sent else answer.latency_ms for answer in answers if answer.code == code]
    if not latencies:
        return float("nan"), float("nan"), float("nan")
    return float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99)), max(latencies)


def codes(answers: Sequence[Answer]) -> dict[str, int]:
    """Return how many calls ended with each status."""
    return dict(collections.Counter(answer.code for answer in answers))


@dataclass
class ServerProcess:
    """A server in a process of its own, as an operator starts it.

    Attributes
    ----------
    address : str
    process : subprocess.Popen
    """

    address: str
    process: subprocess.Popen[bytes]

    def resident_bytes(self) -> int:
        """Return the memory that is resident now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        """Return how many file handles are open now."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def serving(config: str, *arguments: str) -> AsyncIterator[ServerProcess]:
    """Start a server on a free port, wait until it serves, and drain it at the end.

    Parameters
    ----------
    config : str
        TOML.
    *arguments
        Of ``python -m mmecg_server``.
    """
    with tempfile.TemporaryDirectory(prefix="bench-server-") as folder:
        path, log = Path(folder) / "server.toml", Path(folder) / "log"
        path.write_text(config, encoding="utf-8")
        with log.open("wb") as errors:
            command = [sys.executable, "-m", "mmecg_server", "--config", str(path), "--port", "0", *arguments]
            process = subprocess.Popen(command, stderr=errors)
        try:
            yield ServerProcess(await _address(process, log), process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"event": "serving"' in line:
                return "127.0.0.1:" + line.partition('"port": ')[2].partition(",")[0]
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
