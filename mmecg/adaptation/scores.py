"""Macro-AUROC and macro-AUPRC of several systems on the same labels, with intervals by patient, and their differences.

A label enters the mean of its group with at least :data:`~mmecg.evaluation.metrics.MIN_POSITIVES` known positives and a
known negative among the records evaluated; its figures rest on the records where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.adaptation.label_table import LabelTable
from mmecg.evaluation.bootstrap import bootstrap_auroc, interval, mean_of_labels, patient_weights
from mmecg.evaluation.metrics import MIN_POSITIVES, auprc, auroc
from mmecg.evaluation.results import Row

METRICS = ("auroc", "auprc")
CHANCE = 0.5


@dataclass(frozen=True)
class Score:
    """One figure of one system, or the difference of two.

    Attributes
    ----------
    group, system, metric : str
    value, low, high : float
    labels, n : int
        Labels in the mean, and records where one of them is known.
    less : str
        The system whose value was subtracted; empty for a figure of its own.
    """

    group: str
    system: str
    metric: str
    value: float
    low: float
    high: float
    labels: int
    n: int
    less: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """The figures of all systems.

    Attributes
    ----------
    scores : tuple of Score
        Systems in their order, the prevalence last; then the first system less each other one.
    per_label : polars.DataFrame
        ``group, label, positives, n``, and for each system ``<system>_auroc`` and ``<system>_auprc``.
    """

    scores: tuple[Score, ...]
    per_label: pl.DataFrame = field(repr=False)

    def value(self, group: str, system: str, metric: str = "auroc", *, less: str = "") -> Score:
        """Return one figure. Raises ``KeyError`` if it is not there."""
        for score in self.scores:
            if (score.group, score.system, score.metric, score.less) == (group, system, metric, less):
                return score
        raise KeyError(f"{group}/{system}/{metric}")

    def rows(self, protocol: str, **extra: Any) -> list[Row]:
        """Return rows for ``metrics.json``: ``<protocol>/<group>/<metric>`` of the first system beside the others."""
        found = []
        first = self.scores[0].system
        for score in self.scores:
            if score.system == first and not score.less:
                beside = [item for item in self.scores if (item.group, item.metric) == (score.group, score.metric)]
                details = {
                    "labels": score.labels,
                    "differences": {
                        _key(item.less): {"value": item.value, "low": item.low, "high": item.high}
                        for item in beside
                        if item.less
                    },
                    **extra,
                }
                others = {_key(item.system): item.value for item in beside if item.system != first}
                key = f"{protocol}/{score.group}/{score.metric}"
                found.append(Row(key, score.value, score.low, score.high, score.n, others, details))
        return found

    def cells(self) -> list[tuple[str, ...]]:
        """Return the cells of a table for people, one tuple a row; headings are :data:`COLUMNS`."""
        found: list[tuple[str, ...]] = []
        for score in self.scores:
            if score.metric == METRICS[0]:
                other = self.value(score.group, score.system, METRICS[1], less=score.less)
                name = f"{score.system} − {score.less}" if score.less else score.system
                found.append((score.group, name, *_text(score), *_text(other), f"{score.labels}", f"{score.n}"))
        return found


COLUMNS = ("labels", "system", "macro-AUROC", "95 % interval", "macro-AUPRC", "95 % interval", "labels", "records")
"""Headings of :meth:`ScoreTable.cells`."""


def score_systems(
    systems: Mapping[str, NDArray[np.floating]], table: LabelTable, *, resamples: int = 1000, seed: int = 0
) -> ScoreTable:
    """Score systems on the same records.

    Parameters
    ----------
    systems : mapping of str to floating, shape (n, labels)
        Scores; the first system is the one that the others are compared with.
    table : LabelTable
        The records evaluated.
    resamples, seed : int
        Of the patient-clustered bootstrap; the same resamples for all systems.
    """
    weights = patient_weights(table.subject_ids, resamples=resamples, seed=seed)
    samples = {name: _sample(table.values, scores, weights) for name, scores in systems.items()}
    points = {
        name: {"auroc": label_auroc(table.values, scores), "auprc": label_auprc(table.values, scores)}
        for name, scores in systems.items()
    }
    positive, known = (table.values == 1).sum(axis=0), (~np.isnan(table.values)).sum(axis=0)
    enough = (positive >= MIN_POSITIVES) & (positive < known)
    found: list[Score] = []
    for group, columns in table.groups.items():
        kept = np.isin(np.arange(len(table.labels)), columns) & enough
        n = int((~np.isnan(table.values[:, kept])).any(axis=1).sum())
        about = (int(kept.sum()), n)
        first = next(iter(systems))
        for metric in METRICS:
            means = {name: mean_of_labels(sampled[metric], kept) for name, sampled in samples.items()}
            values = {name: _mean(points[name][metric][kept]) for name in systems}
            for name in systems:
                bounds = interval(means[name])
                found.append(Score(group, name, metric, values[name], bounds.low, bounds.high, *about))
            base = CHANCE if metric == "auroc" else _mean(positive[kept] / np.maximum(known[kept], 1))
            found.append(Score(group, "prevalence", metric, base, math.nan, math.nan, *about))
            for name in list(systems)[1:]:
                bounds = interval(means[first] - means[name])
                gain = values[first] - values[name]
                found.append(Score(group, first, metric, gain, bounds.low, bounds.high, *about, less=name))
    return ScoreTable(tuple(found), _per_label(table, points))


def label_auroc(values: NDArray[np.float32], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the AUROC of every label over the records where it is known: float64, shape (labels,)."""
    return _each_label(auroc, values, scores)


