"""Protocols on one system's log-odds: discrimination, calibration, conformal sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.bootstrap import bootstrap_mean, interval
from mmecg.evaluation.label_metrics import Figure, brier, ece
from mmecg.evaluation.metrics import auprc, eligible
from mmecg.evaluation.prediction_cases import BASELINES, Cases, Part, macro_row
from mmecg.evaluation.prediction_metrics import (
    calibration_line,
    ece_if_calibrated,
    ece_of_labels,
    mean_figure,
    reliability,
    sensitivity_at,
    with_whole,
)
from mmecg.evaluation.results import Row

SPECIFICITIES: tuple[float, ...] = (0.90, 0.95)
LEVELS: tuple[float, ...] = (0.8, 0.9, 0.95)
DRAWN_LABELS: tuple[str, ...] = ("AFIB", "CLBBB", "IMI", "LVH")
"""Statements whose decision and reliability curves are drawn, beside the superclasses."""

ConformalSets = Callable[[float], NDArray[np.bool_]]
"""From a level to sets: bool, shape (n, labels, 2), [absent included, present included]."""


@dataclass(frozen=True)
class Sets:
    """Conformal sets of the cases at one level, and whether the truth lies in them.

    Attributes
    ----------
    covered : bool, shape (n, labels)
    size : int64, shape (n, labels)
        0 to 2.
    """

    covered: NDArray[np.bool_]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, gold: NDArray[np.bool_], sets: NDArray[np.bool_]) -> Sets:
        """Compare sets with gold."""
        covered = np.where(gold, sets[:, :, 1], sets[:, :, 0])
        return cls(np.asarray(covered, np.bool_), sets.sum(axis=2))


def discrimination(cases: Cases, system: str, name: str) -> Part:
    """Return macro AUROC, AUPRC and sensitivities of a system, and the table of its labels.

    Parameters
    ----------
    cases : Cases
    system : str
        Key of ``cases.systems``.
    name : str
        First word of the rows.
    """
    rows: list[Row] = []
    tables = []
    for task, part in cases.tasks().items():
        found = part.aurocs(system)
        enough, some = found.enough, found.some
        everything = found.macro(some)
        precision = auprc(part.gold, part.systems[system])
        ends = interval(everything.samples)
        both = {"value_all_labels": everything.value, "low_all_labels": ends.low, "high_all_labels": ends.high,
                "n_labels_all_labels": int(some.sum())}  # fmt: skip
        rate = part.gold.mean(axis=0)
        areas = {"auprc": _mean(precision, enough), "auprc_prevalence": _mean(rate, enough)}
        rows.append(macro_row(f"{name}/{task}", part, found.macro(), enough, **both, **areas))
        columns: dict[str, NDArray[np.float64]] = {}
        for specificity in SPECIFICITIES:
            sensitivity = sensitivity_at(part.gold, part.systems[system], part.weights, specificity)
            percent = round(100 * specificity)
            figure = mean_figure(*sensitivity, enough)
            others = {"prevalence": 1 - specificity, **_random_sensitivity(part, specificity, enough)}
            rows.append(
                figure.row(f"{name}/{task}/sensitivity_at_{percent}", len(part), others, n_labels=int(enough.sum()))
            )
            columns[f"sensitivity_at_{percent}"] = sensitivity[0]
        bounds = [interval(found.samples[:, column]) for column in range(len(part.labels))]
        random = part.aurocs_without_resamples("random_encoder")
        tables.append(
            pl.DataFrame(
                {
                    "protocol": [name] * len(part.labels),
                    "task": [task] * len(part.labels),
                    "label": list(part.labels),
                    "positives": part.gold.sum(axis=0),
                    "auroc": found.values,
                    "low": [bound.low for bound in bounds],
                    "high": [bound.high for bound in bounds],
                    "auprc": precision,
                    "prevalence": rate,
                    "random_encoder": random,
                    **columns,
                    "ece": ece_of_labels(part.gold, part.probability(system)),
                }
            ).with_columns(pl.col(pl.Float64).fill_nan(None))
        )
    return Part(tuple(rows), {f"labels_{name}": pl.concat(tables)})


def calibration(cases: Cases, system: str) -> Part:
    """Return ECE, Brier score, slope and intercept, and the reliability curves.

    Rows are means over the labels with at least 10 positives; the two baselines say what the figure would be for a
    probe on the random encoder, and for the rate of each label.
    """
    rows: list[Row] = []
    tables = []
    for task, part in cases.tasks().items():
        suffix = "" if task == "all" else "/superclass"
        kept = eligible(part.gold)
        columns = np.flatnonzero(kept)
        gold, n = part.gold[:, columns], len(part)
        probability = part.probability(system)
        if not len(columns):
            continue
        none = np.empty((n, 0), np.float32)
        other = {name: part.probability(name) for name in BASELINES if name == "prevalence" or name in part.systems}
        error = ece(gold, probability[:, columns], part.weights)
        floor = ece_if_calibrated(probability[:, columns], seed=part.seed)
        rows.append(
            error.row(
                f"ece/macro{suffix}", n,
                {name: ece(gold, values[:, columns], none).value for name, values in other.items()},
                n_labels=len(columns), value_if_calibrated=float(floor.mean()),
                value_bias_corrected=max(error.value - error.bias, 0.0),
                value_all_labels=float(ece_of_labels(part.gold, probability).mean()),
            )
        )  # fmt: skip
        rows.append(
            brier(gold, probability[:, columns], part.weights).row(
                f"brier/macro{suffix}", n,
                {name: brier(gold, values[:, columns], none).value for name, values in other.items()},
                n_labels=len(columns), value_all_labels=float(np.square(probability - part.gold).mean()),
            )
        )  # fmt: skip
        rows += _line_rows(part, system, columns, suffix)
        tables.append(_reliability_table(part, probability, task))
    return Part(tuple(rows), {"reliability": pl.concat(tables)} if tables else {})


def _line_rows(part: Cases, system: str, columns: NDArray[np.int64], suffix: str) -> list[Row]:
    gold = part.gold[:, columns]
    line = calibration_line(gold, part.systems[system][:, columns], part.weights)
    baseline: dict[str, tuple[NDArray[np.float64], ...]] = {}
    if "random_encoder" in part.systems:
        none = np.empty((len(part), 0), np.float32)
        baseline["random_encoder"] = calibration_line(gold, part.systems["random_encoder"][:, columns], none)
    rows = []
    for at, name in enumerate(("slope", "intercept")):
        values = line[at]
        fitted = np.isfinite(values[0])
        figure = mean_figure(values[0], values[1:], fitted)
        # A constant rate has no slope; calibrated in the large on its own fold, it has no intercept either.
        others = {peer: _mean(found[at][0], np.isfinite(found[at][0])) for peer, found in baseline.items()}
        others |= {"prevalence": 0.0}
        median = float(np.median(values[0][fitted])) if fitted.any() else math.nan
        rows.append(
            figure.row(f"calibration/{name}{suffix}", len(part), others, n_labels=int(fitted.sum()), median=median)
        )
    return rows


def _reliability_table(part: Cases, probability: NDArray[np.float64], task: str) -> pl.DataFrame:
    wanted = part.labels if task == "superclass" else tuple(name for name in DRAWN_LABELS if name in part.labels)
    curves = {label: (part.gold[:, at], probability[:, at]) for at, label in enumerate(part.labels) if label in wanted}
    curves[f"{task}, pooled"] = (part.gold.ravel(), probability.ravel())
    tables = []
    for label, (gold, values) in curves.items():
        expected, seen, size = reliability(gold, values)
        tables.append(
            pl.DataFrame({"label": [label] * len(size), "probability": expected, "rate": seen, "decisions": size})
        )
    return pl.concat(tables)


def conformal(
    cases: Cases, sets_at: ConformalSets, random_at: ConformalSets | None = None, levels: tuple[float, ...] = LEVELS
) -> Part:
    """Return coverage and set size, marginal and by class, at each level; the rows of ``conformal90`` first.

    ``coverage`` counts all decisions of the statements; ``coverage_present`` and ``coverage_absent`` are means over the
    labels with at least 10 positives, of the studies that have the label and of those that have not. Coverage is
    promised whatever the encoder: what a better one gains is smaller sets.

    Parameters
    ----------
    cases : Cases
    sets_at : callable
    random_at : callable, optional
        The same of the random encoder.
    levels : tuple of float
    """
    statements = np.flatnonzero(~cases.superclass)
    gold, weights, n = cases.gold[:, statements], cases.weights, len(cases)
    kept = eligible(gold)
    lines, rows = [], []
    for level in levels:
        found = Sets.of(gold, sets_at(level)[:, statements])
        name = f"conformal{round(100 * level)}"
        share = found.covered.mean(axis=1)
        size = found.size.mean(axis=1)
        sides = {side: _class_coverage(found.covered, mask, weights, kept)
                 for side, mask in (("present", gold), ("absent", ~gold))}  # fmt: skip
        kinds = {"empty": 0, "single": 1, "both": 2}
        extra = {f"share_{kind}": float((found.size == count).mean()) for kind, count in kinds.items()}
        random = None if random_at is None else Sets.of(gold, random_at(level)[:, statements])
        others = (
            [{}] * 2
            if random is None
            else [{"random_encoder": float(of.mean())} for of in (random.covered, random.size)]
        )
        rows.append(_mean_row(f"{name}/coverage", share, weights, {"prevalence": level} | others[0], **extra))
        rows.append(_mean_row(f"{name}/set_size", size, weights, {"prevalence": 2 * level} | others[1]))
        for side, (figure, of_label) in sides.items():
            baselines = {"prevalence": level}
            if random is not None:
                mask = gold if side == "present" else ~gold
                baselines["random_encoder"] = _class_coverage(random.covered, mask, weights[:, :0], kept)[0].value
            rows.append(figure.row(f"{name}/coverage_{side}", n, baselines, n_labels=int(kept.sum())))
            lines.append(
                pl.DataFrame(
                    {
                        "level": [level] * len(statements),
                        "class": [side] * len(statements),
                        "label": [cases.labels[at] for at in statements],
                        "decisions": (gold if side == "present" else ~gold).sum(axis=0),
                        "coverage": of_label,
                        "set_size": found.size.mean(axis=0),
                    }
                ).with_columns(pl.col(pl.Float64).fill_nan(None))
            )
    return Part(tuple(rows), {"conformal_labels": pl.concat(lines)})


def _class_coverage(
    covered: NDArray[np.bool_], mask: NDArray[np.bool_], weights: NDArray[np.float32], kept: NDArray[np.bool_]
) -> tuple[Figure, NDArray[np.float64]]:
    whole = with_whole(weights)
    hits, total = ((part.T.astype(np.float32) @ whole).T.astype(float) for part in (covered & mask, mask))
    of_label = np.divide(hits, total, out=np.full(total.shape, np.nan), where=total > 0)
    return mean_figure(of_label[0], of_label[1:], kept), of_label[0]


def _mean_row(
    key: str, values: NDArray[np.floating], weights: NDArray[np.float32], baselines: dict[str, float], **extra: object
) -> Row:
    figure = Figure(float(values.mean()), bootstrap_mean(values.astype(np.float64), weights))
    return figure.row(key, len(values), baselines, **extra)


def _random_sensitivity(part: Cases, specificity: float, kept: NDArray[np.bool_]) -> dict[str, float]:
    if "random_encoder" not in part.systems:
        return {}
    none = np.empty((len(part), 0), np.float32)
    values, _ = sensitivity_at(part.gold, part.systems["random_encoder"], none, specificity)
    return {"random_encoder": _mean(values, kept)}


def _mean(values: NDArray[np.float64], kept: NDArray[np.bool_]) -> float:
    return float(values[kept].mean()) if kept.any() else math.nan
