"""Predict over gRPC for subjects with few and many earlier studies, beside the Predictor in process and beside Search.

One caller, one call after the other, a server process of its own, all of them on the same corpus: studies of other
subjects with codes and embeddings, and subjects with 0, 10 and 10,000 earlier studies, a third each known by codes, by
a report, and by the ECG alone. Every call has another recording, and another subject where there are many.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from bench_service import start_server
from mmecg_index.corpus import Corpus
from mmecg_server.__main__ import open_bundle, open_predictor
from mmecg_server.config import ServerConfig

from mmecg.client import Client
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.embedding import Encoder, normalise
from mmecg.labels.report_miner import ReportMiner
from mmecg.prediction.predictor import Predictor
from mmecg.report import Report
from mmecg.study import Study

NOW = datetime(2024, 5, 1)
DISTINCT = 64
SUBJECTS = {0: 1, 10: DISTINCT, 10_000: 1}
"""Earlier studies to how many subjects have so many."""

CODES = ("NORM", "AFIB", "IMI", "LVH", "CLBBB", "NDT", "PVC", "CRBBB")
REPORTS = (
    "sinus rhythm. normal ecg.",
    "atrial fibrillation with rapid ventricular response. left bundle branch block.",
    "sinusrhythmus, lagetyp links, inferiorer infarkt möglich, sonst normales ekg.",
)


@dataclass
class Row:
    """Latencies of one way of calling, and the CPU time that all processes took for it."""

    name: str
    latencies_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def cells(self) -> str:
        """Return p50 and p95, and CPU time a call."""
        p50, p95 = np.percentile(self.latencies_ms, (50, 95))
        return f"{p50:.1f} / {p95:.1f} ({1000 * self.cpu_s / len(self.latencies_ms):.1f})"


def subject_of(earlier: int, number: int) -> str:
    """Return the subject of a call."""
    return f"subject-{earlier}-{number % SUBJECTS[earlier]}"


def build_studies(others: int) -> Iterator[Study]:
    """Yield the studies of the corpus, without their signals: predictions read stored embeddings only."""
    for number in range(others):
        yield build_study(f"other-{number}", 0, number)
    for earlier, subjects in SUBJECTS.items():
        for subject in range(subjects):
            yield from (build_study(subject_of(earlier, subject), 1 + age, age % 3) for age in range(earlier))


def build_study(subject: str, days: int, kind: int) -> Study:
    """Return a study of some days ago, of which codes (kind 0), report (1) or ECG (2) are known; others have codes."""
    coded = days == 0 or kind == 0
    return Study(
        study_id=f"{subject}/{days}",
        subject_id=subject,
        acquired_at=NOW - timedelta(days=days),
        labels={CODES[(kind + days) % len(CODES)]: 100.0} if coded else {},
        report=Report.from_text(REPORTS[days % len(REPORTS)]) if kind == 1 else None,
    )


def build_corpus(path: Path, encoder: Encoder, others: int) -> None:
    """Store the studies with embeddings that scatter around those of some recordings."""
    rng = np.random.default_rng(0)
    centres = encoder.encode_ecg([synthetic_ecg(seed=seed) for seed in range(DISTINCT)])
    studies = list(build_studies(others))
    scatter = rng.standard_normal((len(studies), centres.shape[1])) * 0.03
    vectors = normalise(centres[rng.integers(0, DISTINCT, len(studies))] + scatter)
    with Corpus.create(path, encoder.fingerprint) as corpus:
        for start in range(0, len(studies), 5000):
            part = slice(start, start + 5000)
            corpus.upsert(studies[part], [{"ecg": vector} for vector in vectors[part]])


def cpu_s(pid: int) -> float:
    """Return the CPU time of this process and of another one (0 for the other where there is no /proc)."""
    own, stat = time.process_time(), Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return own
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return own + (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(row: Row, call: Callable[[int], object], calls: int, offset: int, pid: int) -> None:
    """Call some times, one after the other."""
    before = cpu_s(pid)
    for number in range(offset, offset + calls):
        started = time.perf_counter()
        call(number)
        row.latencies_ms.append(1000 * (time.perf_counter() - started))
    row.cpu_s += cpu_s(pid) - before


def ways(client: Client, local: Predictor, ecgs: list[Ecg]) -> dict[str, Callable[[int], object]]:
    """Return what is measured, by name."""

    def predict(place: Client | Predictor, earlier: int) -> Callable[[int], object]:
        def call(number: int) -> None:
            ecg = ecgs[number % DISTINCT]
            found = place.predict(ecg, subject_id=subject_of(earlier, number), as_of=NOW).history_found
            assert found == earlier, f"{found} earlier studies were found, expected {earlier}"

        return call

    def search(number: int) -> object:
        return client.search(ecg=ecgs[number % DISTINCT], top_k=10)

    found = {f"Predict, {earlier:,} earlier studies": predict(client, earlier) for earlier in SUBJECTS}
    found["Predictor in process, 10 earlier studies"] = predict(local, 10)
    found["Search, 10 hits"] = search
    return found


@contextmanager
def serving(bundle: Path | None, corpus: Path) -> Iterator[tuple[Client, int]]:
    """Run a server on a corpus; yield a client and the server's process id."""
    process, port = start_server("--corpus", str(corpus), *(["--bundle", str(bundle)] if bundle else []))
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description="Predict over gRPC beside the Predictor in process, and beside Search."
    )
    parser.add_argument("--calls", type=int, default=100, help="calls of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--others", type=int, default=20_000, help="studies of other subjects in the corpus")
    parser.add_argument("--bundle", type=Path, help="bundle with prediction heads; default the one that ships")
    options = parser.parse_args()
    config = ServerConfig(bundle=options.bundle)
    bundle, rates = open_bundle(config), (100.0, 500.0)
    table: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        build_corpus(here, bundle.encoder, options.others)
        shutil.copytree(here, there)  # a corpus is open in one process at a time
        with (
            Corpus.open(here, bundle.fingerprint) as corpus,
            serving(options.bundle, there) as (client, pid),
        ):
            local = open_predictor(bundle, corpus, ReportMiner())
            if local is None:
                raise SystemExit("the bundle has no prediction heads; give one that has, or run scripts/train-heads")
            for rate in rates:
                ecgs = [synthetic_ecg(sampling_rate_hz=rate, seed=seed) for seed in range(1000, 1000 + DISTINCT)]
                calls = ways(client, local, ecgs)
                rows = {name: Row(name) for name in calls}
                for name, call in calls.items():
                    measure(Row(f"{name}, warm-up"), call, 20, 0, pid)
                for turn in range(options.rounds):
                    for name, call in calls.items():
                        measure(rows[name], call, options.calls, turn * options.calls, pid)
                for name, row in rows.items():
                    table.setdefault(name, []).append(row.cells())
    print("| one caller: ms p50 / p95 (CPU ms) | 100 Hz | 500 Hz |\n|---|---|---|")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"load average of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
