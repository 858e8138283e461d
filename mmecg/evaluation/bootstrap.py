"""Patient-clustered bootstrap: percentile intervals in which all records of a patient are drawn together.

A resample is a vector of weights, one a record: how often the record's patient was drawn. A weighted statistic needs no
copy of the data, and two systems under the same weights are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_RESAMPLES = 1000
_BLOCK = 250  # Resamples at a time: the cumulative sums of one label then stay in the cache.


@dataclass(frozen=True)
class Interval:
    """A percentile interval. ``low`` and ``high`` are NaN if no resample had a value."""

    low: float
    high: float


def patient_weights(
    subject_ids: Sequence[str] | NDArray[np.generic], *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> NDArray[np.float32]:
    """Draw patients with replacement, as many as there are, ``resamples`` times.

    Parameters
    ----------
    subject_ids : sequence of str, length n
        Patient of each record.
    resamples, seed : int

    Returns
    -------
    float32, shape (n, resamples)
        How often the record's patient was drawn; equal for all records of a patient.
    """
    patients, patient_of = np.unique(np.asarray(subject_ids), return_inverse=True)
    count = len(patients)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / max(count, 1)), size=resamples)
    return np.ascontiguousarray(draws.T[patient_of], np.float32)


def interval(samples: NDArray[np.float64], *, level: float = 0.95) -> Interval:
    """Return the central percentile interval of the resamples that have a value.

    Parameters
    ----------
    samples : float64, shape (resamples,)
    level : float
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_bias(value: float, samples: NDArray[np.float64]) -> float:
    """Return the bootstrap estimate of bias, ``mean(samples) - value``; 0 if no resample has a value.

    For a statistic that resampling pushes to one side, such as a mean of absolute errors: the percentiles of its
    resamples may lie beside the value. See Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 10.2.

    Parameters
    ----------
    value : float
        Of the statistic on the records themselves.
    samples : float64, shape (resamples,)
    """
    finite = samples[np.isfinite(samples)]
    return float(finite.mean()) - value if len(finite) else 0.0


def bootstrap_mean(values: NDArray[np.float64], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the weighted mean of per-record values in every resample; records without a value (NaN) are left out.

    Parameters
    ----------
    values : float64, shape (n,)
    weights : float32, shape (n, resamples)

    Returns
    -------
    float64, shape (resamples,)
    """
    kept = np.isfinite(values)
    total = weights[kept].sum(axis=0, dtype=np.float64)
    weighted = values[kept] @ weights[kept].astype(np.float64)
    return np.asarray(np.divide(weighted, total, out=np.full(total.shape, np.nan), where=total > 0))


def bootstrap_auroc(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the AUROC of every label in every resample.

    The records are sorted once a label; a resample then costs one cumulative sum. With the weights ``w`` of a resample,
    AUROC is the sum over positives of ``w`` times the weight of the negatives scored lower, plus half of those tied,
    over the product of the weights of positives and negatives.

    Parameters
    ----------
    labels : bool, shape (n, labels)
    scores : floating, shape (n, labels)
    weights : float32, shape (n, resamples)

    Returns
    -------
    float64, shape (resamples, labels)
        NaN where the resample lost all positives or all negatives of the label, so that a mean can leave it out.
    """
    found = np.full((weights.shape[1], labels.shape[1]), np.nan)
    for column in range(labels.shape[1]):
        order = np.argsort(scores[:, column], kind="stable")
        ordered, positive = scores[order, column], labels[order, column]
        first = np.searchsorted(ordered, ordered[positive], side="left")
        behind = np.searchsorted(ordered, ordered[positive], side="right")
        for start in range(0, weights.shape[1], _BLOCK):
            block = weights[order, start : start + _BLOCK]
            below = np.zeros((len(order) + 1, block.shape[1]), np.float32)
            np.cumsum(np.where(positive[:, None], np.float32(0), block), axis=0, out=below[1:])
            positive_weight = block[positive].astype(np.float64)
            wins = (positive_weight * (below[first] + below[behind])).sum(axis=0) / 2
            pairs = positive_weight.sum(axis=0) * below[-1]
            np.divide(wins, pairs, out=found[start : start + _BLOCK, column], where=pairs > 0)
    return found


def mean_of_labels(samples: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over the kept labels in every resample, leaving out the labels that the resample lost.

    Parameters
    ----------
    samples : float64, shape (resamples, labels)
    kept : bool, shape (labels,)

    Returns
    -------
    float64, shape (resamples,)
    """
    chosen = samples[:, kept]
    present = np.isfinite(chosen)
    count = present.sum(axis=1)
    total = np.where(present, chosen, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(len(chosen), np.nan), where=count > 0))
