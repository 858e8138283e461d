"""A recording as it is read beside the tower: quality, beats, and the summary that the novelty detector looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.prediction.answer import poor_leads
from mmecg.prediction.measure import Reading, read_beats
from mmecg.prediction.waveform import summarise
from mmecg.quality import QualityFinding, assess_quality

EXAMINERS = 2
"""Threads that examine recordings while the tower encodes them: half of a prediction's arithmetic."""


@dataclass(frozen=True, eq=False)
class Examined:
    """What was found.

    Attributes
    ----------
    quality : tuple of QualityFinding
    reading : Reading
        Of the leads that are neither flat nor saturated nor noisy.
    summary : float32, shape (summary,)
    """

    quality: tuple[QualityFinding, ...]
    reading: Reading
    summary: NDArray[np.float32]


def examine(ecg: Ecg) -> Examined:
    """Examine a recording."""
    quality = assess_quality(ecg)
    return Examined(quality, read_beats(ecg, unreadable=poor_leads(quality)), summarise(ecg))
