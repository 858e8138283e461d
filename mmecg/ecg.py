"""The ECG signal: 12 named leads in millivolt, with a mask of the leads that exist.

Policies, stated once:

* **Leads are placed by name**, never by position; case and an ``MLII``-free ``lead``/``ecg`` prefix do not matter.
* **Missing leads** are zeros with ``lead_mask`` False. A lead that is derivable from two limb leads is *not* derived.
* **Unit** is millivolt. A signal whose typical amplitude cannot be millivolt (see :data:`MAX_PLAUSIBLE_MV`) is refused.
* **Length** is 1 s to 1 h. **Sampling rate** is 50 to 2000 Hz.
* **Nothing is repaired silently**: NaN is refused; flat, saturated, noisy leads are reported by
  :func:`mmecg.quality.assess_quality`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import SignalError

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The 12 standard leads in the order of every array axis named ``leads``."""

LIMB_LEADS: tuple[str, ...] = LEADS[:6]

MIN_DURATION_S = 1.0
MAX_DURATION_S = 3600.0
MIN_SAMPLING_RATE_HZ = 50.0
MAX_SAMPLING_RATE_HZ = 2000.0

MAX_PLAUSIBLE_MV = 15.0
"""Largest plausible robust amplitude (99th percentile of the deviation from the lead's median) of a surface ECG lead.

QRS complexes of a surface ECG stay below about 5 mV even in marked hypertrophy; the Sokolow-Lyon limit is 3.5 mV for
the *sum* of two waves. A 99th percentile above 15 mV means microvolt, ADC counts or an artefact over the whole lead.
"""

_MAX_SAMPLE_MV = 1e9
"""No electrode sees a megavolt; beyond that, filters and encoders would overflow."""

_MAX_DECIMATED = 100_000
"""Most samples of a lead that are decimated at once; it needs four times their memory."""

_UNIT_TO_MV = {"mV": 1.0, "uV": 1e-3, "µV": 1e-3, "V": 1e3}
_LEAD_BY_KEY = {lead.lower(): index for index, lead in enumerate(LEADS)}


def lead_index(name: str) -> int:
    """Return the position of a lead in :data:`LEADS`.

    Parameters
    ----------
    name : str
        Lead name in any case, with or without a ``lead`` or ``ecg`` prefix (``"AVF"``, ``"v1"``, ``"Lead II"``).

    Raises
    ------
    SignalError
        The name is not one of the 12 standard leads.
    """
    key = name.strip().lower()
    for prefix in ("lead", "ecg"):
        key = key.removeprefix(prefix).strip(" _-.")
    try:
        return _LEAD_BY_KEY[key]
    except KeyError:
        raise SignalError(
            f"lead name {name[:20]!r} is unknown, expected one of {', '.join(LEADS)}; name each row of the signal",
            field="ecg.leads",
        ) from None


