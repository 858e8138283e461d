"""Votes of similar studies of other subjects, added to the log-odds of one ECG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.neighbours import vote_logits


@dataclass(frozen=True)
class CohortHead:
    """Log-odds of the ECG and of its neighbours' vote, joined linearly.

    Attributes
    ----------
    weight : float32, shape (2, labels)
        Of the ECG's log-odds and of the vote's.
    bias : float32, shape (labels,)
    k : int
        Neighbours that vote.
    minimum_studies : float
        Labelled studies of other subjects that a corpus must have for a vote.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    k: int
    minimum_studies: float

    def apply(self, logits: NDArray[np.float64], votes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Join.

        Parameters
        ----------
        logits : float64, shape (n, labels)
            Of the ECG alone.
        votes : floating, shape (n, labels)
            Share of the vote of the :attr:`k` nearest studies of other subjects, 0 to 1, as
            :func:`mmecg.neighbours.knn_scores` gives it.

        Returns
        -------
        float64, shape (n, labels)
        """
        return np.asarray(self.weight[0] * logits + self.weight[1] * vote_logits(votes) + self.bias, np.float64)
