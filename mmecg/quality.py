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
from dataclasses import dataclass

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
    present = ecg.lead_mask
    span = _window_span(ecg.signal, ecg.sampling_rate_hz)
    flat = present & (span < FLAT_MV)
    moving = present & ~flat
    found = [_finding("missing_lead", ~present, "not recorded"), _finding("flat", flat, _worst(span, flat, FLAT_MV))]
    clipped = _longest_plateau_s(ecg.signal, ecg.sampling_rate_hz)
    saturated = moving & (clipped >= CLIP_S)
    found.append(_finding("saturated", saturated, _worst(clipped, saturated, CLIP_S, unit="s")))
    noise, wander = _band_levels(ecg.signal, ecg.sampling_rate_hz)
    for kind, level, limit in (("noise", noise, NOISE_MV), ("baseline_wander", wander, WANDER_MV)):
        found.append(_finding(kind, moving & (level > limit), _worst(level, moving, limit)))
    found.extend(_limb_findings(ecg.signal, moving))
    return tuple(finding for finding in found if finding is not None)


def quality_kinds(ecg: Ecg) -> list[str]:
    """Return the kinds of :func:`assess_quality`, for the column ``quality`` of a metadata table."""
    return [finding.kind for finding in assess_quality(ecg)]


def _finding(kind: str, leads: NDArray[np.bool_], detail: str) -> QualityFinding | None:
    if not leads.any():
        return None
    return QualityFinding(kind, tuple(LEADS[row] for row in np.flatnonzero(leads)), detail)


def _worst(level: NDArray[np.floating], leads: NDArray[np.bool_], limit: float, *, unit: str = "mV") -> str:
    if not leads.any():
        return ""
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
        # Most leads stay there too short even if all their samples there were in a row.
        for row in np.flatnonzero(np.count_nonzero(held, axis=1) / rate >= CLIP_S):
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


def _limb_findings(signal: _Signal, moving: NDArray[np.bool_]) -> list[QualityFinding | None]:
    if not moving[:3].all():
        return []
    i, ii, iii, *augmented = signal[:6] - quantiles(signal[:6], 0.5)[0][:, None]
    expected = (-(i + ii) / 2, (i - iii) / 2, (ii + iii) / 2)
    size = np.array([_rms(lead) for lead in (i, ii, iii)]).mean()
    einthoven = _rms(ii - i - iii) / size
    # residual[a, b]: how badly the augmented lead a fits the formula of the augmented lead b.
    residual = np.array([[_rms(lead - formula) / size for formula in expected] for lead in augmented])
    have = moving[3:6]
    bad = np.zeros(len(LEADS), np.bool_)
    bad[:3] = einthoven > EINTHOVEN_SHARE
    bad[3:6] = have & (np.diagonal(residual) > EINTHOVEN_SHARE)
    worst = max([einthoven, *np.diagonal(residual)[have]])
    fits_other = have & (residual.argmin(axis=1) != np.arange(3)) & (residual.min(axis=1) <= EINTHOVEN_SHARE)
    swapped = np.zeros(len(LEADS), np.bool_)
    swapped[3:6] = fits_other & bad[3:6] & (not bad[0])
    findings = [
        _finding("einthoven_mismatch", bad, f"contradiction {worst:.2g} of the leads, limit {EINTHOVEN_SHARE:g}"),
        _finding("lead_swap", swapped, "each fits the formula of another augmented lead"),
    ]
    if moving[[3, 11]].all():
        findings.append(_reversal_finding(i, augmented[0], signal[11]))
    return findings


def _reversal_finding(i: _Signal, avr: _Signal, v6: _Signal) -> QualityFinding | None:
    one, other = i - i.mean(), v6 - v6.mean()
    correlation = float(one @ other) / (math.sqrt(float(one @ one) * float(other @ other)))
    reversed_arms = np.zeros(len(LEADS), np.bool_)
    reversed_arms[[0, 3]] = correlation < REVERSAL_CORRELATION and avr.max() > -avr.min()
    return _finding(
        "limb_reversal", reversed_arms, f"correlation of I with V6 {correlation:.2f}, limit {REVERSAL_CORRELATION:g}"
    )


def _rms(signal: NDArray[np.floating]) -> float:
    return math.sqrt(float(signal @ signal) / len(signal))
