"""The server under load that does not wait for it: overload, search during ingest, and a soak.

    python benchmarks/bench_load.py overload [--seconds 60]
    python benchmarks/bench_load.py ingest   [--seconds 60]
    python benchmarks/bench_load.py soak     [--seconds 1800]

The server runs in a process of its own on the bundled model and the demo corpus; the calls of one client start at
moments fixed in advance (`open_loop.py`). `overload` finds the capacity with callers that wait, then asks for three
times as much; the CPU that client and server take is shown, because they share the machine. `ingest` asks for searches
alone, then while studies are stored at half of the speed at which they can be. `soak` mixes search, read, store,
delete, mining and prediction at about half of the capacity and fits a line to the server's resident memory. Beside each
figure stands its peer: the same server idle, or one that is not overloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import polars as pl
from mmecg_pb.v1 import corpus_service_pb2, label_mining_service_pb2, prediction_service_pb2
from open_loop import Answer, ServerProcess, codes, percentiles, run, serving

from mmecg.client.messages import render_study
from mmecg.client.requests import search_request
from mmecg.ecg import Ecg
from mmecg.report import Report
from mmecg.retriever import Query
from mmecg.study import Study
from mmecg.vitals import Vitals

DISTINCT = 32
CLIENTS = 16
SAMPLE_S = 5.0
CONFIG = "[limits]\nmax_streams = 8\n"


def build_ecg(number: int, rate: float = 100.0) -> Ecg:
    """Return a noise recording of 10 s; the time of a call does not depend on what it shows."""
    random = np.random.default_rng(number)
    return Ecg.from_array(np.round(random.standard_normal((12, round(10 * rate))) * 300) / 1000, sampling_rate_hz=rate)


def build_study(number: int) -> Study:
    """Return a study with ECG, report and vitals."""
    return Study(
        study_id=f"load-{number}",
        subject_id=f"load-subject-{number % 500}",
        ecg=build_ecg(number % DISTINCT),
        report=Report.from_text(f"sinus rhythm. left axis deviation. tracing {number}"),
        vitals=Vitals(age_years=40 + number % 40, sex="female"),
    )


class Calls:
    """The calls of a client, with their messages made in advance.

    Parameters
    ----------
    channel : grpc.aio.Channel
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._searches = [
            search_request(Query(ecg=build_ecg(number)), {"top_k": 10}).SerializeToString()
            for number in range(DISTINCT)
        ]
        self._studies = [render_study(build_study(number)) for number in range(DISTINCT)]
        self._predictions = [
            prediction_service_pb2.PredictRequest(ecg=message.ecg, subject_id=message.subject_id).SerializeToString()
            for message in self._studies
        ]
        mine = label_mining_service_pb2.MineLabelsRequest
        self._reports = [mine(text=message.report.raw).SerializeToString() for message in self._studies]

    def search(self, number: int) -> Awaitable[Any]:
        """Search by ECG."""
        return self._unary("SearchService/Search", self._searches[number % DISTINCT])

    def read(self, number: int) -> Awaitable[Any]:
        """List the first studies."""
        return self._unary("CorpusService/ListStudies", corpus_service_pb2.ListStudiesRequest(page_size=10))

    def mine(self, number: int) -> Awaitable[Any]:
        """Mine a report."""
        return self._unary("LabelMiningService/MineLabels", self._reports[number % DISTINCT])

    def predict(self, number: int) -> Awaitable[Any]:
        """Predict an ECG."""
        return self._unary("PredictionService/Predict", self._predictions[number % DISTINCT])

    async def replace(self, number: int) -> None:
        """Store a study and delete the one stored a hundred calls ago, so that the corpus keeps its size."""
        await self.store([number])
        if number >= 100:
            gone = corpus_service_pb2.DeleteStudyRequest(study_id=f"load-{number - 100}")
            await self._unary("CorpusService/DeleteStudy", gone)

    async def store(self, numbers: list[int], *, per_second: float = float("inf")) -> int:
        """Store studies over one stream, no faster than asked; return how many were acknowledged."""
        method = self._channel.stream_stream(
            "/mmecg.v1.CorpusService/UpsertStudies",
            request_serializer=corpus_service_pb2.UpsertStudiesRequest.SerializeToString,
            response_deserializer=corpus_service_pb2.UpsertStudiesResponse.FromString,
        )
        started = time.perf_counter()

        async def requests() -> AsyncIterator[corpus_service_pb2.UpsertStudiesRequest]:
            for place, number in enumerate(numbers):
                await asyncio.sleep(max(0.0, started + place / per_second - time.perf_counter()))
                message = self._studies[number % DISTINCT]
                message.study_id, message.subject_id = f"load-{number}", f"load-subject-{number % 500}"
                yield corpus_service_pb2.UpsertStudiesRequest(study=message)

        return sum([response.WhichOneof("result") == "sequence" async for response in method(requests())])

    async def _unary(self, method: str, request: Any) -> bytes:
        content = request if isinstance(request, bytes) else request.SerializeToString()
        answer: bytes = await self._channel.unary_unary(f"/mmecg.v1.{method}")(content, timeout=60)
        return answer


