"""Figures of predictions beyond AUROC: calibration, operating points, abstention, decision curves, multiplicity.

Axes: ``n`` records, ``labels``, ``resamples``. Every statistic is computed on the records and in every resample
(:mod:`mmecg.evaluation.bootstrap`) without a copy of the data; see ``mmecg/evaluation/README.md`` for the definitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from mmecg.evaluation.bootstrap import bootstrap_auroc, mean_of_labels
from mmecg.evaluation.label_metrics import ECE_BINS, Figure
from mmecg.evaluation.metrics import auroc, eligible

Logits = NDArray[np.floating]
Gold = NDArray[np.bool_]
Weights = NDArray[np.float32]

MAX_LOGIT = 30.0
"""Log-odds are cut here before a logarithm or a fit needs them."""


@dataclass(frozen=True)
class Aurocs:
    """AUROC of every label, and in every resample.

    Attributes
    ----------
    values : float64, shape (labels,)
    samples : float64, shape (resamples, labels)
    enough, some : bool, shape (labels,)
        Labels with at least :data:`MIN_POSITIVES` positives; with any.
    """

    values: NDArray[np.float64]
    samples: NDArray[np.float64]
    enough: NDArray[np.bool_]
    some: NDArray[np.bool_]

    @classmethod
    def of(cls, gold: Gold, scores: Logits, weights: Weights) -> Aurocs:
        """Compute them."""
        enough, some = eligible(gold), eligible(gold, min_positives=1)
        samples = np.full((weights.shape[1], gold.shape[1]), np.nan)
        samples[:, some] = bootstrap_auroc(gold[:, some], scores[:, some], weights)
        return cls(auroc(gold, scores), samples, enough, some)

    def macro(self, kept: NDArray[np.bool_] | None = None) -> Figure:
        """Return the mean over the kept labels; default those with enough positives. NaN if there are none."""
        return mean_figure(self.values, self.samples, self.enough if kept is None else kept)

    def gain_over(self, other: Aurocs, kept: NDArray[np.bool_] | None = None) -> Figure:
        """Return the difference of the macro means under the same resamples."""
        mine, others = self.macro(kept), other.macro(kept)
        return Figure(mine.value - others.value, mine.samples - others.samples)


def mean_figure(values: NDArray[np.float64], samples: NDArray[np.float64], kept: NDArray[np.bool_]) -> Figure:
    """Return the mean over the kept labels, with its resamples.

    Parameters
    ----------
    values : float64, shape (labels,)
    samples : float64, shape (resamples, labels)
    kept : bool, shape (labels,)
    """
    value = float(values[kept].mean()) if kept.any() else math.nan
    return Figure(value, mean_of_labels(samples, kept))


def average_precision(gold: Gold, scores: Logits, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the average precision of every label, and in every resample; of tied records the first counts as higher.

    Parameters
    ----------
    gold : bool, shape (n, labels)
    scores : floating, shape (n, labels)
    weights : float32, shape (n, resamples)

    Returns
    -------
    values : float64, shape (labels,)
        NaN where a label has no positive.
    samples : float64, shape (resamples, labels)
    """
    whole = with_whole(weights)
    found = np.full((whole.shape[1], gold.shape[1]), np.nan)
    for column in np.flatnonzero(gold.any(axis=0)):
        order = np.argsort(-scores[:, column], kind="stable")
        hits = gold[order, column]
        called = np.cumsum(whole[order], axis=0)[hits].astype(np.float64)
        weight = whole[order][hits].astype(np.float64)
        right, total = np.cumsum(weight, axis=0), weight.sum(axis=0)
        precision = np.divide(right, called, out=np.zeros_like(right), where=called > 0)
        np.divide((weight * precision).sum(axis=0), total, out=found[:, column], where=total > 0)
    return found[0], found[1:]


