"""Ingest over gRPC into a fresh, durable corpus: with the encoder, beside encoding alone; and with ready embeddings.

    python benchmarks/bench_ingest.py [--data PTB-XL] [--studies 3000] [--streams 1 2]

The server runs in a process of its own, and so does each client, one stream each; all in one run. The studies are those
of the demo corpus, or of a PTB-XL folder at 100 Hz (folds 1 to 7), repeated under new ids. Encoding alone is what the
server does to embed them (batches of 64, the threads that the server uses), in this process, while nothing else runs.
What is sent is all that the corpus says of a study: report, vitals, labels, attributes; with ready embeddings, one each
of text and vitals, and of the ECG where the signal (10 s, 12 leads) is sent, too. A study counts when it is
acknowledged, which is after its commit was synced.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from open_loop import serving

from mmecg.assets import DEFAULT_BUNDLE, DEMO_CORPUS
from mmecg.client import Client, EmbeddedStudy
from mmecg.datasets.parquet import read_studies
from mmecg.study import Study

BATCH = 64
FOLDS = range(1, 8)
Ready = Sequence[dict[str, np.ndarray[Any, Any]]]


def read(data: Path | None, most: int = 600) -> list[Study]:
    """Return real studies."""
    if data is None:
        return list(read_studies(DEMO_CORPUS))
    from mmecg.datasets.ptb_xl import read_ptb_xl

    return list(itertools.islice(read_ptb_xl(data, folds=FOLDS, sampling_rate_hz=100), most))


def repeated(studies: Sequence[Study], count: int, prefix: str, *, with_signal: bool) -> Iterator[tuple[int, Study]]:
    """Yield so many studies under ids of their own, each with the place of the one that it repeats."""
    for number in range(count):
        place = number % len(studies)
        study = replace(studies[place], study_id=f"{prefix}-{number}")
        yield place, study if with_signal else replace(study, ecg=None)


def encode_only(studies: Sequence[Study], count: int, threads: int) -> tuple[float, float, Ready, str]:
    """Return studies a second, CPU milliseconds a study, the embeddings, and the bundle's fingerprint."""
    import torch

    from mmecg.bundle import load_bundle
    from mmecg.ingester import embed_studies

    torch.set_num_threads(threads)
    encoder = load_bundle(DEFAULT_BUNDLE, precision="auto").encoder
    ready = [part for start in range(0, len(studies), BATCH) for part in _embed(embed_studies, encoder, studies, start)]
    copies = [study for _, study in repeated(studies, count, "encode", with_signal=True)]
    copies = [replace(study, ecg=study.ecg and study.ecg.select_leads(study.ecg.leads)) for study in copies]
    started, used = time.perf_counter(), time.process_time()
    for start in range(0, count, BATCH):
        _embed(embed_studies, encoder, copies, start)
    speed = count / (time.perf_counter() - started)
    return speed, 1000 * (time.process_time() - used) / count, [dict(part) for part in ready], encoder.fingerprint


def _embed(embed: Any, encoder: Any, studies: Sequence[Study], start: int) -> Any:
    batch = studies[start : start + BATCH]
    return embed(encoder, batch, [False] * len(batch))


def stream(address: str, items: Sequence[Study | EmbeddedStudy], ready: Barrier, answers: Any) -> None:
    """Send one stream from a process of its own; report how many were acknowledged, when, and for how much CPU."""
    with Client(address) as client:
        client.info()
        ready.wait()
        used, started = time.process_time(), time.time()
        stored = sum(outcome.error is None for outcome in client.upsert(items))
        answers.put((stored, started, time.time(), time.process_time() - used))


async def ingest(name: str, shares: Sequence[Sequence[Study | EmbeddedStudy]]) -> tuple[Any, ...]:
    """Return a row of the table: name, streams, studies a second, CPU ms a study of the server and of the clients."""
    fork = multiprocessing.get_context("fork")
    barrier, answers = fork.Barrier(len(shares)), fork.Queue()
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as folder:
        async with serving("", "--corpus", str(Path(folder) / "corpus")) as server:
            before = server.cpu_s()
            clients = [fork.Process(target=stream, args=(server.address, items, barrier, answers)) for items in shares]
            for client in clients:
                client.start()
            results = [await asyncio.to_thread(answers.get, True, 600) for _ in clients]
            used = server.cpu_s() - before
            for client in clients:
                client.join()
    stored = sum(result[0] for result in results)
    if stored != sum(map(len, shares)):
        raise RuntimeError(f"only {stored} studies were stored")
    seconds = max(result[2] for result in results) - min(result[1] for result in results)
    sent = sum(result[3] for result in results)
    return name, len(shares), stored / seconds, 1000 * used / stored, 1000 * sent / stored


def split(items: Sequence[Any], streams: int) -> list[Sequence[Any]]:
    """Return a share of the items for each stream."""
    return [items[number::streams] for number in range(streams)]


def measure(options: argparse.Namespace) -> tuple[str, pl.DataFrame]:
    """Return what encoding alone does, and a table of the streams."""
    studies = read(options.data)
    threads = max(1, (os.cpu_count() or 1) // 2)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:  # gRPC and forks: this process never loads the model
        alone, cost, ready, fingerprint = pool.apply(encode_only, (studies, options.studies, threads))
        again = 0.0 if options.once else pool.apply(encode_only, (studies, options.studies, threads))[0]
    alone = max(alone, again)
    rows = []
    for streams in options.streams:
        for name, count, with_signal, with_ready in (
            ("encoded by the server", options.studies, True, False),
            ("ready, with signal", options.studies, True, True),
            ("ready, without signal", 3 * options.studies, False, True),
        ):
            if name.startswith(options.only):
                items = [
                    EmbeddedStudy(study=study, embeddings=_fitting(study, ready[place]), fingerprint=fingerprint)
                    if with_ready
                    else study
                    for place, study in repeated(studies, count, name, with_signal=with_signal)
                ]
                row = asyncio.run(ingest(name, split(items, streams)))
                rows.append((*row, row[2] / alone))
    columns = ["ingest", "streams", "studies/s", "server CPU ms", "client CPU ms", "x encoding alone"]
    text = f"encoding alone, {threads} thread(s): {alone:.0f} studies/s, {cost:.2f} CPU ms a study"
    return text, pl.DataFrame(rows, schema=columns, orient="row")


def _fitting(study: Study, ready: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: vector for name, vector in ready.items() if name != "ecg" or study.ecg is not None}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="PTB-XL folder; without one, the demo corpus")
    parser.add_argument("--studies", type=int, default=3000, help="of each row; three times as many without signal")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="rows that begin so")
    parser.add_argument("--once", action="store_true", help="encode alone once, not twice")
    options = parser.parse_args()
    text, table = measure(options)
    print(f"{text}; load average {os.getloadavg()[0]:.1f}")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=120, float_precision=2, tbl_hide_dataframe_shape=True):
        print(table)


if __name__ == "__main__":
    main()
