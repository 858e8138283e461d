"""What a reader of an ECG, or of its embedding, should know about the recording. Findings are reported, never repaired.

Rules, by kind (a lead counts as present if ``lead_mask`` says so; all other rules look at present leads only):

``missing_lead``
    The lead was not recorded.
``flat``
    In some window of 2 s the lead moves by less than 10 µV: the resolution that AHA/ACC/HRS 2007 (Kligfield et al.,
    Circulation 115:1306) asks of digital recorders, while a beating heart moves every connected lead by more.
``saturated``
    The lead stays at exactly its highest or lowest value for 40 ms or longer, 0.5 mV or more away from its median: the
    top of a QRS complex or T wave is never that level, a clipped amplifier is. Flat leads are not reported again.
``noise``
    Steady muscle or contact noise: even the quietest tenth of the 0.2 s windows has a root mean square between 30 and
    45 Hz above :data:`NOISE_MV`; those windows lie between the beats. Needs a sampling rate of 90 Hz. Short bursts are
    not found, and at 100 Hz neither is mains hum.
``baseline_wander``
    The component below 0.5 Hz (AHA/ACC/HRS 2007: no ECG content below the heart rate) spans more than
    :data:`WANDER_MV` between its 5th and 95th percentile.
``einthoven_mismatch``
    The limb leads contradict Einthoven's law (II = I + III) or Goldberger's (aVR = -(I + II) / 2, aVL = (I - III) / 2,
    aVF = (II + III) / 2): the root mean square of the contradiction is above a third of that of the leads. This
    cannot come from the heart or from exchanged electrodes, only from wrong names, units, polarity or timing.
``lead_swap``
    Augmented leads whose *names* are exchanged: each fits the formula of another one.
``limb_reversal``
    Suspected exchange of the arm electrodes: lead I is the mirror image of V6 (correlation below -0.75) and aVR is
    mainly positive (Kligfield et al. 2007; Batchvarov et al., Europace 9:1081, 2007). Dextrocardia looks alike.

The two thresholds in mV were set on PTB-XL so that they fire rarely on records without a noise remark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg

QUALITY_KINDS: tuple[str, ...] = (
    "missing_lead", "flat", "saturated", "noise", "baseline_wander", "einthoven_mismatch", "lead_swap", "limb_reversal"
)  # fmt: skip

FLAT_WINDOW_S = 2.0
FLAT_MV = 0.010
CLIP_S = 0.040
CLIP_MV = 0.5
NOISE_BAND_HZ = (30.0, 45.0)
NOISE_WINDOW_S = 0.2
NOISE_MV = 0.015
WANDER_HZ = 0.5
WANDER_MV = 0.60
EINTHOVEN_SHARE = 0.33
REVERSAL_CORRELATION = -0.75

_TOGETHER = 100_000
"""Samples that are assessed in one go: what a call costs is shared, and they still fit the processor's cache."""

_Signal = NDArray[np.float32]


@dataclass(frozen=True)
class QualityFinding:
    """One finding.

    Attributes
    ----------
    kind : str
        One of :data:`QUALITY_KINDS`.
    leads : tuple of str
        The leads concerned.
    detail : str
        The measured number of the worst lead beside its limit.
    """

    kind: str
    leads: tuple[str, ...]
    detail: str


def assess_quality(ecg: Ecg) -> tuple[QualityFinding, ...]:
    """Return the quality findings of a recording by the rules of the module docstring. Never raises.

    Parameters
    ----------
    ecg : Ecg

    Returns
    -------
    tuple of QualityFinding
        At most one of each kind, in the order of :data:`QUALITY_KINDS`; empty if nothing was found.
    """
    return assess_each([ecg])[0]


