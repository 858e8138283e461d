"""What predictions are good for: errors avoided by abstaining, and decision curves."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import eligible
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_confidence import DRAWN_LABELS
from mmecg.evaluation.prediction_metrics import error_reduction, net_benefit, risk_coverage

COVERAGES = np.linspace(0.05, 1.0, 20)
THRESHOLDS = np.round(np.arange(0.01, 0.61, 0.01), 2)
_WIDE = (THRESHOLDS >= 0.05) & (THRESHOLDS <= 0.5)
_ODDS = THRESHOLDS / (1 - THRESHOLDS)


def abstention(cases: Cases, system: str, share: float = 0.2) -> Part:
    """Return the error reduction on the rest when the most uncertain share abstains, and the risk-coverage curves.

    The error of a study is the number of statements decided wrongly at 0.5 (Hamming); its uncertainty is the expected
    number of such errors. The variant ``per_decision`` abstains from single decisions instead, the least decided first.
    """
    rows, key = [], f"abstain{round(100 * share)}/error_reduction"
    for task, part in cases.tasks().items():
        wrong, unsure = _errors(part, system)
        errors, n = wrong.mean(axis=1), len(part)
        none = np.empty((n, 0), np.float32)
        baselines = {"prevalence": 0.0}
        if "random_encoder" in part.systems:
            other, doubt = _errors(part, "random_encoder")
            baselines["random_encoder"] = error_reduction(other.mean(axis=1), doubt.mean(axis=1), none, share).value
        figure = error_reduction(errors, unsure.mean(axis=1), part.weights, share)
        rows.append(
            figure.row(key if task == "all" else f"{key}/{task}", n, baselines,
                       errors_per_study=float(wrong.sum(axis=1).mean()),
                       value_if_errors_were_known=error_reduction(errors, errors, none, share).value)
        )  # fmt: skip
    part = cases.task("all")
    wrong, unsure = _errors(part, system)
    errors = wrong.mean(axis=1)
    coarse = np.repeat(part.weights[:, :100], wrong.shape[1], axis=0)  # as many times more as there are labels
    by_decision = error_reduction(wrong.ravel(), unsure.ravel(), coarse, share)
    rows.append(by_decision.row(f"{key}/per_decision", len(part), {"prevalence": 0.0}, resamples=coarse.shape[1]))
    curve = pl.DataFrame(
        {
            "coverage": COVERAGES,
            "by_uncertainty": risk_coverage(errors, unsure.mean(axis=1), COVERAGES),
            "if_errors_were_known": risk_coverage(errors, errors, COVERAGES),
            "at_random": np.full(len(COVERAGES), errors.mean()),
            "per_decision": risk_coverage(wrong.ravel(), unsure.ravel(), COVERAGES),
        }
    )
    return Part(tuple(rows), {"risk_coverage": curve})


def _errors(part: Cases, system: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which decisions at 0.5 are wrong, and how probable that is: shape (n, labels) each."""
    probability = part.probability(system)
    return (probability >= 0.5) != part.gold, np.minimum(probability, 1 - probability)


def decision_curves(cases: Cases, systems: tuple[str, ...]) -> Part:
    """Return net benefit over thresholds, beside acting on everyone and on no one, and its mean as rows.

    A row is the mean over thresholds from 0.05 to 0.5 of the net benefit beyond the better of the two, as a share of
    the prevalence (the net benefit of a perfect test), then over the labels with at least 10 positives.

    Parameters
    ----------
    cases : Cases
    systems : tuple of str
        Keys of ``cases.systems``; the first is the one of the rows, the others are drawn and stand beside it.
    """
    lines, rows = [], []
    for task, part in cases.tasks().items():
        kept = np.flatnonzero(eligible(part.gold))
        if not len(kept):
            continue
        useful = {name: useful_benefit(part, name, kept) for name in systems}
        first, *others = systems
        baselines = {"prevalence": 0.0} | {name: useful[name].value for name in others}
        rows.append(useful[first].row(f"decision_curve/{task}", len(part), baselines, n_labels=len(kept)))
        for column in kept:
            label = part.labels[column]
            if task == "superclass" or label in DRAWN_LABELS:
                gold, rate = part.gold[:, column], part.gold[:, column].mean()
                curves = {name: net_benefit(gold, part.probability(name)[:, column], THRESHOLDS) for name in systems}
                curves |= {"everyone": rate - (1 - rate) * _ODDS, "no one": np.zeros(len(THRESHOLDS))}
                lines += [
                    pl.DataFrame({"label": [label] * len(THRESHOLDS), "system": [name] * len(THRESHOLDS),
                                  "threshold": THRESHOLDS, "net_benefit": curve})
                    for name, curve in curves.items()
                ]  # fmt: skip
    return Part(tuple(rows), {"decision_curves": pl.concat(lines)} if lines else {})


def useful_benefit(part: Cases, system: str, kept: NDArray[np.int64]) -> Figure:
    """Return the figure of a row of :func:`decision_curves`, with its resamples.

    Net benefit is a mean over records of what each adds at each threshold, so a resample is one matrix product.
    """
    whole = np.concatenate([np.ones((len(part), 1), np.float32), part.weights], axis=1)
    total = whole.sum(axis=0, dtype=np.float64)
    found = np.zeros((len(kept), whole.shape[1]))
    for at, column in enumerate(kept):
        gold, probability = part.gold[:, column], part.probability(system)[:, column]
        odds = np.cumsum(np.concatenate([[0.0], _ODDS[_WIDE]]))
        acted = np.searchsorted(THRESHOLDS[_WIDE], probability, side="right")  # at so many thresholds
        added = np.where(gold, acted, -odds[acted]) / _WIDE.sum()
        rate = gold.astype(np.float64) @ whole / total
        everyone = np.maximum(rate[:, None] - (1 - rate[:, None]) * _ODDS[_WIDE], 0).mean(axis=1)
        benefit = added @ whole / total - everyone
        found[at] = np.divide(benefit, rate, out=np.full(len(rate), np.nan), where=rate > 0)
    present = np.isfinite(found)
    means = np.where(present, found, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    return Figure(float(means[0]), means[1:])