def sensitivity_at(
    gold: Gold, scores: Logits, weights: Weights, specificity: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sensitivity of every label at the lowest threshold with at least this specificity.

    A record is called positive if its score is above the threshold. The threshold is set again in every resample.

    Parameters
    ----------
    gold : bool, shape (n, labels)
    scores : floating, shape (n, labels)
    weights : float32, shape (n, resamples)
    specificity : float
        0 to 1.

    Returns
    -------
    values : float64, shape (labels,)
        NaN where a label has no positive or no negative.
    samples : float64, shape (resamples, labels)
    """
    whole = with_whole(weights)
    found = np.full((whole.shape[1], gold.shape[1]), np.nan)
    for column in np.flatnonzero(eligible(gold, min_positives=1)):
        positive = gold[:, column]
        negatives, positives = np.sort(scores[~positive, column])[::-1], np.sort(scores[positive, column])
        heavy = whole[~positive][np.argsort(-scores[~positive, column], kind="stable")]
        allowed = (1 - specificity) * heavy.sum(axis=0, dtype=np.float64)
        # Only the highest negatives can hold the threshold: twice the share, in any resample that is not freakish.
        top = min(len(negatives), 50 + math.ceil(3 * (1 - specificity) * len(negatives)))
        false = np.cumsum(heavy[:top], axis=0, dtype=np.float64)
        at = np.minimum((false <= allowed + 1e-9).sum(axis=0), top - 1)
        weight = whole[positive][np.argsort(scores[positive, column], kind="stable")].astype(np.float64)
        above = np.zeros((len(positives) + 1, whole.shape[1]))
        above[:-1] = np.cumsum(weight[::-1], axis=0)[::-1]
        called = above[np.searchsorted(positives, negatives[at], side="right"), np.arange(whole.shape[1])]
        np.divide(called, above[0], out=found[:, column], where=(above[0] > 0) & (allowed > 0))
    return found[0], found[1:]


def calibration_line(gold: Gold, logits: Logits, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return calibration slope and intercept of every label (Cox 1958; Van Calster et al., BMC Medicine 17:230, 2019).

    The slope is that of a logistic regression of the outcome on the log-odds (1 is ideal, below 1 too extreme). The
    intercept is that with the slope held at 1, *calibration in the large* (0 is ideal, below 0 too high). A resample
    takes one Newton step from the fit to all records.

    Parameters
    ----------
    gold : bool, shape (n, labels)
    logits : floating, shape (n, labels)
    weights : float32, shape (n, resamples)

    Returns
    -------
    slope, intercept : float64, shape (1 + resamples, labels)
        First of all records. NaN where a label has no positive or no negative, or the outcome is separable.
    """
    whole = with_whole(weights).astype(np.float64)
    slopes = np.full((whole.shape[1], gold.shape[1]), np.nan)
    intercepts = slopes.copy()
    for column in np.flatnonzero(eligible(gold, min_positives=1)):
        x, y = np.clip(logits[:, column].astype(np.float64), -MAX_LOGIT, MAX_LOGIT), gold[:, column].astype(np.float64)
        large, line = np.zeros(1), np.array([0.0, 1.0])
        ones = np.ones((len(x), 1))
        both = np.column_stack([ones, x])
        for _ in range(30):
            large = large + _newton(ones, x + large[0], y, whole[:, :1])[0]
            step = _newton(both, both @ line, y, whole[:, :1])[0]
            line = line + np.clip(step, -1, 1)
        if not np.isfinite(line).all() or np.abs(step).max() > 1e-3:
            continue
        intercepts[:, column] = large[0] + _newton(ones, x + large[0], y, whole)[:, 0]
        slopes[:, column] = line[1] + _newton(both, both @ line, y, whole)[:, 1]
    return slopes, intercepts


def _newton(
    design: NDArray[np.float64], logits: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the Newton step of a logistic regression under each column of weights: shape (columns, parameters)."""
    p = expit(logits)
    gradient = (design * (y - p)[:, None]).T @ weights
    size = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1) * (p * (1 - p))[:, None]
    hessian = (products.T @ weights).T.reshape(-1, size, size) + 1e-9 * np.eye(size)
    return np.asarray(np.linalg.solve(hessian, gradient.T[:, :, None])[:, :, 0])


def reliability(gold: Gold, probability: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return mean probability, rate and records of :data:`ECE_BINS` bins of equal mass of one label (or of all pooled).

    Parameters
    ----------
    gold : bool, shape (n,)
    probability : floating, shape (n,)
    """
    order = np.argsort(probability, kind="stable")
    edges = np.unique(np.linspace(0, len(order), ECE_BINS, endpoint=False).astype(int))
    size = np.diff(np.append(edges, len(order)))
    expected, seen = (np.add.reduceat(values[order].astype(np.float64), edges) / size for values in (probability, gold))
    return expected, seen, size.astype(np.int64)


def ece_of_labels(gold: Gold, probability: Logits) -> NDArray[np.float64]:
    """Return the expected calibration error of every label: float64, shape (labels,)."""
    found = np.empty(gold.shape[1])
    for column in range(gold.shape[1]):
        expected, seen, size = reliability(gold[:, column], probability[:, column])
        found[column] = (np.abs(expected - seen) * size).sum() / len(gold)
    return found


def ece_if_calibrated(probability: Logits, *, draws: int = 20, seed: int = 0) -> NDArray[np.float64]:
    """Return the error that :func:`ece_of_labels` is expected to find where there is none.

    Outcomes are drawn from the probabilities themselves. What is left is the noise of bins of few records, which is
    most of the figure in a small subgroup.

    Parameters
    ----------
    probability : floating, shape (n, labels)
    draws, seed : int

    Returns
    -------
    float64, shape (labels,)
    """
    rng = np.random.default_rng(seed)
    found = np.empty(probability.shape[1])
    edges = np.unique(np.linspace(0, len(probability), ECE_BINS, endpoint=False).astype(int))
    for column in range(probability.shape[1]):
        ordered = np.sort(probability[:, column])[:, None]
        error = (rng.random((len(ordered), draws)) < ordered) - ordered
        found[column] = np.abs(np.add.reduceat(error, edges, axis=0)).sum(axis=0).mean() / len(ordered)
    return found


def error_reduction(errors: NDArray[Any], uncertainty: NDArray[np.floating], weights: Weights, share: float) -> Figure:
    """Return by how much the error rate falls when the most uncertain share abstains: 1 - rate kept / rate of all.

    Parameters
    ----------
    errors : bool or floating, shape (n,)
        Errors of each study, or of each decision.
    uncertainty : floating, shape (n,)
    weights : float32, shape (n, resamples)
        The share is cut again in every resample; the record on the border counts in part.
    share : float
        0 to 1.
    """
    order = np.argsort(uncertainty, kind="stable")
    heavy = with_whole(weights)[order].astype(np.float64)
    behind = np.cumsum(heavy, axis=0)
    total = behind[-1]
    kept = np.clip((1 - share) * total - (behind - heavy), 0, heavy)
    wrong = errors[order].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (wrong @ kept) / kept.sum(axis=0), (wrong @ heavy) / total
        fall = np.where(rates[1] > 0, 1 - rates[0] / rates[1], np.nan)
    return Figure(float(fall[0]), fall[1:])


def area_under_risk_coverage(errors: NDArray[Any], uncertainty: NDArray[np.floating], weights: Weights) -> Figure:
    """Return the mean over coverages of the error rate of the surest records (Geifman, Uziel & El-Yaniv, ICLR 2019).

    Parameters
    ----------
    errors : bool or floating, shape (n,)
    uncertainty : floating, shape (n,)
    weights : float32, shape (n, resamples)
    """
    order = np.argsort(uncertainty, kind="stable")
    heavy = with_whole(weights)[order].astype(np.float64)
    behind = np.cumsum(heavy, axis=0)
    wrong = np.cumsum(errors[order, None].astype(np.float64) * heavy, axis=0)
    risk = np.divide(wrong, behind, out=np.zeros_like(wrong), where=behind > 0)
    found = (risk * heavy).sum(axis=0) / behind[-1]
    return Figure(float(found[0]), found[1:])


def risk_coverage(
    errors: NDArray[Any], uncertainty: NDArray[np.floating], coverages: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the error rate of the surest records, for each share of records that is answered.

    Parameters
    ----------
    errors : bool or floating, shape (n,)
    uncertainty : floating, shape (n,)
    coverages : floating, shape (points,)
        Above 0, at most 1.
    """
    ordered = np.cumsum(errors[np.argsort(uncertainty, kind="stable")], dtype=np.float64)
    kept = np.maximum(np.round(coverages * len(ordered)).astype(int), 1)
    return np.asarray(ordered[kept - 1] / kept)


def net_benefit(gold: Gold, probability: Logits, thresholds: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the net benefit of acting above each threshold (Vickers & Elkin, Med Decis Making 26(6), 2006).

    True positives per record, less false positives weighted by the odds of the threshold.

    Parameters
    ----------
    gold : bool, shape (n,)
    probability : floating, shape (n,)
    thresholds : floating, shape (points,)
        Between 0 and 1, exclusive.
    """
    acted = probability[:, None] >= thresholds
    hits = (acted & gold[:, None]).mean(axis=0)
    false = (acted & ~gold[:, None]).mean(axis=0)
    return np.asarray(hits - false * thresholds / (1 - thresholds))


def wald_p(values: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two-sided p-values of differences against 0, by the standard error of their resamples.

    Shares of resamples beyond 0 cannot fall below one in their number, too coarse for a correction over many labels.

    Parameters
    ----------
    values : float64, shape (labels,)
    samples : float64, shape (resamples, labels)

    Returns
    -------
    float64, shape (labels,)
        1 where a label has no resamples or they do not differ.
    """
    present = np.isfinite(samples)
    count = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, samples, 0).sum(axis=0) / count
    error = np.sqrt(np.where(present, np.square(samples - mean), 0).sum(axis=0) / count)
    size = np.divide(np.abs(values), error, out=np.zeros(len(values)), where=error > 0)
    return np.asarray(2 * norm.sf(size), np.float64)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for their number (Holm, Scand J Stat 6(2), 1979): float64, same shape."""
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    found = np.empty_like(p)
    found[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return found


def with_whole(weights: Weights) -> Weights:
    """Return the weights behind a column of ones: the records themselves, then their resamples."""
    return np.concatenate([np.ones((len(weights), 1), np.float32), weights], axis=1)
