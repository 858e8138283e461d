"""Ranking and classification metrics: vectorised, with ties and duplicates handled by a stated rule.

Glossary of axes: ``n`` records, ``labels``, ``queries``, ``corpus``. Everything here is NumPy; the intervals are in
:mod:`mmecg.evaluation.bootstrap`.

* **AUROC** counts a tie between a positive and a negative as half (midranks), as ``sklearn.metrics.roc_auc_score``.
* **AUPRC** is average precision with tied scores entering together, as ``sklearn.metrics.average_precision_score``.
* **recall@k** is the share of queries with a hit among the first ``k``. Every relevant entry is a hit, so records that
  share one text are hits of each other. A tie is resolved *against* the system: an encoder that gives everything the
  same score recalls nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import rankdata

MIN_POSITIVES = 10
"""A label enters the reduced macro mean only with this many positives; below, its AUROC is mostly noise."""


def auroc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of every label.

    Parameters
    ----------
    labels : bool, shape (n, labels)
    scores : floating, shape (n, labels)

    Returns
    -------
    float64, shape (labels,)
        NaN where a label has no positive or no negative.
    """
    ranks = rankdata(scores, axis=0)
    positives = labels.sum(axis=0).astype(np.float64)
    negatives = len(labels) - positives
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = np.where(labels, ranks, 0.0).sum(axis=0) - positives * (positives + 1) / 2
        return np.asarray(wins / (positives * negatives), np.float64)


def auprc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the average precision of every label.

    Parameters
    ----------
    labels : bool, shape (n, labels)
    scores : floating, shape (n, labels)

    Returns
    -------
    float64, shape (labels,)
        NaN where a label has no positive.
    """
    found = np.full(labels.shape[1], np.nan)
    for column in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, column], kind="stable")
        ordered = scores[order, column]
        last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        hits = np.cumsum(labels[order, column])[last_of_tie]
        precision = hits / (last_of_tie + 1)
        found[column] = float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])
    return found


def macro(
    values: NDArray[np.float64], labels: NDArray[np.bool_], *, min_positives: int = MIN_POSITIVES
) -> tuple[float, int]:
    """Return the mean over the labels that have a value and at least ``min_positives`` positives, and their number.

    Parameters
    ----------
    values : float64, shape (labels,)
    labels : bool, shape (n, labels)
    min_positives : int

    Returns
    -------
    mean : float
        NaN if no label is left.
    count : int
    """
    kept = eligible(labels, min_positives=min_positives) & np.isfinite(values)
    return (float(values[kept].mean()) if kept.any() else math.nan), int(kept.sum())


def eligible(labels: NDArray[np.bool_], *, min_positives: int = MIN_POSITIVES) -> NDArray[np.bool_]:
    """Return which labels have at least ``min_positives`` positives and a negative: bool, shape (labels,)."""
    positives = labels.sum(axis=0)
    return np.asarray((positives >= max(1, min_positives)) & (positives < len(labels)), np.bool_)


def top_k(
    scores: NDArray[np.floating], k: int, *, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the columns of the best ``k`` allowed entries of each query, best first, ties by column.

    Parameters
    ----------
    scores : floating, shape (queries, corpus)
    k : int
    allowed : bool, shape (queries, corpus), optional

    Returns
    -------
    columns : int64, shape (queries, min(k, corpus))
    valid : bool, same shape
        False where fewer than ``k`` entries are allowed.
    """
    masked = scores if allowed is None else np.where(allowed, scores, -np.inf)
    k = min(k, masked.shape[1])
    columns = np.argsort(-masked, axis=1, kind="stable")[:, :k].astype(np.int64)
    if allowed is None:
        return columns, np.ones(columns.shape, np.bool_)
    return columns, np.take_along_axis(allowed, columns, axis=1)


