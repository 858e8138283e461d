"""What every protocol of an evaluation shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.evaluation.cohort import Cohort


@dataclass(frozen=True)
class Setting:
    """The records and the resamples.

    Attributes
    ----------
    train : Cohort, optional
        Records for probes and neighbours; None if the folder lacks them.
    test : Cohort
    weights : float32, shape (n, resamples)
        Bootstrap weights of the test records.
    seed : int
    supervision : str
        What the encoder was trained on, in words.
    """

    train: Cohort | None
    test: Cohort
    weights: NDArray[np.float32]
    seed: int = 0
    supervision: str = ""
