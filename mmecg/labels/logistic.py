"""Regularised logistic regression for many labels at once, and decision thresholds.

The labels are independent regressions that share their matrix products. Records with the same features are merged, so
that a corpus in which statements repeat costs what its distinct reports cost. The objective is

    sum over records and labels of cross-entropy  +  penalty / 2 * sum of squared weights

with a free intercept a label, solved by L-BFGS; tests compare it with ``sklearn.linear_model.LogisticRegression``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError

_ITERATIONS = 80
_RESAMPLES = 50
_LEAST = 1e-6


def fit_logistic(
    inputs: Any, labels: NDArray[np.bool_], *, penalty: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit all labels.

    Parameters
    ----------
    inputs : scipy.sparse.csr_matrix, shape (n, features)
    labels : bool, shape (n, labels)
    penalty : float

    Returns
    -------
    weight : float32, shape (features, labels)
    bias : float32, shape (labels,)
    """
    from scipy.optimize import minimize

    matrix, positives, trials = _merge(inputs, labels)
    transposed = matrix.T.tocsr()
    rate = (positives.sum(axis=0) + 0.5) / (trials.sum() + 1.0)
    base = logit(rate).astype(np.float32)
    shape = (matrix.shape[1] + 1, labels.shape[1])

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = flat.reshape(shape)
        single = parameters.astype(np.float32)
        loss, residual = cross_entropy(matrix @ single[:-1] + (single[-1] + base), positives, trials)
        slope = (transposed @ residual).astype(np.float64) + penalty * parameters[:-1]
        gradient = np.vstack([slope, residual.sum(axis=0, dtype=np.float64)])
        return loss + float(penalty / 2 * np.square(parameters[:-1]).sum()), gradient.ravel()

    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": 10, "ftol": 1e-7}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    return found[:-1].astype(np.float32), (found[-1] + base).astype(np.float32)


def fit_held_out(
    inputs: Any, labels: NDArray[np.bool_], groups: NDArray[np.generic], *, penalty: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Fit all labels on all records, and score each record by a fit without its group.

    Parameters
    ----------
    inputs : scipy.sparse.csr_matrix, shape (n, features)
    labels : bool, shape (n, labels)
    groups : shape (n,)
        Held out one at a time; all records of a patient must share one.
    penalty : float

    Returns
    -------
    weight : float32, shape (features, labels)
    bias : float32, shape (labels,)
    held_out : float32, shape (n, labels)
        Log-odds of each record from weights that were fitted without its group.

    Raises
    ------
    InvalidInputError
        There are fewer than two groups.
    """
    names = np.unique(groups)
    if len(names) < 2:
        raise InvalidInputError(f"{len(names)} group of records, expected at least 2; give their folds", field="groups")
    held_out = np.empty(labels.shape, np.float32)
    for name in names:
        out = groups == name
        weight, bias = fit_logistic(inputs[~out], labels[~out], penalty=penalty)
        held_out[out] = inputs[out] @ weight + bias
    return *fit_logistic(inputs, labels, penalty=penalty), held_out


def cross_entropy(
    logits: NDArray[np.float32], positives: NDArray[np.float32], trials: NDArray[np.float32] | float
) -> tuple[float, NDArray[np.float32]]:
    """Return the summed cross-entropy and its gradient by the logits.

    Parameters
    ----------
    logits, positives : float32, shape (n, labels)
    trials : float32, shape (n, 1), or float
        Records that a row stands for.
    """
    small = np.exp(-np.abs(logits))
    loss = (trials * (np.maximum(logits, 0) + np.log1p(small)) - positives * logits).sum(dtype=np.float64)
    probability = np.where(logits >= 0, np.float32(1), small) / (1 + small)
    return float(loss), np.asarray(trials * probability - positives, np.float32)


def expit(log_odds: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of log-odds, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(np.asarray(log_odds, np.float64) / 2)))


def logit(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log-odds of probabilities, kept one millionth away from 0 and 1."""
    kept = np.clip(np.asarray(probabilities, np.float64), _LEAST, 1 - _LEAST)
    return np.asarray(np.log(kept / (1 - kept)))


def f1_thresholds(scores: NDArray[np.floating], labels: NDArray[np.bool_], *, seed: int = 0) -> NDArray[np.float32]:
    """Return the score of every label from which on a positive decision gives the best F1.

    The median over resamples of the records: the best threshold of one sample jumps about where positives are few.

    Parameters
    ----------
    scores : floating, shape (n, labels)
        Of records that the scores were not fitted on.
    labels : bool, shape (n, labels)
    seed : int

    Returns
    -------
    float32, shape (labels,)
        Infinite for a label without a positive.
    """
    weights = np.random.default_rng(seed).poisson(1.0, (_RESAMPLES, len(scores)))
    found = np.full(scores.shape[1], np.inf, np.float32)
    for column in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, column], kind="stable")
        ordered, weight = scores[order, column], weights[:, order]
        hits = np.cumsum(weight * labels[order, column], axis=1)
        f1 = 2 * hits / np.maximum(np.cumsum(weight, axis=1) + hits[:, -1:], 1)
        best = f1.argmax(axis=1)
        behind = np.minimum(best + 1, len(ordered) - 1)
        found[column] = np.median((ordered[best] + ordered[behind]) / 2)
    return found


def expected_f1_thresholds(log_odds: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the log-odds of every label from which on a positive decision has the best expected F1.

    The expectation takes the probabilities at their word, so no gold is spent on thresholds.

    Parameters
    ----------
    log_odds : floating, shape (n, labels)
    """
    ordered = -np.sort(-expit(log_odds), axis=0)
    hits = np.cumsum(ordered, axis=0)
    best = (2 * hits / (np.arange(1, len(ordered) + 1)[:, None] + hits[-1])).argmax(axis=0)
    columns = np.arange(ordered.shape[1])
    middle = (ordered[best, columns] + ordered[np.minimum(best + 1, len(ordered) - 1), columns]) / 2
    return logit(middle).astype(np.float32)


def _merge(inputs: Any, labels: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float32], NDArray[np.float32]]:
    """Return the distinct rows, their positives of every label, and how often each occurs (as a column)."""
    from scipy import sparse

    rows = sparse.csr_matrix(inputs, dtype=np.float32)
    rows.sum_duplicates()
    first: dict[bytes, int] = {}
    group = np.empty(rows.shape[0], np.int64)
    kept: list[int] = []
    for row in range(rows.shape[0]):
        here = slice(rows.indptr[row], rows.indptr[row + 1])
        key = rows.indices[here].tobytes() + b"|" + rows.data[here].tobytes()
        if key not in first:
            first[key] = len(kept)
            kept.append(row)
        group[row] = first[key]
    positives = np.zeros((len(kept), labels.shape[1]), np.float32)
    np.add.at(positives, group, labels)
    return rows[kept], positives, np.bincount(group, minlength=len(kept)).astype(np.float32)[:, None]
