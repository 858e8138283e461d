"""From one ECG to log-odds: linear heads on the tower's features, and on embeddings that a corpus stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.prediction.calibration import LogitMap


@dataclass(frozen=True)
class SingleHead:
    """Linear heads on the tower's features.

    Member 0 is fitted on all training patients and gives the log-odds. The further members, fitted on random draws of
    the patients, give the spread: on fold 8 their mean ranked slightly worse and was under-confident.

    Attributes
    ----------
    weight : float32, shape (members, features, labels)
    bias : float32, shape (members, labels)
    calibration : LogitMap
        From member 0's log-odds to calibrated ones.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    calibration: LogitMap

    def logits(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return calibrated log-odds, and their spread.

        Parameters
        ----------
        features : float32, shape (n, features)

        Returns
        -------
        logits : float64, shape (n, labels)
        spread : float64, shape (n, labels)
            Standard deviation of the members' log-odds.
        """
        members = (features @ self.weight + self.bias[:, None, :]).astype(np.float64)
        return self.calibration.apply(members[0]), np.asarray(members.std(axis=0), np.float64)


@dataclass(frozen=True)
class EmbeddingHead:
    """A linear head on the stored embedding of an earlier study, whose features are not kept.

    Attributes
    ----------
    weight : float32, shape (dim, labels)
    bias : float32, shape (labels,)
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return log-odds: float64, shape (n, labels), of embeddings float32, shape (n, dim), unit norm."""
        return np.asarray(embedding @ self.weight + self.bias, np.float64)
