"""What can be measured in a recording: rate, irregularity, QRS and QT time, and the size of QRS, ST and T in each lead.

Everything is taken at 100 Hz, whatever the recording's own rate, from beats found in all leads together
(:mod:`mmecg.prediction.beats`) and from their median, whose slopes of all leads together say where QRS begins and ends.
How far that is from what cardiologists marked is measured on LUDB (``mmecg evaluate-prediction --ludb``) and told in
the README. P waves are not measured: nothing here can tell whether there are any.

What cannot be measured has the value NaN and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.prediction.beats import INDEPENDENT, RATE_HZ, agreement, beat_leads, cut_beats, peaks_of, slope_of
from mmecg.prediction.measured import Measurement
from mmecg.quality import quantiles

MIN_BEATS = 3
"""Two intervals are the least that a rate and its range can come from."""

MIN_AGREEMENT = 0.8
"""Of the beats of limb and chest leads, and of two refractory times: what Li et al. (2008, see
:func:`mmecg.prediction.beats.agreement`) call good. In 300 synthetic noises it was 0.61 at most."""

SHORT_REFRACTORY_S = 0.2
"""Of the second look: no two QRS complexes of a person follow each other faster than the ventricles' refractory
period."""

MIN_ALIKE = 0.66
"""Mean correlation of the beats with their median, where limb and chest leads cannot be compared: Orphanidou et al.,
IEEE J. Biomed. Health Inform. 19:832 (2015)."""

MIDDLE = (0.1, 0.9)
"""Quantiles of the beats that ``low`` and ``high`` are."""

BEFORE_S, AFTER_S = 0.35, 0.70
QRS_REACH_S = 0.08
"""Either side of the steepest place, within which QRS is searched for: a complex of 0.16 s; wider ones are followed."""

QRS_SHARE = 0.15
"""Of the steepest slope: where all leads together change faster than that, QRS is. Of 0.05 to 0.3 the best on the
records of LUDB with odd numbers."""

QRS_BIAS_MS = 17.0
"""By which that is shorter than the median of the cardiologists' marks on those records."""

LEVEL_S = (0.05, 0.02)
"""Before QRS begins, from when to when the level lies that amplitudes are measured from: the PQ segment."""

J_PLUS_S = 0.06
"""After the end of QRS, where the ST level is read: J + 60 ms, as in exercise testing (Fletcher et al., Circulation
128:873, 2013, read at 60 or 80 ms)."""

T_UNTIL = 0.72
"""Of the RR interval, after the steepest place: until then T is searched for; later the next P wave may begin."""

T_LATEST_S = 0.62
MIN_T_MV = 0.1
"""Size over all leads of the T wave (root of the sum of squares) below which its end is not told."""

T_FALL_S = 0.12
"""Longest that T may take from its steepest place to its end; a shallower tangent tells nothing."""

T_BIAS_MS = -25.0
"""By which QT by the tangent is shorter than the median of the cardiologists' marks, same records as above."""