def assess_each(ecgs: Sequence[Ecg]) -> list[tuple[QualityFinding, ...]]:
    """Return what :func:`assess_quality` says of each recording; those of one length and rate share their arithmetic.

    Parameters
    ----------
    ecgs : sequence of Ecg
    """
    alike: dict[tuple[int, float], list[int]] = {}
    for place, ecg in enumerate(ecgs):
        alike.setdefault((ecg.signal.shape[1], ecg.sampling_rate_hz), []).append(place)
    found: list[tuple[QualityFinding, ...]] = [()] * len(ecgs)
    for (samples, rate), places in alike.items():
        step = max(1, _TOGETHER // (len(LEADS) * samples))
        for start in range(0, len(places), step):
            part = places[start : start + step]
            signals = np.stack([ecgs[place].signal for place in part])
            for place, findings in zip(
                part, _assess(signals, np.stack([ecgs[place].lead_mask for place in part]), rate), strict=True
            ):
                found[place] = findings
    return found


def quality_kinds(ecg: Ecg) -> list[str]:
    """Return the kinds of :func:`assess_quality`, for the column ``quality`` of a metadata table."""
    return [finding.kind for finding in assess_quality(ecg)]


class _Rule(NamedTuple):
    """A kind, the leads concerned of each recording (bool, shape (recordings, leads)), and what to say of one."""

    kind: str
    leads: NDArray[np.bool_]
    detail: Callable[[int], str]


def _assess(signals: _Signal, present: NDArray[np.bool_], rate: float) -> list[tuple[QualityFinding, ...]]:
    """Assess recordings: float32, shape (recordings, leads, samples), mV; bool, shape (recordings, leads)."""
    rows = signals.reshape(-1, signals.shape[2])
    span = _window_span(rows, rate).reshape(present.shape)
    flat = present & (span < FLAT_MV)
    moving = present & ~flat
    clipped = _longest_plateau_s(rows, rate).reshape(present.shape)
    saturated = moving & (clipped >= CLIP_S)
    noise, wander = (level.reshape(present.shape) for level in _band_levels(rows, rate))
    rules = [
        _Rule("missing_lead", ~present, lambda one: "not recorded"),
        _Rule("flat", flat, lambda one: _worst(span[one], flat[one], FLAT_MV)),
        _Rule("saturated", saturated, lambda one: _worst(clipped[one], saturated[one], CLIP_S, unit="s")),
        _Rule("noise", moving & (noise > NOISE_MV), lambda one: _worst(noise[one], moving[one], NOISE_MV)),
        _Rule(
            "baseline_wander", moving & (wander > WANDER_MV), lambda one: _worst(wander[one], moving[one], WANDER_MV)
        ),
        *_limb_rules(signals, moving),
    ]
    found: list[list[QualityFinding]] = [[] for _ in signals]
    for kind, leads, detail in rules:
        for one in map(int, np.flatnonzero(leads.any(axis=1))):
            names = tuple(LEADS[row] for row in np.flatnonzero(leads[one]))
            found[one].append(QualityFinding(kind, names, detail(one)))
    return list(map(tuple, found))


def _worst(level: NDArray[np.floating], leads: NDArray[np.bool_], limit: float, *, unit: str = "mV") -> str:
    worst = level[leads].min() if limit == FLAT_MV else level[leads].max()
    return f"{worst:.3g} {unit}, limit {limit:g} {unit}"


def _window_span(signal: _Signal, rate: float) -> NDArray[np.float32]:
    """Return the smallest peak-to-peak range of any 2 s window: float32, shape (leads,), mV.

    Of a lead that is surely not flat, something that is not below :data:`FLAT_MV`.
    """
    window = min(round(FLAT_WINDOW_S * rate), signal.shape[1])
    part = (window + 1) // 2  # every window holds a whole one of these parts
    parts = signal[:, : signal.shape[1] // part * part].reshape(len(signal), -1, part)
    span = np.asarray((parts.max(axis=2) - parts.min(axis=2)).min(axis=1))
    if len(rows := np.flatnonzero(span < FLAT_MV)):
        perhaps = signal[rows]
        span[rows] = (_sliding(np.maximum, perhaps, window) - _sliding(np.minimum, perhaps, window)).min(axis=1)
    return span


def _sliding(extreme: np.ufunc, signal: _Signal, window: int) -> _Signal:
    """Return the extreme of every window of so many samples, in steps of one sample: doubles the reach, then joins."""
    reach = 1
    while 2 * reach <= window:
        signal = extreme(signal[:, :-reach], signal[:, reach:])
        reach *= 2
    rest = window - reach
    return np.asarray(extreme(signal[:, : signal.shape[1] - rest], signal[:, rest:]))


def _longest_plateau_s(signal: _Signal, rate: float) -> NDArray[np.float64]:
    """Return the longest stay at exactly the highest or lowest value: float64, shape (leads,), s.

    0 if that is not far from the median, or surely shorter than :data:`CLIP_S`.
    """
    longest = np.zeros(len(signal))
    for extremes in (signal.max(axis=1, keepdims=True), signal.min(axis=1, keepdims=True)):
        held = signal == extremes
        count = np.bincount(np.flatnonzero(held) // signal.shape[1], minlength=len(signal))
        # Most leads stay there too short even if all their samples there were in a row.
        for row in np.flatnonzero(count / rate >= CLIP_S):
            if abs(extremes[row, 0] - np.median(signal[row])) >= CLIP_MV:
                edges = np.flatnonzero(np.diff(np.r_[False, held[row], False]))
                longest[row] = max(longest[row], (edges[1::2] - edges[::2]).max() / rate)
    return longest


def _band_levels(signal: _Signal, rate: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the noise and the baseline level of each lead: floating, shape (leads,), mV; 0 if surely no finding."""
    from scipy import fft  # float32 rows at a time: a third of what NumPy's takes

    samples = signal.shape[1]
    spectrum = fft.rfft(signal - signal.mean(axis=1, keepdims=True), axis=1)
    frequency = fft.rfftfreq(samples, 1 / rate)
    noise, wander = np.zeros(len(signal)), np.zeros(len(signal))
    low = int(np.searchsorted(frequency, NOISE_BAND_HZ[0]))
    high = int(np.searchsorted(frequency, NOISE_BAND_HZ[1], side="right"))
    if rate >= 2 * NOISE_BAND_HZ[1]:
        window = round(NOISE_WINDOW_S * rate)
        count = samples // window
        # The windows that are not the quietest tenth have its power at least, and there is no more than all of it.
        power = 2 / samples * (np.abs(spectrum[:, low:high]) ** 2).sum(axis=1)
        louder = window * (count - math.ceil(0.10 * (count - 1)))
        rows = np.flatnonzero(power / louder > 0.99 * NOISE_MV**2)
        band = _only(spectrum[rows], low, high, samples)[:, : count * window]
        noise[rows] = np.sqrt(quantiles((band.reshape(len(rows), count, window) ** 2).mean(axis=2), 0.10)[0])
    end = int(np.searchsorted(frequency, WANDER_HZ, side="right"))
    # Waves that all reach their top, or their bottom, at once.
    rows = np.flatnonzero(4 / samples * np.abs(spectrum[:, :end]).sum(axis=1) > 0.99 * WANDER_MV)
    bottom, top = quantiles(_only(spectrum[rows], 0, end, samples), 0.05, 0.95)
    wander[rows] = top - bottom
    return noise, wander


def _only(spectrum: NDArray[np.complexfloating], low: int, high: int, samples: int) -> NDArray[np.floating]:
    """Return what a part of the spectrum stands for."""
    from scipy import fft

    part = np.zeros_like(spectrum)
    part[:, low:high] = spectrum[:, low:high]
    return np.asarray(fft.irfft(part, samples, axis=1))


def quantiles(values: NDArray[np.floating], *shares: float) -> list[NDArray[np.floating]]:
    """Return quantiles of each row, as :func:`numpy.quantile`, which takes three times as long for rows."""
    places = [share * (values.shape[1] - 1) for share in shares]
    low, high = [int(place) for place in places], [math.ceil(place) for place in places]
    parted = np.partition(values, sorted({*low, *high}), axis=1)
    return [
        parted[:, left] + (parted[:, right] - parted[:, left]) * (place - left)
        for place, left, right in zip(places, low, high, strict=True)
    ]


def _limb_rules(signals: _Signal, moving: NDArray[np.bool_]) -> list[_Rule]:
    """Apply the last three rules to the recordings whose leads I, II and III move."""
    mismatch, swapped, reversed_arms = np.zeros((3, *moving.shape), np.bool_)
    details: dict[int, str] = {}
    correlations: dict[int, float] = {}
    fit = np.flatnonzero(moving[:, :3].all(axis=1))
    limbs = signals[fit, :6]
    limbs = limbs - quantiles(limbs.reshape(-1, limbs.shape[2]), 0.5)[0].reshape(-1, 6, 1)
    i, ii, iii = limbs[:, 0], limbs[:, 1], limbs[:, 2]
    expected = np.stack([-(i + ii) / 2, (i - iii) / 2, (ii + iii) / 2], axis=1)
    size = _rms(limbs[:, :3]).mean(axis=1)
    einthoven = _rms(ii - i - iii) / size
    misfit = _rms(limbs[:, 3:] - expected) / size[:, None]
    mismatch[fit, :3] = (einthoven > EINTHOVEN_SHARE)[:, None]
    mismatch[fit, 3:6] = moving[fit, 3:6] & (misfit > EINTHOVEN_SHARE)
    for at in np.flatnonzero(mismatch[fit].any(axis=1)):
        one = int(fit[at])
        worst = max([einthoven[at], *misfit[at][moving[one, 3:6]]])
        details[one] = f"contradiction {worst:.2g} of the leads, limit {EINTHOVEN_SHARE:g}"
        # residual[a, b]: how badly the augmented lead a fits the formula of the augmented lead b.
        residual = _rms(limbs[at, 3:, None] - expected[at, None]) / size[at]
        fits_other = (residual.argmin(axis=1) != np.arange(3)) & (residual.min(axis=1) <= EINTHOVEN_SHARE)
        swapped[one, 3:6] = fits_other & mismatch[one, 3:6] & (not mismatch[one, 0])
    positive = limbs[:, 3].max(axis=1) > -limbs[:, 3].min(axis=1)
    for at in np.flatnonzero(positive & moving[fit][:, [3, 11]].all(axis=1)):
        one = int(fit[at])
        correlations[one] = _correlation(i[at], signals[one, 11])
        reversed_arms[one, [0, 3]] = correlations[one] < REVERSAL_CORRELATION
    return [
        _Rule("einthoven_mismatch", mismatch, details.__getitem__),
        _Rule("lead_swap", swapped, lambda one: "each fits the formula of another augmented lead"),
        _Rule(
            "limb_reversal",
            reversed_arms,
            lambda one: f"correlation of I with V6 {correlations[one]:.2f}, limit {REVERSAL_CORRELATION:g}",
        ),
    ]


def _correlation(lead: _Signal, other: _Signal) -> float:
    one, two = lead - lead.mean(), other - other.mean()
    return float(one @ two) / (math.sqrt(float(one @ one) * float(two @ two)))


def _rms(signals: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the root mean square along the last axis: float64."""
    squares = np.matmul(signals[..., None, :], signals[..., :, None])[..., 0, 0]  # a dot product each
    return np.asarray(np.sqrt(squares.astype(np.float64) / signals.shape[-1]))