@dataclass(frozen=True, eq=False)
class Ecg:
    """One multi-lead ECG recording. Build it with :meth:`from_array`, which checks everything.

    Attributes
    ----------
    signal : float32, shape (leads=12, samples), mV
        Rows in the order of :data:`LEADS`; zeros where ``lead_mask`` is False.
    sampling_rate_hz : float
        Samples per second, 50 to 2000.
    lead_mask : bool, shape (leads=12,)
        True for the leads that were recorded.
    """

    signal: NDArray[np.float32]
    sampling_rate_hz: float
    lead_mask: NDArray[np.bool_]
    _resampled: Ecg | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.signal.flags.writeable = False
        self.lead_mask.flags.writeable = False

    @classmethod
    def from_array(
        cls,
        signal: Any,
        *,
        sampling_rate_hz: float,
        leads: Sequence[str] | None = None,
        unit: str = "mV",
    ) -> Ecg:
        """Check a signal and place its leads by name.

        Parameters
        ----------
        signal : array_like of real numbers, shape (n_leads, samples)
            In ``unit``.
        sampling_rate_hz : float
            50 to 2000 Hz.
        leads : sequence of str, optional
            Name of each row, in any order and case. May be left out only for 12 rows in the order of :data:`LEADS`.
        unit : {"mV", "uV", "µV", "V"}
            Unit of ``signal``.

        Raises
        ------
        SignalError
            Wrong shape, unknown, repeated or unnamed leads, sampling rate or duration out of range, NaN or infinite
            samples, all samples zero, or an amplitude that cannot be millivolt.
        """
        array = _as_matrix(signal)
        names = _check_leads(array.shape[0], leads)
        rate = _check_rate(sampling_rate_hz)
        _check_duration(array.shape[1], rate)
        if unit not in _UNIT_TO_MV:
            raise SignalError(f"unit {unit[:10]!r} is unknown, expected one of mV, uV, V", field="ecg.unit")
        if not np.isfinite(array).all():
            bad = [LEADS[i] for i, row in zip(names, array, strict=True) if not np.isfinite(row).all()]
            raise SignalError(
                f"signal has NaN or infinite samples in {', '.join(bad)}, expected finite millivolt; "
                "leave out the lead, or cut the recording to where it is valid",
                field="ecg.signal",
            )
        placed = np.zeros((len(LEADS), array.shape[1]), np.float32)
        with np.errstate(over="ignore"):
            placed[names] = array if unit == "mV" else array * _UNIT_TO_MV[unit]
        mask = np.zeros(len(LEADS), np.bool_)
        mask[names] = True
        _check_amplitude(placed, mask)
        return cls(placed, rate, mask)

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return float(self.signal.shape[1] / self.sampling_rate_hz)

    @property
    def leads(self) -> tuple[str, ...]:
        """Names of the leads that exist, in the order of :data:`LEADS`."""
        return tuple(lead for lead, present in zip(LEADS, self.lead_mask, strict=True) if present)

    def select_leads(self, leads: Sequence[str]) -> Ecg:
        """Return a copy that keeps only the named leads; the others become missing.

        Raises
        ------
        SignalError
            A name is unknown, or none of the named leads was recorded.
        """
        keep = np.zeros(len(LEADS), np.bool_)
        keep[[lead_index(lead) for lead in leads]] = True
        keep &= self.lead_mask
        if not keep.any():
            raise SignalError(
                f"none of the leads {', '.join(leads)} was recorded, expected some of {', '.join(self.leads)}",
                field="ecg.leads",
            )
        return Ecg(np.where(keep[:, None], self.signal, np.float32(0)), self.sampling_rate_hz, keep)

    def resample(self, sampling_rate_hz: float) -> Ecg:
        """Return the recording at another sampling rate (see :func:`resample`).

        The last one is kept: the tower and what judges the recording ask for the same rate.
        """
        rate = _check_rate(sampling_rate_hz)
        if rate == self.sampling_rate_hz:
            return self
        held = self._resampled
        if held is None or held.sampling_rate_hz != rate:
            held = Ecg(resample(self.signal, self.sampling_rate_hz, rate), rate, self.lead_mask.copy())
            object.__setattr__(self, "_resampled", held)
        return held

    def crop(self, start_s: float, duration_s: float) -> Ecg:
        """Return the part that starts at ``start_s`` and lasts ``duration_s`` seconds (at least 1 s).

        Raises
        ------
        SignalError
            The part is not inside the recording, or shorter than 1 s.
        """
        start = round(start_s * self.sampling_rate_hz)
        samples = round(duration_s * self.sampling_rate_hz)
        if start < 0 or start + samples > self.signal.shape[1]:
            raise SignalError(
                f"crop {start_s:g}-{start_s + duration_s:g} s lies outside the recording of {self.duration_s:g} s",
                field="ecg.signal",
            )
        _check_duration(samples, self.sampling_rate_hz)
        return Ecg(self.signal[:, start : start + samples].copy(), self.sampling_rate_hz, self.lead_mask.copy())


def resample(signal: NDArray[np.float32], from_hz: float, to_hz: float) -> NDArray[np.float32]:
    """Resample along the last axis with a zero-phase anti-aliasing polyphase filter.

    The ratio is taken as the nearest fraction with a denominator of at most 1000, so 360 Hz to 100 Hz is exactly 5/18.
    The filter is :func:`scipy.signal.resample_poly`'s Kaiser window (beta 5); edges are padded with the end values, so
    that a baseline offset does not ring.

    Parameters
    ----------
    signal : float32, shape (..., samples), mV
    from_hz, to_hz : float
        Sampling rates.

    Returns
    -------
    float32, shape (..., ceil(samples * to_hz / from_hz)), mV
    """
    if from_hz == to_hz:
        return signal
    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    if ratio.numerator == 1 and signal.shape[-1] <= _MAX_DECIMATED:
        return _decimate(signal, ratio.denominator)
    from scipy.signal import resample_poly

    out = resample_poly(signal, ratio.numerator, ratio.denominator, axis=-1, padtype="line")
    return np.ascontiguousarray(out, np.float32)