@dataclass(frozen=True)
class MedianBeat:
    """The median beat, and where its waves are.

    Attributes
    ----------
    signal : float32, shape (leads=12, samples), mV
        From ``BEFORE_S`` before its steepest place on, each lead above its PQ segment.
    each : float32, shape (beats, leads=12, samples), mV
        The beats that it is the median of.
    begin, end : float
        Of QRS, in samples.
    t_end : float
        Of T, in samples; NaN if it cannot be told.
    t_until : int
        Until where T was searched for, in samples.
    rr_s : float
        Median RR interval.
    """

    signal: NDArray[np.float32]
    each: NDArray[np.float32]
    begin: float
    end: float
    t_end: float
    t_until: int
    rr_s: float

    @property
    def qrs(self) -> slice:
        """Samples of QRS, one more on either side."""
        return slice(max(math.floor(self.begin), 0), math.ceil(self.end) + 2)

    @property
    def st_t(self) -> slice:
        """Samples from J + 60 ms to where T ends at the latest."""
        return slice(min(round(self.end + J_PLUS_S * RATE_HZ), self.t_until - 2), self.t_until)


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read off a recording.

    Attributes
    ----------
    measurements : tuple of Measurement
        See :func:`measure`.
    lead_mask : bool, shape (leads=12,)
        Leads that count.
    beat : MedianBeat, optional
        None if there is none that can be trusted.
    """

    measurements: tuple[Measurement, ...]
    lead_mask: NDArray[np.bool_]
    beat: MedianBeat | None = None

    @cached_property
    def values(self) -> Mapping[tuple[str, str], float]:
        """The values that there are by name and lead."""
        return {(one.name, one.lead): one.value for one in self.measurements if not math.isnan(one.value)}


def measure(ecg: Ecg, *, unreadable: Collection[str] = ()) -> tuple[Measurement, ...]:
    """Return the measurements of a recording: of all leads first, then lead by lead.

    =====================  =============================================================================================
    ``heart_rate_bpm``     60 s over the mean RR interval
    ``rr_irregularity``    root mean square of successive differences of RR (RMSSD) over the mean RR interval
    ``qrs_duration_ms``    from the first to the last fast change in any lead
    ``qt_ms``              from there to the tangent's end of T (Lepeschkin and Surawicz, Circulation 6:378, 1952)
    ``qrs_amplitude_mv``   of a lead: highest minus lowest value within QRS
    ``st_level_mv``        of a lead: at J + 60 ms, above the PQ segment
    ``t_amplitude_mv``     of a lead: the value of T farthest from the PQ segment
    =====================  =============================================================================================

    Parameters
    ----------
    ecg : Ecg
    unreadable : collection of str
        Leads that do not count: flat, saturated, noisy.
    """
    return read_beats(ecg, unreadable=unreadable).measurements


def read_beats(ecg: Ecg, *, unreadable: Collection[str] = ()) -> Reading:
    """Return the measurements of a recording with the beat that they were read off; see :func:`measure`."""
    mask = ecg.lead_mask & ~np.isin(LEADS, list(unreadable))
    if not mask.any():
        return Reading(_unmeasured("no lead can be read"), mask)
    signal = np.where(mask[:, None], ecg.resample(RATE_HZ).signal, np.float32(0))
    beats, reason = trusted_beats(signal, beat_leads(mask))
    if reason:
        return Reading(_unmeasured(reason), mask)
    found = _of_intervals(np.diff(beats) / RATE_HZ)
    beat = median_beat(signal, beats, mask)
    if beat is None:
        missing = _unmeasured("no beat is inside the recording as a whole", ("qrs_duration_ms", "qt_ms"))
        return Reading((*found, *missing), mask)
    return Reading((*found, *_of_times(beat), *_of_leads(beat, mask)), mask, beat)


def trusted_beats(signal: NDArray[np.float32], leads: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Return the beats, int64, shape (beats,), in samples, and why they cannot be trusted; empty if they can.

    Parameters
    ----------
    signal : float32, shape (leads=12, samples), mV
        At 100 Hz.
    leads : int64
        Positions of the leads to look at.
    """
    limb, chest = leads[leads < INDEPENDENT[2]], leads[leads >= INDEPENDENT[2]]
    slopes = [slope_of(signal[some]) for some in (limb, chest) if len(some)]
    slope = np.sum(slopes, axis=0)
    beats = peaks_of(slope)
    if len(beats) < MIN_BEATS:
        return beats, f"{len(beats)} beats were found, {MIN_BEATS} are needed"
    if agreement(beats, peaks_of(slope, SHORT_REFRACTORY_S)) < MIN_AGREEMENT:
        return beats, "beats follow each other too fast, or other waves are as steep"
    if len(slopes) > 1:
        if agreement(peaks_of(slopes[0]), peaks_of(slopes[1])) < MIN_AGREEMENT:
            return beats, "limb and chest leads show different beats"
    elif _likeness(cut_beats(signal[leads], beats, 0.1, 0.1)) < MIN_ALIKE:
        return beats, "the beats are not alike"
    return beats, ""


def median_beat(signal: NDArray[np.float32], beats: NDArray[np.int64], mask: NDArray[np.bool_]) -> MedianBeat | None:
    """Return the median beat of the leads of a mask, at 100 Hz; None if no beat is inside the recording as a whole."""
    each = cut_beats(signal, beats, BEFORE_S, AFTER_S)
    if not len(each):
        return None
    rr_s = float(np.median(np.diff(beats))) / RATE_HZ
    looked_at = beat_leads(mask)
    begin, end = _find_qrs(np.sqrt(np.square(np.diff(_median(each)[looked_at], axis=1)).sum(axis=0)))
    from_, to = (max(round(begin - before * RATE_HZ), at) for at, before in enumerate(LEVEL_S))
    each = each - each[:, :, from_:to].mean(axis=2, keepdims=True)
    median = _median(each)
    steepest = round(BEFORE_S * RATE_HZ)
    t_until = min(steepest + int(min(T_LATEST_S, T_UNTIL * rr_s) * RATE_HZ), median.shape[1])
    t_end = _find_t_end(median[looked_at], math.ceil(end + J_PLUS_S * RATE_HZ), t_until)
    return MedianBeat(median, each, begin, end, t_end, t_until, rr_s)


