"""The files of a label evaluation; rows and ``metrics.json`` as in :mod:`mmecg.evaluation.results`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mmecg.evaluation.results import Evaluation, Row, save_evaluation

COLUMNS: tuple[str, ...] = ("row", "value", "95 % interval", "n", "baselines")


def save_label_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``metrics.json``, ``run.json``, ``per_label.parquet``, ``per_label.csv`` and ``report.md``."""
    save_evaluation(evaluation, folder, render=render_label_report)


def render_label_report(evaluation: Evaluation) -> str:
    """Return the evaluation as a Markdown page."""
    run = evaluation.run
    languages = ", ".join(f"{name} {count}" for name, count in run["languages"].items())
    lines = [
        f"# Label mining on fold {run['fold']}",
        "",
        f"Weights fitted on folds {run['weights_fitted_on']}; {run['test_records']} records of {run['test_subjects']} "
        f"patients (language of the report: {languages}). Intervals: 95 %, {run['resamples']} patient-clustered "
        "resamples.",
        "",
        *(f"**Note:** {note}\n" for note in run["notes"]),
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(cells) + " |" for cells in label_cells(evaluation.rows)),
        "",
        "| system | label | positives | decided | precision | recall | F1 | F1 of a naive mention |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in evaluation.per_label.iter_rows():
        cells = ("–" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Implications of the vocabulary on this fold: {run['implications']['summary']}"]
    return "\n".join(lines) + "\n"


def label_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return row name, value, interval, n and baselines as text, one tuple a row."""
    return [
        (
            row.key,
            f"{row.value:.4f}" if math.isfinite(row.value) else f"– ({row.extra.get('reason', 'undefined')})",
            f"{row.low:.4f} – {row.high:.4f}" if math.isfinite(row.low) else "–",
            str(row.n),
            ", ".join(f"{name} {value:.3f}" for name, value in row.baselines.items()),
        )
        for row in rows
    ]
