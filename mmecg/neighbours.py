"""k-nearest-neighbour label transfer: cosine neighbours vote with a weight that grows with their similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 50
VOTE_TEMPERATURE = 0.05
"""A neighbour's vote is proportional to ``exp(cosine / 0.05)``. Fixed, not tuned on any fold."""

VOTE_FLOOR = 0.003
"""Keeps the log-odds of a vote finite where nobody, or everybody, votes for a label."""

_BLOCK = 512


def knn_scores(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    corpus_labels: NDArray[np.bool_] | NDArray[np.floating],
    *,
    k: int = NEIGHBOURS,
) -> NDArray[np.float64]:
    """Return the share of the votes of the ``k`` nearest corpus entries that each label gets.

    Parameters
    ----------
    queries : float32, shape (queries, dim), unit norm
    corpus : float32, shape (corpus, dim), unit norm
    corpus_labels : bool or floating, shape (corpus, labels)
        Gold, or the probabilities of mined labels.
    k : int

    Returns
    -------
    float64, shape (queries, labels)
        0 to 1.
    """
    k = min(k, len(corpus))
    labels = corpus_labels.astype(np.float64)
    found = np.empty((len(queries), labels.shape[1]))
    for start in range(0, len(queries), _BLOCK):
        similarity = queries[start : start + _BLOCK] @ corpus.T
        nearest = np.argpartition(similarity, len(corpus) - k, axis=1)[:, len(corpus) - k :]
        closeness = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        votes = vote_weights(closeness)
        found[start : start + _BLOCK] = np.einsum("qk,qkl->ql", votes, labels[nearest])
    return found


def vote_weights(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much each neighbour's vote weighs: a softmax over the last axis, at :data:`VOTE_TEMPERATURE`.

    Parameters
    ----------
    cosines : float64, shape (…, k)

    Returns
    -------
    float64, shape (…, k)
        Sums to 1 over the last axis.
    """
    weights = np.exp((cosines - cosines.max(axis=-1, keepdims=True)) / VOTE_TEMPERATURE)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float64)


def vote_logits(shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log-odds of shares of a vote, kept finite by a floor of :data:`VOTE_FLOOR`: float64, of the same shape."""
    given = np.asarray(shares, np.float64)
    return np.asarray(np.log((given + VOTE_FLOOR) / (1 - given + VOTE_FLOOR)), np.float64)