def _median(each: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median over the first axis; quicker than NumPy's for a dozen beats."""
    ordered = np.sort(each, axis=0)
    return np.asarray((ordered[(len(each) - 1) // 2] + ordered[len(each) // 2]) / 2, np.float32)


def _find_qrs(slope: NDArray[np.floating]) -> tuple[float, float]:
    """Return where QRS begins and ends, in samples, of the slope of all leads: shape (samples - 1,)."""
    centre, reach = round(BEFORE_S * RATE_HZ), round(QRS_REACH_S * RATE_HZ)
    near = slope[centre - reach : centre + reach]
    limit = float(np.percentile(slope, 20))
    limit += QRS_SHARE * (float(near.max()) - limit)
    fast = slope >= limit
    inside = np.flatnonzero(fast[centre - reach : centre + reach]) + centre - reach
    begin, end = int(inside[0]), int(inside[-1])
    while begin > 1 and (fast[begin - 1] or fast[begin - 2]):  # one slow sample, the top of a wave, is still QRS
        begin -= 1
    while end < len(slope) - 2 and (fast[end + 1] or fast[end + 2]):
        end += 1
    return _crossing(slope, begin - 1, begin, limit), _crossing(slope, end + 1, end, limit)


def _crossing(slope: NDArray[np.floating], slow: int, fast: int, limit: float) -> float:
    """Return where the slope crosses a limit between two neighbours; a slope lies half a sample after its index."""
    low, high = float(slope[slow]), float(slope[fast])
    return fast + 0.5 if not low < limit <= high else slow + (limit - low) / (high - low) * (fast - slow) + 0.5


def _find_t_end(leads: NDArray[np.float32], start: int, until: int) -> float:
    """Return where the steepest tangent of the falling T wave meets the level after it, all leads together."""
    size = np.sqrt(np.square(leads - np.median(leads, axis=1, keepdims=True)).sum(axis=0))
    if until - start < 3:
        return math.nan
    peak = start + int(np.argmax(size[start:until]))
    falling = np.diff(size[peak : min(until + round(T_FALL_S * RATE_HZ), len(size))])
    if not len(falling) or size[peak] < MIN_T_MV or falling.min() >= 0:
        return math.nan
    steepest = int(np.argmin(falling))
    middle = (size[peak + steepest] + size[peak + steepest + 1]) / 2
    rest = float((size[peak:].min() - middle) / falling[steepest])
    end = peak + steepest + 0.5 + rest
    return end if end <= until and rest <= T_FALL_S * RATE_HZ else math.nan


def _likeness(each: NDArray[np.float32]) -> float:
    centred = each - each.mean(axis=2, keepdims=True)
    median = np.median(centred, axis=0)
    size = np.sqrt(np.square(centred).sum(axis=(1, 2)) * np.square(median).sum())
    return float(np.mean((centred * median).sum(axis=(1, 2)) / np.maximum(size, 1e-9))) if len(each) else 0.0


def _of_intervals(rr_s: NDArray[np.float64]) -> tuple[Measurement, Measurement]:
    slow, fast = np.quantile(rr_s, MIDDLE[::-1])
    mean = float(rr_s.mean())
    changes = np.abs(np.diff(rr_s)) / mean
    low, high = np.quantile(changes, MIDDLE)
    return (
        Measurement(name="heart_rate_bpm", value=60 / mean, low=60 / float(slow), high=60 / float(fast)),
        Measurement(
            name="rr_irregularity", value=float(np.sqrt(np.mean(changes**2))), low=float(low), high=float(high)
        ),
    )


def _of_times(beat: MedianBeat) -> tuple[Measurement, Measurement]:
    """Return QRS and QT time; the interval of one value is none: the spread over beats is below the resolution."""
    duration = (beat.end - beat.begin) * 1000 / RATE_HZ + QRS_BIAS_MS
    qt = (beat.t_end - beat.begin) * 1000 / RATE_HZ - T_BIAS_MS
    reason = "" if qt == qt else "the end of T cannot be told"
    nothing = math.nan
    return (
        Measurement(name="qrs_duration_ms", value=duration, low=nothing, high=nothing),
        Measurement(name="qt_ms", value=qt, low=nothing, high=nothing, reason=reason),
    )


def _of_leads(beat: MedianBeat, recorded: NDArray[np.bool_]) -> list[Measurement]:
    j_60 = min(round(beat.end + J_PLUS_S * RATE_HZ), beat.signal.shape[1] - 1)
    waves = np.concatenate([beat.signal[None], beat.each])
    read = np.stack([np.ptp(waves[..., beat.qrs], axis=-1), waves[..., j_60], _farthest(waves[..., beat.st_t])], axis=2)
    median, each = read[0], read[1:].reshape(len(beat.each), -1).T  # (leads, 3), (leads * 3, beats)
    low, high = (one.reshape(median.shape) for one in quantiles(each, *MIDDLE))
    names = ("qrs_amplitude_mv", "st_level_mv", "t_amplitude_mv")
    return [
        Measurement(
            name=name,
            lead=LEADS[lead],
            value=float(median[lead, at]),
            low=float(low[lead, at]),
            high=float(high[lead, at]),
        )
        for lead in np.flatnonzero(recorded)
        for at, name in enumerate(names)
    ]


def _farthest(waves: NDArray[np.float32]) -> NDArray[np.float32]:
    place = np.abs(waves).argmax(axis=-1)
    return np.asarray(np.take_along_axis(waves, place[..., None], axis=-1)[..., 0])


def _unmeasured(
    reason: str, names: Collection[str] = ("heart_rate_bpm", "rr_irregularity", "qrs_duration_ms", "qt_ms")
) -> tuple[Measurement, ...]:
    nothing = math.nan
    return tuple(Measurement(name=name, value=nothing, low=nothing, high=nothing, reason=reason) for name in names)
