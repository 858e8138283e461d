"""Votes of similar studies of other subjects, added to the log-odds of one ECG."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mmecg.neighbours import vote_logits

FULL_STUDIES = 2000
"""Labelled studies of other subjects from which on a vote has its full weight: fewer vote at the root of their share.

On fold 8 of PTB-XL no random corpus of 50 to 2,000 studies did worse than the ECG alone that way, at full weight those
of 50 to 300 did.
"""


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

    def apply(
        self, logits: NDArray[np.float64], votes: NDArray[np.floating], studies: int = FULL_STUDIES
    ) -> NDArray[np.float64]:
        """Join.

        Parameters
        ----------
        logits : float64, shape (n, labels)
            Of the ECG alone.
        votes : floating, shape (n, labels)
            Share of the vote of the :attr:`k` nearest studies of other subjects, 0 to 1, as
            :func:`mmecg.neighbours.knn_scores` gives it.
        studies : int
            Labelled studies of other subjects, of which these are the nearest.

        Returns
        -------
        float64, shape (n, labels)
        """
        joined = np.asarray(self.weight[0] * logits + self.weight[1] * vote_logits(votes) + self.bias, np.float64)
        if studies >= FULL_STUDIES:
            return joined
        return np.asarray(logits + sqrt(studies / FULL_STUDIES) * (joined - logits))
