"""A recording in some two hundred numbers, for what tells an ordinary ECG from another: NumPy, a fraction of a ms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.prediction.beats import INDEPENDENT, RATE_HZ, find_beats
from mmecg.quality import quantiles

LONGEST_S = 10.0
"""Of a longer recording the middle is looked at."""

EDGES_S = (
    *(-0.32, -0.28, -0.24, -0.20, -0.16, -0.12, -0.08, -0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.08),
    *(0.12, 0.16, 0.20, 0.24, 0.28, 0.32, 0.36, 0.40, 0.44, 0.48),
)
"""Edges of the parts of a beat around the steepest place of QRS: finer in QRS than in P and T."""

BANDS_HZ = (0.5, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0)

_EDGES = np.round(np.array(EDGES_S) * RATE_HZ).astype(np.int64)
_PARTS = len(_EDGES) - 1
_GOLDBERGER = ((2, (-1, 1)), (3, (-0.5, -0.5)), (4, (1, -0.5)), (5, (-0.5, 1)))  # lead: its share of I and of II

OF_LEAD = np.concatenate([np.repeat(INDEPENDENT, _PARTS), [2, 3, 4, 5], INDEPENDENT, np.full(6 + len(BANDS_HZ), -1)])
"""The lead that each number belongs to, -1 for numbers of the whole recording: int64, shape (summary,)."""

_MIDDLES_S = (np.array(EDGES_S[:-1]) + np.array(EDGES_S[1:])) / 2
_WIDTHS = np.sqrt(np.diff(EDGES_S))
_QRS = np.abs(_MIDDLES_S) < 0.09
_WAVES = ((_MIDDLES_S > -0.25) & (_MIDDLES_S < -0.09), _QRS, _MIDDLES_S > 0.12)  # P, QRS, T
_PAIRS = ((0, 6), (0, 7), (1, 6), (1, 7), (0, 2), (1, 2), (0, 1))  # of independent leads: I-V5, I-V6, II-V5, … I-II

ALIGNED = len(_WAVES) * len(_PAIRS)
"""Length of :func:`align`."""


def align(summary: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return whether limb and chest leads point the same way: float32, shape (n, 21), -1 to 1, NaN without the leads.

    Cosines between the P waves of I and V5, I and V6, II and V5, II and V6, I and V1, II and V1, I and II; then between
    their QRS complexes, and their T waves. In a right axis I may point down, but then V6 mostly does too, or P stands
    up; in exchanged arms I is the mirror image of V6.

    Parameters
    ----------
    summary : float32, shape (n, summary)
        Of :func:`summarise`.
    """
    beats = _beats_of(summary)
    first, second = np.array(_PAIRS).T
    found = []
    for wave in _WAVES:
        shape = beats[:, :, wave] * _WIDTHS[wave]
        if wave is not _QRS:
            shape = shape - shape.mean(axis=2, keepdims=True)
        shape = shape / (np.sqrt(np.square(shape).sum(axis=2, keepdims=True)) + 1e-3)
        found.append((shape[:, first] * shape[:, second]).sum(axis=2))
    return np.concatenate(found, axis=1).astype(np.float32)


def points_right(summary: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether the QRS complex points to the right, down in lead I on the whole: bool, shape (n,)."""
    return np.asarray((_beats_of(summary)[:, 0, _QRS] * _WIDTHS[_QRS] ** 2).sum(axis=1) < 0)


def _beats_of(summary: NDArray[np.float32]) -> NDArray[np.float32]:
    return summary[:, : len(INDEPENDENT) * _PARTS].reshape(-1, len(INDEPENDENT), _PARTS)


def summarise(ecg: Ecg) -> NDArray[np.float32]:
    """Return a summary of a recording: float32, shape (summary,); NaN where a lead was not recorded.

    The median beat of the eight independent leads over its highest peak; how far III, aVR, aVL and aVF are from what
    I and II say; each lead's share of the signal; then of the whole recording its size, the spread of the beats about
    their median, the number of beats per second, the mean and the spread of their intervals, the height of the beat,
    and the shares of power in bands. Sizes are logarithms.
    """
    if ecg.duration_s > LONGEST_S:
        ecg = ecg.crop((ecg.duration_s - LONGEST_S) / 2, LONGEST_S)
    signal = ecg.resample(RATE_HZ).signal
    signal = signal - quantiles(signal, 0.5)[0][:, None]
    leads = signal[INDEPENDENT]
    rms = np.sqrt(np.mean(leads**2, axis=1))
    size = float(np.sqrt(np.sum(rms**2))) + 1e-3
    beats = find_beats(leads)
    shape, spread = _median_beat(leads, beats)
    peak = float(np.abs(shape).max()) + 1e-3
    intervals = np.diff(beats) / RATE_HZ
    mean = float(intervals.mean()) if len(intervals) else 0.0
    whole = [
        np.log10(size),
        spread / size,
        len(beats) * RATE_HZ / signal.shape[1],
        mean,
        np.log10((float(intervals.std()) / mean if len(intervals) > 1 else 1.0) + 0.01),
        peak / size,
    ]
    parts = [(shape / peak).ravel(), _limb_residuals(signal), np.log10(rms + 1e-3) - np.log10(size), whole]
    summary = np.concatenate([*parts, _band_shares(leads)]).astype(np.float32)
    summary[~np.append(ecg.lead_mask, True)[OF_LEAD]] = np.nan  # -1 is the appended True
    if not ecg.lead_mask[:2].all():
        summary[np.isin(OF_LEAD, [lead for lead, _ in _GOLDBERGER])] = np.nan
    return summary


def _median_beat(leads: NDArray[np.float32], beats: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return the median beat, float64, shape (leads, parts), mV, and the root mean square of the beats about it."""
    whole = beats[(beats + _EDGES[0] >= 0) & (beats + _EDGES[-1] < leads.shape[1])]
    if not len(whole):
        return np.zeros((len(leads), _PARTS)), 0.0
    total = np.concatenate([np.zeros((len(leads), 1)), np.cumsum(leads, axis=1, dtype=np.float64)], axis=1)
    each = np.diff(total[:, whole[:, None] + _EDGES], axis=2) / np.diff(_EDGES)  # (leads, beats, parts)
    shape = np.median(each, axis=1)
    spread = float(np.sqrt(np.mean((each - shape[:, None]) ** 2)))
    return shape - np.median(shape, axis=1, keepdims=True), spread


def _limb_residuals(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far III, aVR, aVL, aVF are from Einthoven's and Goldberger's laws: log10 of the share, (4,)."""
    limb = signal[: len(LEADS) // 2]
    size = float(np.sqrt(np.mean(limb**2))) + 1e-3
    residuals = [limb[lead] - i * limb[0] - ii * limb[1] for lead, (i, ii) in _GOLDBERGER]
    return np.asarray(np.log10(np.clip(np.sqrt(np.mean(np.square(residuals), axis=1)) / size, 0.05, 2.0)))


def _band_shares(leads: NDArray[np.float32]) -> NDArray[np.float64]:
    power = (np.abs(np.fft.rfft(leads, axis=1)) ** 2).sum(axis=0)
    band = np.searchsorted(BANDS_HZ, np.fft.rfftfreq(leads.shape[1], 1 / RATE_HZ))
    sums = np.bincount(band, power, minlength=len(BANDS_HZ) + 1)[: len(BANDS_HZ)]
    return np.asarray(np.log10(sums / (sums.sum() + 1e-9) + 1e-5))