def precision_at_k(
    scores: NDArray[np.floating],
    relevant: NDArray[np.bool_],
    k: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the share of relevant entries among the best ``k`` allowed ones of each query.

    Parameters
    ----------
    scores : floating, shape (queries, corpus)
    relevant : bool, shape (queries, corpus)
    k : int
    allowed : bool, shape (queries, corpus), optional

    Returns
    -------
    float64, shape (queries,)
        Divided by the number of entries that were allowed if that is below ``k``; NaN if none was.
    """
    columns, valid = top_k(scores, k, allowed=allowed)
    hits = (np.take_along_axis(relevant, columns, axis=1) & valid).sum(axis=1)
    return _ratio(hits, valid.sum(axis=1))


def ndcg_at_k(
    scores: NDArray[np.floating],
    gains: NDArray[np.floating],
    k: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the normalised discounted cumulative gain of each query, with linear gains and log2 discounts.

    Järvelin & Kekäläinen, ACM TOIS 20(4), 2002. The ideal order is the best possible one among the allowed entries.

    Parameters
    ----------
    scores : floating, shape (queries, corpus)
    gains : floating, shape (queries, corpus)
        Graded relevance, not negative; see :func:`jaccard`.
    k : int
    allowed : bool, shape (queries, corpus), optional

    Returns
    -------
    float64, shape (queries,)
        NaN where no allowed entry has a positive gain.
    """
    columns, valid = top_k(scores, k, allowed=allowed)
    found = np.where(valid, np.take_along_axis(gains, columns, axis=1), 0.0)
    discounts = _discounts(columns.shape[1])
    return _ratio(found @ discounts, _ideal_gains(gains, k, allowed) @ discounts)


def recall_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return 1 for each query with a relevant entry among the best ``k``, else 0; ties count against the system.

    Parameters
    ----------
    scores : floating, shape (queries, corpus)
    relevant : bool, shape (queries, corpus)
    k : int

    Returns
    -------
    float64, shape (queries,)
        NaN where a query has no relevant entry.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=1)
    before = ((scores >= best[:, None]) & ~relevant).sum(axis=1)
    return np.where(relevant.any(axis=1), (before < k).astype(np.float64), np.nan)


def expected_precision(relevant: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the precision that a random order is expected to have, per query: the share of relevant allowed entries.

    Parameters
    ----------
    relevant, allowed : bool, shape (queries, corpus)

    Returns
    -------
    float64, shape (queries,)
    """
    return _ratio((relevant & allowed).sum(axis=1), allowed.sum(axis=1))


def expected_ndcg(gains: NDArray[np.floating], k: int, *, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the nDCG@k that a random order is expected to have, per query.

    Parameters
    ----------
    gains : floating, shape (queries, corpus)
    k : int
    allowed : bool, shape (queries, corpus)

    Returns
    -------
    float64, shape (queries,)
    """
    discounts = _discounts(min(k, gains.shape[1]))
    mean_gain = _ratio(np.where(allowed, gains, 0.0).sum(axis=1), allowed.sum(axis=1))
    reachable = np.minimum(allowed.sum(axis=1), len(discounts))
    spent = np.concatenate([[0.0], np.cumsum(discounts)])[reachable]
    return _ratio(mean_gain * spent, _ideal_gains(gains, k, allowed) @ discounts)


def expected_recall(relevant_count: NDArray[np.int64], corpus: int, k: int) -> NDArray[np.float64]:
    """Return the recall@k that a random order is expected to have: one minus the hypergeometric chance of no hit.

    Parameters
    ----------
    relevant_count : int64, shape (queries,)
        Relevant entries of each query, of ``corpus`` in all.
    corpus, k : int

    Returns
    -------
    float64, shape (queries,)
    """
    k = min(k, corpus)
    others = np.asarray(corpus - relevant_count, np.float64)
    room = others >= k
    safe = np.where(room, others, k)
    log_miss = (gammaln(safe + 1) - gammaln(safe - k + 1)) - (gammaln(corpus + 1) - gammaln(corpus - k + 1))
    return np.asarray(1.0 - np.where(room, np.exp(log_miss), 0.0), np.float64)


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the Jaccard index of every pair of label sets; two empty sets have none in common and score 0.

    Parameters
    ----------
    first : bool, shape (queries, labels)
    second : bool, shape (corpus, labels)

    Returns
    -------
    float32, shape (queries, corpus)
    """
    a, b = first.astype(np.float32), second.astype(np.float32)
    both = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - both
    return np.asarray(both / np.maximum(either, 1), np.float32)


def _discounts(k: int) -> NDArray[np.float64]:
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)), np.float64)


def _ideal_gains(gains: NDArray[np.floating], k: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.floating]:
    usable = gains if allowed is None else np.where(allowed, gains, 0.0)
    k = min(k, gains.shape[1])
    best = np.partition(usable, gains.shape[1] - k, axis=1)[:, gains.shape[1] - k :]
    return np.asarray(-np.sort(-best, axis=1))


def _ratio(numerator: NDArray[np.generic], denominator: NDArray[np.generic]) -> NDArray[np.float64]:
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))
