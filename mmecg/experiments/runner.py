"""Running an experiment, and the files it leaves.

``metrics.json`` is one flat object of rows, as :mod:`mmecg.evaluation.results` defines them: ``value``, ``low``,
``high``, ``n`` and ``baselines`` (``random_encoder``, ``prevalence``). ``run.json`` says what was run, with seed, time
and peak of memory; ``report.md`` is the table; ``row.md`` the line of ``docs/experiments.md``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmecg.evaluation.results import Row, table_cells
from mmecg.experiments.bench import DATA, Bench, open_bench
from mmecg.experiments.catalogue import experiment
from mmecg.experiments.experiment import Experiment, Options, Outcome, Progress
from mmecg.experiments.memory import peak_memory_mb

COLUMNS = ("row", "value", "95 % interval", "n", "random encoder", "prevalence")


@dataclass(frozen=True)
class Finished:
    """An experiment that was run.

    Attributes
    ----------
    experiment : Experiment
    outcome : Outcome
    run : mapping of str to JSON value
    """

    experiment: Experiment
    outcome: Outcome
    run: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """True if every row has a value and every recording could be read."""
        return all(math.isfinite(row.value) for row in self.outcome.rows) and not self.run["skipped"]

    def metrics(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {row.key: row.to_json() for row in self.outcome.rows}


def run_experiment(name: str, options: Options, progress: Progress) -> Finished:
    """Run an experiment.

    Parameters
    ----------
    name : str
    options : Options
    progress : callable

    Raises
    ------
    InvalidInputError
        There is no such experiment, or the data, fold or encoders do not fit it.
    BundleError
        An encoder cannot be loaded.
    """
    found = experiment(name)
    began, worked = time.perf_counter(), _cpu_s()
    bench = open_bench(options, progress)
    outcome = found.run(bench)
    spent = {
        "minutes": (time.perf_counter() - began) / 60,
        "cpu_minutes": (_cpu_s() - worked) / 60,
        "peak_memory_mb": peak_memory_mb(),
    }
    return Finished(found, outcome, {**_described(name, bench), **spent, "notes": list(outcome.notes)})


def save(finished: Finished, folder: Path) -> None:
    """Write ``metrics.json``, ``run.json``, ``report.md``, ``row.md``, tables (Parquet, CSV) and pictures.

    Parameters
    ----------
    finished : Finished
    folder : Path
        Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = finished.outcome
    for name, table in outcome.tables.items():
        table.write_parquet(folder / f"{name}.parquet")
        table.write_csv(folder / f"{name}.csv", float_precision=5)
    for name, picture in outcome.pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=100)
    texts = {
        "run.json": json.dumps(finished.run, indent=2, ensure_ascii=False) + "\n",
        "report.md": render_report(finished),
        "row.md": render_row(finished) + "\n",
        "metrics.json": json.dumps(finished.metrics(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        partial = folder / f"{name}.partial"
        partial.write_text(text, "utf-8")
        partial.replace(folder / name)


def render_report(finished: Finished) -> str:
    """Return question, protocol, table and sentence as Markdown."""
    run, outcome, found = finished.run, finished.outcome, finished.experiment
    lines = [
        f"# {found.name}",
        "",
        f"**Asked.** {found.asked}",
        "",
        f"**Protocol.** {found.protocol}",
        "",
        f"**Found.** {outcome.sentence}",
        "",
        f"Fitted on {run['fit_recordings']} recordings, chosen on {run['choose_recordings']}, {run['test_recordings']} "
        f"reported ({run['test_subjects']} patients of fold {run['fold']}). {run['resamples']} patient-clustered "
        f"resamples, seed {run['seed']}. {run['supervision']} {run['cpu_minutes']:.1f} CPU minutes, "
        f"{run['peak_memory_mb']:.0f} MB.",
        "",
        *(f"**Note:** {note}\n" for note in run["notes"]),
        *_table(COLUMNS, table_cells(outcome.rows)),
    ]
    return "\n".join(lines) + "\n"


def render_row(finished: Finished) -> str:
    """Return the experiment as one row of Markdown: name, command, figures, baselines, cost, sentence."""
    rows = {row.key: row for row in finished.outcome.rows}
    figures = "<br>".join(_cell(rows[key]) for key in finished.outcome.headline)
    run = finished.run
    command = f"`mmecg experiment {finished.experiment.name} {run['arguments']}`"
    cost = f"{run['cpu_minutes']:.1f} min, {run['peak_memory_mb'] / 1000:.1f} GB"
    return f"| {finished.experiment.name} | {command} | {figures} | {finished.outcome.sentence} | {cost} |"


def _cell(row: Row) -> str:
    _, value, bounds, _, random, prevalence = table_cells([row])[0]
    return f"{row.key}: {value} ({bounds}); random {random}, prevalence {prevalence}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _cpu_s() -> float:
    """Return the CPU time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _described(name: str, bench: Bench) -> dict[str, Any]:
    options, split, recordings = bench.options, bench.split, bench.recordings
    given = "".join(f" --encoder {source.name}" for source in options.encoders)
    share = f" --fraction {options.fraction:g}" if options.fraction < 1 else ""
    return {
        "experiment": name,
        "arguments": f"--data ptb-xl/ --fold {options.fold}{given}{share} --out OUT",
        "data": DATA,
        "fold": options.fold,
        "fraction": options.fraction,
        "seed": options.seed,
        "resamples": options.resamples,
        "encoders": {key: encoder.fingerprint for key, encoder in bench.encoders.items()},
        "supervision": bench.supervision,
        "fit_recordings": len(split.fit),
        "choose_recordings": len(split.choose),
        "test_recordings": len(split.test),
        "test_subjects": len(set(recordings.subjects[split.test].tolist())),
        "skipped": recordings.skipped.to_dicts(),
    }
