"""What predictions are good for: errors avoided by abstaining, and decision curves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import eligible
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_confidence import DRAWN_LABELS
from mmecg.evaluation.prediction_metrics import (
    area_under_risk_coverage,
    error_reduction,
    mean_figure,
    net_benefit,
    risk_coverage,
    with_whole,
)
from mmecg.evaluation.results import Row

COVERAGES = np.linspace(0.05, 1.0, 20)
THRESHOLDS = np.round(np.arange(0.01, 0.61, 0.01), 2)
RESAMPLES = 300
"""Resamples of the intervals of means over labels, at most."""

_WIDE = (THRESHOLDS >= 0.05) & (THRESHOLDS <= 0.5)
_ODDS = THRESHOLDS / (1 - THRESHOLDS)


def abstention(cases: Cases, system: str, share: float = 0.2) -> Part:
    """Return the error reduction on the rest when the most uncertain share abstains, and the risk-coverage curves.

    The error of a study is the number of statements decided wrongly at 0.5 (Hamming); its uncertainty is the expected
    number of such errors. Other errors stand in rows of their own: ``any_error`` counts a study as wrong as soon as one
    decision is, ``per_label`` lets each label abstain in its own most uncertain studies, ``per_decision`` abstains from
    single decisions, the least decided first. ``aurc`` is the area under the curve of studies.
    """
    rows, key = [], f"abstain{round(100 * share)}/error_reduction"
    for task, part in cases.tasks().items():
        name = key if task == "all" else f"{key}/{task}"
        doubt = Doubt.of(part, system)
        random = Doubt.of(part, "random_encoder") if "random_encoder" in part.systems else None
        extra = {"errors_per_study": float(doubt.wrong.sum(axis=1).mean()),
                 "value_if_probabilities_are_true": doubt.reduction_if_true(share, seed=part.seed)}  # fmt: skip
        rows += [
            _reduction_row(name, part, doubt, random, share, **extra),
            _reduction_row(f"{name}/any_error", part, doubt.any(), random and random.any(), share),
            _per_label_row(f"{name}/per_label", part, doubt, random, share),
            _area_row("aurc" if task == "all" else f"aurc/{task}", part, doubt, random),
        ]
    part = cases.task("all")
    doubt = Doubt.of(part, system)
    coarse = np.repeat(part.weights[:, :100], doubt.wrong.shape[1], axis=0)  # as many times more as there are labels
    by_decision = error_reduction(doubt.wrong.ravel(), doubt.unsure.ravel(), coarse, share)
    rows.append(by_decision.row(f"{key}/per_decision", len(part), {"prevalence": 0.0}, resamples=coarse.shape[1]))
    curve = pl.DataFrame(
        {
            "coverage": COVERAGES,
            "by_uncertainty": risk_coverage(doubt.errors, doubt.expected, COVERAGES),
            "if_errors_were_known": risk_coverage(doubt.errors, doubt.errors, COVERAGES),
            "at_random": np.full(len(COVERAGES), doubt.errors.mean()),
            "per_decision": risk_coverage(doubt.wrong.ravel(), doubt.unsure.ravel(), COVERAGES),
        }
    )
    return Part(tuple(rows), {"risk_coverage": curve})


@dataclass(frozen=True)
class Doubt:
    """Which decisions at 0.5 are wrong, and how probable that is.

    Attributes
    ----------
    wrong : bool, shape (n, labels)
    unsure : float64, shape (n, labels)
    """

    wrong: NDArray[np.bool_]
    unsure: NDArray[np.float64]

    @classmethod
    def of(cls, part: Cases, system: str) -> Doubt:
        """Compare a system's decisions with gold."""
        probability = part.probability(system)
        return cls((probability >= 0.5) != part.gold, np.minimum(probability, 1 - probability))

    @property
    def errors(self) -> NDArray[np.float64]:
        """Share of a study's decisions that are wrong: float64, shape (n,)."""
        return np.asarray(self.wrong.mean(axis=1))

    @property
    def expected(self) -> NDArray[np.float64]:
        """Share that is expected to be: float64, shape (n,)."""
        return np.asarray(self.unsure.mean(axis=1))

    def any(self) -> Doubt:
        """Return whether any decision of a study is wrong, as if it were the one label: shape (n, 1)."""
        any_wrong = np.asarray(self.wrong.any(axis=1, keepdims=True), np.bool_)
        return Doubt(any_wrong, 1 - np.prod(1 - self.unsure, axis=1, keepdims=True))

    def reduction_if_true(self, share: float, *, draws: int = 20, seed: int = 0) -> float:
        """Return what the reduction would be if each decision were wrong just as often as its probability says.

        No other order of the studies would then do better.
        """
        rng = np.random.default_rng(seed)
        drawn = ((rng.random(self.unsure.shape) < self.unsure).mean(axis=1) for _ in range(draws))
        return float(np.mean([error_reduction(one, self.expected, _none(self), share).value for one in drawn]))


def _none(doubt: Doubt) -> NDArray[np.float32]:
    return np.empty((len(doubt.wrong), 0), np.float32)


def _reduction_row(key: str, part: Cases, doubt: Doubt, random: Doubt | None, share: float, **extra: object) -> Row:
    baselines = {"prevalence": 0.0}
    if random is not None:
        baselines["random_encoder"] = error_reduction(random.errors, random.expected, _none(random), share).value
    known = error_reduction(doubt.errors, doubt.errors, _none(doubt), share).value
    figure = error_reduction(doubt.errors, doubt.expected, part.weights, share)
    return figure.row(key, len(part), baselines, value_if_errors_were_known=known, **extra)


def _per_label_row(key: str, part: Cases, doubt: Doubt, random: Doubt | None, share: float) -> Row:
    kept = np.flatnonzero(eligible(part.gold) & doubt.wrong.any(axis=0))
    if not len(kept):
        return Row.missing(key, f"no label has 10 positives and an error among {len(part)} studies")

    def macro(of: Doubt, weights: NDArray[np.float32]) -> Figure:
        found = [error_reduction(of.wrong[:, column], of.unsure[:, column], weights, share) for column in kept]
        values, samples = np.array([one.value for one in found]), np.stack([one.samples for one in found], axis=1)
        return mean_figure(values, samples, np.isfinite(values))

    baselines = {"prevalence": 0.0}
    if random is not None:
        baselines["random_encoder"] = macro(random, _none(random)).value
    coarse = part.weights[:, :RESAMPLES]
    return macro(doubt, coarse).row(key, len(part), baselines, n_labels=len(kept), resamples=coarse.shape[1])


def _area_row(key: str, part: Cases, doubt: Doubt, random: Doubt | None) -> Row:
    figure = area_under_risk_coverage(doubt.errors, doubt.expected, part.weights)
    least = area_under_risk_coverage(doubt.errors, doubt.errors, _none(doubt)).value
    chance = float(doubt.errors.mean())
    baselines = {"prevalence": chance}
    if random is not None:
        baselines["random_encoder"] = area_under_risk_coverage(random.errors, random.expected, _none(random)).value
    gained = (chance - figure.value) / (chance - least) if chance > least else math.nan
    return figure.row(key, len(part), baselines, value_if_errors_were_known=least, share_of_possible=gained)


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
    whole = with_whole(part.weights)
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