def _decimate(signal: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return what ``resample_poly(signal, 1, factor, padtype="line")`` returns, in about a third of its time.

    The padded signal is cut into blocks of ``factor`` samples. One matrix product gives what every block adds to the
    21 outputs that it reaches; an output is the sum along a diagonal of it.
    """
    taps = _decimation_taps(factor)  # (factor, reach)
    reach, samples = taps.shape[1], signal.shape[-1]
    length = -(-samples // factor)
    flat = signal.reshape(-1, samples)
    start, end = flat[:, :1], flat[:, -1:]
    padded = np.zeros((len(flat), (length + reach - 1) * factor), np.float32)
    inside = padded[:, reach // 2 * factor :][:, :samples]
    slope = (end - start) / np.float32(max(samples - 1, 1))
    np.subtract(flat, start + slope * np.arange(samples, dtype=np.float32), out=inside)
    # One product a lead, not one for all: for 10 s that stays below the size at which BLAS starts threads.
    parts = padded.reshape(len(flat), -1, factor) @ taps  # (leads, blocks, reach)
    out = start + slope * np.arange(0, length * factor, factor, dtype=np.float32)
    for block in range(reach):
        out += parts[:, block : block + length, block]
    return out.reshape(*signal.shape[:-1], length)


@functools.cache
def _decimation_taps(factor: int) -> NDArray[np.float32]:
    """Return the anti-aliasing filter of :func:`scipy.signal.resample_poly`: float32, shape (factor, 21)."""
    from scipy.signal import firwin

    taps = np.zeros(21 * factor, np.float32)
    taps[: 20 * factor + 1] = firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0))
    return np.ascontiguousarray(taps.reshape(21, factor).T)


def fit_length(signal: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Crop the middle, or pad with zeros at the end, to exactly ``samples``; never stretch time.

    Parameters
    ----------
    signal : float32, shape (..., samples), mV
    samples : int
    """
    have = signal.shape[-1]
    if have >= samples:
        start = (have - samples) // 2
        return signal[..., start : start + samples]
    return np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, samples - have)])


def _as_matrix(signal: Any) -> NDArray[Any]:
    try:
        array = np.asarray(signal)
    except ValueError:
        raise SignalError(
            "signal rows differ in length, expected shape (n_leads, samples); cut every lead to the same length",
            field="ecg.signal",
        ) from None
    if array.dtype.kind not in "iuf":
        raise SignalError(f"signal has dtype {array.dtype}, expected real numbers", field="ecg.signal")
    if array.ndim != 2 or 0 in array.shape:
        raise SignalError(
            f"signal has shape {array.shape}, expected (n_leads, samples); put leads in rows", field="ecg.signal"
        )
    return array


def _check_leads(rows: int, leads: Sequence[str] | None) -> list[int]:
    if leads is None:
        if rows != len(LEADS):
            raise SignalError(
                f"signal has {rows} leads, expected {len(LEADS)} ({', '.join(LEADS)}); name the leads you have",
                field="ecg.leads",
            )
        return list(range(rows))
    if len(leads) != rows:
        raise SignalError(
            f"signal has {rows} rows but {len(leads)} lead names, expected one name a row; "
            "if time runs along rows, transpose the signal",
            field="ecg.leads",
        )
    index = [lead_index(lead) for lead in leads]
    if len(set(index)) < len(index):
        repeated = sorted({LEADS[i] for i in index if index.count(i) > 1})
        raise SignalError(f"lead {', '.join(repeated)} is named more than once, expected each once", field="ecg.leads")
    return index


def _check_rate(sampling_rate_hz: float) -> float:
    rate = float(sampling_rate_hz)
    if not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        raise SignalError(
            f"sampling rate is {rate:g} Hz, expected {MIN_SAMPLING_RATE_HZ:g} to {MAX_SAMPLING_RATE_HZ:g} Hz; "
            "give samples per second",
            field="ecg.sampling_rate_hz",
        )
    return rate


def _check_duration(samples: int, rate: float) -> None:
    duration = samples / rate
    if not MIN_DURATION_S <= duration <= MAX_DURATION_S:
        raise SignalError(
            f"recording lasts {duration:g} s ({samples} samples at {rate:g} Hz), expected "
            f"{MIN_DURATION_S:g} s to {MAX_DURATION_S:g} s; check the sampling rate, or cut the recording",
            field="ecg.signal",
        )


def _check_amplitude(signal: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    peak = max(signal.max(), -signal.min())  # leads that are missing are zero
    if not peak:
        raise SignalError("every sample is zero, expected a recording in millivolt", field="ecg.signal")
    if peak > _MAX_SAMPLE_MV:
        raise SignalError(
            f"a sample is {peak:.3g} mV, expected at most {_MAX_SAMPLE_MV:.3g} mV even of an artefact; "
            "the samples are damaged, or of another type than they are read as",
            field="ecg.signal",
        )
    if peak <= MAX_PLAUSIBLE_MV / 2:
        return  # no deviation from a median can exceed the limit: the quick way out for nearly every recording
    # A typical lead that moves decides: one lead full of artefact does not condemn the recording, and flat leads do
    # not hide a wrong unit.
    present = signal[mask]
    deviation = np.abs(present - np.median(present, axis=1, keepdims=True))
    amplitude = np.percentile(deviation, 99, axis=1)
    moving = amplitude[amplitude != 0]
    typical = float(np.median(moving)) if len(moving) else 0.0
    if not typical <= MAX_PLAUSIBLE_MV:
        raise SignalError(
            f"typical amplitude is {typical:.3g} mV, expected at most {MAX_PLAUSIBLE_MV:g} mV; "
            "this looks like microvolt or raw counts: convert it, or say the unit",
            field="ecg.signal",
        )