async def capacity(call: Callable[[int], Awaitable[Any]], seconds: float) -> float:
    """Return the calls a second that callers get answered who wait for each answer."""
    deadline, answered = time.perf_counter() + seconds, 0

    async def caller(first: int) -> None:
        nonlocal answered
        number = first
        while time.perf_counter() < deadline:
            await call(number)
            number, answered = number + CLIENTS, answered + 1

    await asyncio.gather(*(caller(first) for first in range(CLIENTS)))
    return answered / seconds


async def overload(calls: Calls, seconds: float, server: ServerProcess) -> pl.DataFrame:
    """Ask for half of the capacity, for three times the capacity, and for half again."""
    await capacity(calls.search, 3)
    able = await capacity(calls.search, min(10, seconds))
    print(f"capacity with {CLIENTS} callers that wait: {able:.0f} searches/s")
    rows = []
    for name, share in (("0.5 x", 0.5), ("3 x", 3.0), ("0.5 x, at once after", 0.5)):
        length = seconds if share > 1 else min(seconds, 15)
        used, own = server.cpu_s(), time.process_time()
        answers = await run({"search": (share * able, calls.search)}, length, seed=1)
        used, own = server.cpu_s() - used, time.process_time() - own
        good = [answer for answer in answers if answer.code == "OK"]
        lasted = max(length, *(answer.ended for answer in answers))
        goodput = len(good) / max(length, *(answer.ended for answer in good))
        refusals = [
            value for sent in (True, False) for value in percentiles(answers, code="RESOURCE_EXHAUSTED", sent=sent)[:2]
        ]
        late = float(np.percentile([1000 * (answer.started - answer.due) for answer in answers], 99))
        row = (name, len(answers) / length, goodput, goodput / able, *percentiles(good)[:2], *refusals)
        rows.append((*row, _recovered(answers), late, used / lasted, own / lasted))
        print(f"{name}: {codes(answers)}")
    columns = ["asked", "calls/s", "goodput/s", "of capacity", "p50 ms", "p99 ms", "refusal p50 ms", "refusal p99 ms"]
    columns += ["since due p50", "since due p99", "last refusal at s", "sent late p99 ms", "server CPUs", "client CPUs"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _recovered(answers: list[Answer]) -> float:
    """Return when the last call was due that was not answered well."""
    return max((answer.due for answer in answers if answer.code != "OK"), default=0.0)


async def ingest(calls: Calls, seconds: float, _: ServerProcess) -> pl.DataFrame:
    """Search at a fixed rate, alone and while studies are stored at half of the speed at which they can be."""
    able = await capacity(calls.search, 5)
    count = 512
    started = time.perf_counter()
    await calls.store(list(range(count)))
    speed = count / (time.perf_counter() - started)
    rows = []
    for name, share in (("idle", 0.0), ("ingest at half speed", 0.5), ("idle again", 0.0)):
        numbers = list(range(1000, 1000 + round(share * speed * seconds)))
        storing = asyncio.ensure_future(calls.store(numbers, per_second=share * speed)) if numbers else None
        answers = await run({"search": (0.2 * able, calls.search)}, seconds, seed=2)
        stored = await storing if storing else 0
        rows.append((name, stored / seconds, len(answers) / seconds, *percentiles(answers), str(codes(answers))))
    print(f"capacity: {able:.0f} searches/s; one stream stores {speed:.0f} studies/s with embedding")
    columns = ["", "stored/s", "searches/s", "p50 ms", "p99 ms", "longest ms", "codes"]
    return pl.DataFrame(rows, schema=columns, orient="row")


async def soak(calls: Calls, seconds: float, server: ServerProcess) -> pl.DataFrame:
    """Mix everything at about half of the capacity; fit a line to the resident memory of the second half."""
    able = await capacity(calls.search, 5)
    mix = {
        "search": (0.15 * able, calls.search),
        "predict": (0.05 * able, calls.predict),
        "replace": (0.03 * able, calls.replace),
        "mine": (0.05 * able, calls.mine),
        "read": (0.05 * able, calls.read),
    }
    samples: list[tuple[float, int, int]] = []
    begin = time.perf_counter()

    async def watch() -> None:
        while True:
            samples.append((time.perf_counter() - begin, server.resident_bytes(), server.open_files()))
            await asyncio.sleep(min(SAMPLE_S, seconds / 50))

    watching = asyncio.ensure_future(watch())
    answers = await run(mix, seconds, seed=3)
    watching.cancel()
    moments, resident, files = (np.array(column, float) for column in zip(*samples, strict=True))
    late = moments > seconds / 2
    slope, low, high = memory_slope(moments[late], resident[late])
    hourly = [f"{3600 * value / 2**20:+.1f}" for value in (slope, low, high)]
    print(
        f"resident memory, second half: {resident[late].mean() / 2**20:.0f} MiB, slope {hourly[0]} MiB/h "
        f"({hourly[1]} to {hourly[2]}); file handles {int(files[late].min())} to "
        f"{int(files[late].max())}"
    )
    rows = [
        (kind, rate, *percentiles(chosen := [one for one in answers if one.kind == kind]), str(codes(chosen)))
        for kind, (rate, _) in mix.items()
    ]
    return pl.DataFrame(rows, schema=["call", "asked/s", "p50 ms", "p99 ms", "longest ms", "codes"], orient="row")


def memory_slope(
    moments: np.ndarray[Any, Any], resident: np.ndarray[Any, Any], blocks: int = 10
) -> tuple[float, float, float]:
    """Return bytes a second by least squares, and its 95 % interval from a bootstrap of the residuals' blocks.

    Memory of one moment is much like that of the next; whole blocks of time are drawn, so that the interval says so.
    """
    line = np.polyfit(moments, resident, 1)
    parts = np.array_split(resident - np.polyval(line, moments), blocks)
    random, slopes = np.random.default_rng(0), []
    for _ in range(1000):
        noise = np.concatenate([parts[chosen] for chosen in random.integers(0, blocks, blocks + 1)])[: len(moments)]
        slopes.append(np.polyfit(moments[: len(noise)], np.polyval(line, moments[: len(noise)]) + noise, 1)[0])
    low, high = np.percentile(slopes, (2.5, 97.5))
    return float(line[0]), float(low), float(high)


async def measure(options: argparse.Namespace) -> pl.DataFrame:
    """Start the server and run what was asked for."""
    what = {"overload": overload, "ingest": ingest, "soak": soak}[options.what]
    async with serving(CONFIG) as server, grpc.aio.insecure_channel(server.address) as channel:
        calls = Calls(channel)
        await calls.search(0)
        return await what(calls, options.seconds, server)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overload", "ingest", "soak"))
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    table = asyncio.run(measure(options))
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=180, float_precision=2, tbl_hide_dataframe_shape=True):
        print(table)


if __name__ == "__main__":
    main()