def label_auprc(values: NDArray[np.float32], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the average precision of every label over the records where it is known: float64, shape (labels,)."""
    return _each_label(auprc, values, scores)


def bootstrap_auprc(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the average precision of one label in every resample: float64, shape (resamples,).

    Tied scores enter together, as in :func:`mmecg.evaluation.metrics.auprc`.

    Parameters
    ----------
    labels : bool, shape (n,)
    scores : floating, shape (n,)
    weights : float32, shape (n, resamples)
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    drawn = weights[order]
    every = np.cumsum(drawn, axis=0)[last_of_tie].astype(np.float64)
    hits = np.cumsum(np.where(labels[order][:, None], drawn, np.float32(0)), axis=0)[last_of_tie].astype(np.float64)
    precision = np.divide(hits, every, out=np.zeros_like(hits), where=every > 0)
    gained = (np.diff(hits, axis=0, prepend=0) * precision).sum(axis=0)
    return np.asarray(np.divide(gained, hits[-1], out=np.full(len(gained), np.nan), where=hits[-1] > 0))


def _each_label(metric: Any, values: NDArray[np.float32], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    found = np.full(values.shape[1], np.nan)
    for columns, rows in _same_rows(values):
        if len(rows):
            found[columns] = metric(values[np.ix_(rows, columns)] == 1, scores[np.ix_(rows, columns)])
    return found


def _same_rows(values: NDArray[np.float32]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return columns that are known in the same rows, and these rows."""
    known = ~np.isnan(values)
    groups: dict[bytes, list[int]] = {}
    for column in range(values.shape[1]):
        groups.setdefault(known[:, column].tobytes(), []).append(column)
    return [(np.array(columns), np.flatnonzero(known[:, columns[0]])) for columns in groups.values()]


def _sample(
    values: NDArray[np.float32], scores: NDArray[np.floating], weights: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return both metrics in every resample: float64, shape (resamples, labels)."""
    found = {metric: np.full((weights.shape[1], values.shape[1]), np.nan) for metric in METRICS}
    for columns, rows in _same_rows(values):
        if not len(rows):
            continue
        labels, held, drawn = values[np.ix_(rows, columns)] == 1, scores[np.ix_(rows, columns)], weights[rows]
        found["auroc"][:, columns] = bootstrap_auroc(labels, held, drawn)
        for at, column in enumerate(columns):
            found["auprc"][:, column] = bootstrap_auprc(labels[:, at], held[:, at], drawn)
    return found


def _per_label(table: LabelTable, points: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> pl.DataFrame:
    group_of = {column: name for name, columns in table.groups.items() for column in columns}
    columns: dict[str, Sequence[Any]] = {
        "group": [group_of.get(column, "") for column in range(len(table.labels))],
        "label": list(table.labels),
        "positives": (table.values == 1).sum(axis=0).tolist(),
        "n": (~np.isnan(table.values)).sum(axis=0).tolist(),
    }
    for name, metrics in points.items():
        columns |= {f"{_key(name)}_{metric}": values.tolist() for metric, values in metrics.items()}
    return pl.DataFrame(columns).fill_nan(None)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _key(system: str) -> str:
    return system.replace(" ", "_")


def _text(score: Score) -> tuple[str, str]:
    sign = "+" if score.less else ""
    value = f"{score.value:{sign}.4f}" if math.isfinite(score.value) else "–"
    return value, f"{score.low:{sign}.4f} – {score.high:{sign}.4f}" if math.isfinite(score.low) else "–"
