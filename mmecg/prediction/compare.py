"""Which leads look different from an earlier recording of the same subject: median beats side by side.

Beats are found where all recorded leads change fastest together; a lead's median beat is the median of its beats, each
above its own median. The two recordings are aligned once for all leads. A lead counts as changed if the root mean
square of the difference of its median beats is above :data:`CHANGED_MV` and above :data:`CHANGED_SHARE` of the greater
of the two beats. This points at leads for a reader; it is no measurement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg

RATE_HZ = 100.0
BEFORE_S, AFTER_S = 0.25, 0.45
REFRACTORY_S = 0.3
PEAK_SHARE = 0.4
"""Of the steepest slope: beats of a QRS smaller than the largest one are found, T waves are not."""

MAX_SHIFT = 5
CHANGED_MV = 0.12
CHANGED_SHARE = 0.5


def changed_leads(now: Ecg, before: Ecg) -> dict[str, float]:
    """Return the leads that changed, with the root mean square of the difference in mV, greatest first.

    Empty if one of the recordings has no beat that can be told.
    """
    beats = [median_beats(ecg) for ecg in (now, before)]
    if beats[0] is None or beats[1] is None:
        return {}
    both = now.lead_mask & before.lead_mask
    inner = slice(MAX_SHIFT, -MAX_SHIFT)
    shifted = [np.roll(beats[1], shift, axis=1)[:, inner] for shift in range(-MAX_SHIFT, MAX_SHIFT + 1)]
    fixed = beats[0][:, inner]
    best = min(shifted, key=lambda other: float(np.square((fixed - other)[both]).sum()))
    difference, size = _rms(fixed - best), np.maximum(_rms(fixed), _rms(best))
    changed = both & (difference > CHANGED_MV) & (difference > CHANGED_SHARE * size)
    order = np.argsort(-difference, kind="stable")
    return {LEADS[lead]: float(difference[lead]) for lead in order if changed[lead]}


def median_beats(ecg: Ecg) -> NDArray[np.float32] | None:
    """Return the median beat of each lead: float32, shape (leads=12, samples), mV at 100 Hz; None without a beat."""
    signal = ecg.resample(RATE_HZ).signal
    left, right = round(BEFORE_S * RATE_HZ), round(AFTER_S * RATE_HZ)
    inside = [peak for peak in find_beats(signal) if left <= peak <= signal.shape[1] - right]
    if not inside:
        return None
    beats = np.stack([signal[:, peak - left : peak + right] for peak in inside])
    beats -= np.median(beats, axis=2, keepdims=True)
    return np.asarray(np.median(beats, axis=0), np.float32)


def find_beats(signal: NDArray[np.float32]) -> list[int]:
    """Return the samples at which beats are, of float32, shape (leads=12, samples), mV at 100 Hz."""
    slope = np.sqrt(np.square(np.diff(signal, axis=1, prepend=signal[:, :1])).sum(axis=0))
    smooth = np.convolve(slope, np.ones(8) / 8, mode="same")
    limit = PEAK_SHARE * float(np.percentile(smooth, 98))
    found: list[int] = []
    for peak in np.argsort(-smooth, kind="stable"):
        if smooth[peak] <= limit:
            break
        if all(abs(int(peak) - other) > REFRACTORY_S * RATE_HZ for other in found):
            found.append(int(peak))
    return sorted(found)


def _rms(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(signal, dtype=np.float64).mean(axis=1)))
