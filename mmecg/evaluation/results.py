"""Rows of an evaluation, and the files that hold them.

``metrics.json`` is one flat object: row name to

===================  ================================================================================================
``value``            the point estimate; ``null`` if the row could not be computed
``low``, ``high``    patient-clustered 95 % bootstrap interval; ``null`` where there is none
``n``                records that the figure rests on (queries, for retrieval rows)
``baselines``        baseline name to point estimate: always ``random_encoder`` and ``prevalence`` if there is a value
``reason``           only beside a ``null`` value: why it could not be computed
``contamination``    what the bundle and its ECG tower saw of the data set in training, if they saw any
others               documented in ``mmecg/evaluation/README.md``: number of labels, both macro means, supervision, …
===================  ================================================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

REQUIRED_ROWS: tuple[str, ...] = (
    "linear_probe/superclass",
    "linear_probe/all",
    "zero_shot/superclass",
    "zero_shot/all",
    "knn50/superclass",
    "knn50/all",
    "ecg_to_ecg/precision_at_10",
    "ecg_to_ecg/ndcg_at_10",
    "ecg_to_report/recall_at_10",
    "report_to_ecg/recall_at_10",
    "lead_subset/I",
    "lead_subset/limb",
    "vitals_gain/knn50_superclass",
)
"""Rows that every ``metrics.json`` has, computed or with the reason why not."""


@dataclass(frozen=True)
class Row:
    """One figure with its interval and baselines.

    Attributes
    ----------
    key : str
        Row name, such as ``"zero_shot/all"``.
    value, low, high : float
        NaN where there is none.
    n : int
    baselines : mapping of str to float
    extra : mapping of str to JSON value
    """

    key: str
    value: float
    low: float
    high: float
    n: int
    baselines: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def missing(cls, key: str, reason: str) -> Row:
        """Return the row of a figure that cannot be computed, with the reason."""
        return cls(key, math.nan, math.nan, math.nan, 0, {}, {"reason": reason})

    def to_json(self) -> dict[str, Any]:
        """Return the row's value in ``metrics.json``; NaN becomes null."""
        known = {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "baselines": self.baselines}
        clean: dict[str, Any] = _without_nan({**known, **self.extra})
        return clean


@dataclass(frozen=True)
class Evaluation:
    """What one run found.

    Attributes
    ----------
    rows : tuple of Row
    per_label : polars.DataFrame
        One line a protocol, task and label: ``protocol, task, label, positives, auroc, low, high, auprc,
        random_encoder``.
    run : mapping of str to JSON value
        What was run: fold, training folds, fingerprint, counts, skipped records, settings.
    """

    rows: tuple[Row, ...]
    per_label: pl.DataFrame
    run: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """True if every row has a value and every record could be read."""
        return all(math.isfinite(row.value) for row in self.rows) and not self.run["skipped"]

    def metrics(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {row.key: row.to_json() for row in self.rows}


def with_contamination(rows: Sequence[Row], sentence: str) -> list[Row]:
    """Return rows that say what the encoder saw of their data; see :meth:`mmecg.bundle.Bundle.contamination`."""
    if not sentence:
        return list(rows)
    return [replace(row, extra={**row.extra, "contamination": sentence}) for row in rows]


def save_evaluation(evaluation: Evaluation, folder: Path, *, render: Callable[[Evaluation], str] | None = None) -> None:
    """Write ``metrics.json``, ``run.json``, ``per_label.parquet``, ``per_label.csv`` and ``report.md``.

    Parameters
    ----------
    evaluation : Evaluation
    folder : Path
        Created if missing. Each file is written whole or not at all.
    render : callable, optional
        Makes ``report.md``; default :func:`render_report`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "run.json", json.dumps(_without_nan(dict(evaluation.run)), indent=2, ensure_ascii=False) + "\n")
    evaluation.per_label.write_parquet(folder / "per_label.parquet")
    evaluation.per_label.write_csv(folder / "per_label.csv", float_precision=5)
    _write(folder / "report.md", (render or render_report)(evaluation))
    _write(folder / "metrics.json", json.dumps(evaluation.metrics(), indent=2, ensure_ascii=False) + "\n")


def render_report(evaluation: Evaluation) -> str:
    """Return the evaluation as a Markdown page."""
    run = evaluation.run
    lines = [
        f"# Evaluation on fold {run['fold']}",
        "",
        f"Bundle `{str(run['fingerprint'])[:12]}`, trained on folds {run['bundle_training_folds']}; probes and "
        f"neighbours from folds {run['fit_folds']} ({run['fit_records']} records); {run['test_records']} test records "
        f"of {run['test_subjects']} patients. Intervals: 95 %, {run['resamples']} patient-clustered resamples.",
        "",
        *(f"**Note:** {note}\n" for note in run["notes"]),
        "| row | value | 95 % interval | n | random encoder | prevalence |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in table_cells(evaluation.rows)]
    return "\n".join(lines) + "\n"


def table_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return row name, value, interval, n and the two baselines as text, one tuple a row."""
    return [
        (
            row.key,
            _number(row.value) if math.isfinite(row.value) else f"– ({row.extra.get('reason', 'undefined')})",
            f"{_number(row.low)} – {_number(row.high)}" if math.isfinite(row.low) else "–",
            str(row.n),
            _number(row.baselines.get("random_encoder", math.nan)),
            _number(row.baselines.get("prevalence", math.nan)),
        )
        for row in rows
    ]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
