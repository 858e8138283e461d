"""Age, sex and body measures, added to the log-odds of one ECG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.vitals import Vitals

CHANNELS: tuple[str, ...] = (
    "age_known", "age", "age_squared", "sex_known", "female", "age_female", "height_known", "height", "weight_known",
    "weight",
)  # fmt: skip
"""What the head reads. A vital that is missing leaves its channels at 0; no other vitals were seen in fitting."""

_AGE, _HEIGHT, _WEIGHT = (60.0, 17.0), (168.0, 10.0), (73.0, 15.0)
"""Middle and unit of each scale: years, cm, kg; about mean and standard deviation in PTB-XL."""

_REACH = 4.0


@dataclass(frozen=True)
class VitalsHead:
    """What vitals add, label by label; nothing where none of :data:`CHANNELS` is known.

    Attributes
    ----------
    weight : float32, shape (channels, labels)
        In the order of :data:`CHANNELS`; beside an ECG.
    alone : float32, shape (channels, labels)
        Without one, beside the prevalence.
    """

    weight: NDArray[np.float32]
    alone: NDArray[np.float32]

    def apply(self, logits: NDArray[np.float64], channels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Add the vitals to log-odds.

        Parameters
        ----------
        logits : float64, shape (n, labels)
            Calibrated, of the ECG alone.
        channels : float32, shape (n, channels)
            Of :func:`vitals_channels`.

        Returns
        -------
        float64, shape (n, labels)
            A row without vitals keeps its log-odds bit by bit.
        """
        return np.asarray(logits + (channels @ self.weight).astype(np.float64), np.float64)

    def apply_alone(self, prevalence: NDArray[np.float64], channels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Add the vitals to the log-odds of prevalence, without an ECG: float64, shape (n, labels)."""
        return np.asarray(prevalence + (channels @ self.alone).astype(np.float64), np.float64)


def vitals_channels(vitals: Sequence[Vitals]) -> NDArray[np.float32]:
    """Return what :class:`VitalsHead` reads of vitals: float32, shape (n, channels)."""
    rows = []
    for one in vitals:
        age, height, weight = (
            0.0 if value is None else min(max((value - middle) / unit, -_REACH), _REACH)
            for value, (middle, unit) in ((one.age_years, _AGE), (one.height_cm, _HEIGHT), (one.weight_kg, _WEIGHT))
        )
        female = 0.0 if one.sex is None else 0.5 if one.sex == "female" else -0.5
        known = [float(value is not None) for value in (one.age_years, one.sex, one.height_cm, one.weight_kg)]
        rows.append([known[0], age, age**2, known[1], female, age * female, known[2], height, known[3], weight])
    return np.array(rows, np.float32).reshape(len(rows), len(CHANNELS))
