"""The demo: build a corpus of real studies, serve it, ask it over gRPC, print and draw the answers.

Everything is real: the command line builds the corpus, the server runs as a process of its own, and the questions go
through :class:`mmecg.client.Client`.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmecg.assets import DEMO_CORPUS
from mmecg.cli import main as mmecg
from mmecg.cli.output import describe_vitals, note, print_hits
from mmecg.cli.prediction_output import print_prediction
from mmecg.client import Client
from mmecg.datasets.parquet import read_studies
from mmecg.search import Filter
from mmecg.study import Study
from mmecg.vitals import Vitals

ROOT = Path(__file__).parents[1]
STARTUP_S = 300
STOP_S = 120
CALLS = 30


def main() -> int:
    """Run the demo; return 0 if every question was answered and the server stopped cleanly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, default=ROOT / "out" / "demo.png", help="PNG to draw (out/demo.png)")
    args = parser.parse_args()
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmecg-demo-") as folder:
        corpus = Path(folder) / "corpus"
        note("1. build the corpus from the studies that ship with mmecg (PTB-XL, CC BY 4.0)")
        if code := mmecg(["build", "--data", str(DEMO_CORPUS), "--out", str(corpus)]):
            return code
        note("2. start the server on a free port")
        with running_server(corpus, Path(folder) / "server.log") as port, Client(f"127.0.0.1:{port}") as client:
            info = client.info()
            note(f"   127.0.0.1:{port}, mmecg {info.version}, bundle {info.fingerprint[:12]}, {info.intended_use}")
            ask(client, port, args.plot)
        note("4. the server drained and stopped")
    note(f"picture: {args.plot}")
    return 0


def ask(client: Client, port: int, picture: Path) -> None:
    """Ask every kind of question, by the client and by the command line."""
    query = next(study for study in read_studies(DEMO_CORPUS) if "AFIB" in study.labels and study.report)
    note(f"3. ask, with the ECG of study {query.study_id} as the query ({describe_vitals(query.vitals)})")
    by_ecg = {"ecg": query.ecg, "subject_id": query.subject_id, "top_k": 5}
    print_hits(client.search(**by_ecg), title="ECG -> ECG: the most similar recordings of other patients")
    print_hits(client.search(**by_ecg, target="text"), title="ECG -> report: the reports that fit it best")
    for text in ("atrial fibrillation", "complete left bundle branch block", "akuter vorderwandinfarkt"):
        print_hits(client.search(text=text, top_k=5), title=f"text -> ECG: “{text}”")
    women = Filter(sex="female", age_min_years=60)
    mixed = client.search(
        ecg=query.ecg, text="left bundle branch block", weights={"ecg": 1, "text": 0.5}, where=women, top_k=5
    )
    print_hits(mixed, title="ECG + 0.5 x “left bundle branch block”, among women from 60 years on")
    vitals = Vitals(age_years=25, sex="male")
    print_hits(client.search(vitals=vitals, top_k=3), title=f"vitals -> ECG: {describe_vitals(vitals)}")
    print_labels(client, query)
    predict_with_history(client)
    median_ms = 1e3 * statistics.median(seconds(client, query) for _ in range(CALLS))
    note(f"one ECG search over gRPC took {median_ms:.1f} ms (median of {CALLS}, one client)")
    note("the same from the command line, drawn on ECG paper")
    server = ["--server", f"127.0.0.1:{port}"]
    if code := mmecg(["search", *server, "--study-id", query.study_id, "--top-k", "3", "--plot", str(picture)]):
        raise SystemExit(code)


def print_labels(client: Client, study: Study) -> None:
    """Mine the report of a study of the corpus, and print each finding with its words."""
    note(f"report -> labels: what the report of study {study.study_id} says, and in which words")
    report = study.report.raw if study.report else ""
    for said in client.mine_labels(study_id=study.study_id).assertions:
        probability = "" if said.probability is None else f"{said.probability:.2f}"
        print(f" {said.finding:<27} {said.status:<16} {probability:<5} “{report[said.start : said.end]}”")


def predict_with_history(client: Client) -> None:
    """Predict the last study of the patient who has the most, from its ECG and the patient's earlier studies."""
    by_subject: dict[str, list[Study]] = {}
    for study in read_studies(DEMO_CORPUS, with_signal=False):
        by_subject.setdefault(study.subject_id, []).append(study)
    studies = sorted(max(by_subject.values(), key=len), key=lambda study: (study.acquired_at, study.study_id))
    last = studies[-1]
    note(f"prediction: study {last.study_id}, from its ECG and the {len(studies) - 1} earlier studies of the patient")
    print_prediction(client.predict(study_id=last.study_id), [], everything=False)
    note(f"the study's own codes, which were not used: {', '.join(sorted(last.labels))}")


def seconds(client: Client, query: Study) -> float:
    """Return how long one search takes."""
    start = time.perf_counter()
    result = client.search(ecg=query.ecg, top_k=10, with_studies=False)
    if len(result.hits) != 10:
        raise SystemExit(f"demo: got {len(result.hits)} hits, expected 10")
    return time.perf_counter() - start


@contextmanager
def running_server(corpus: Path, log: Path) -> Iterator[int]:
    """Run ``mmecg serve`` in a process of its own; yield its port, and stop it with SIGTERM at the end."""
    command = [sys.executable, "-m", "mmecg", "serve", "--corpus", str(corpus), "--port", "0"]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            yield wait_for_port(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code: int | str = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = f"none within {STOP_S} s of SIGTERM"
    if code:
        raise SystemExit(f"demo: the server's exit code was {code}:\n{log.read_text()}")


def wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that the server's log names once it serves."""
    end = time.monotonic() + STARTUP_S
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if entry.get("event") == "serving":
                return int(entry["port"])
        time.sleep(0.1)
    raise SystemExit(f"demo: the server did not start:\n{log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
