"""From a recording to the input of a published encoder: small pure functions, and a pipeline of them as data.

The order is always: leads by name, resampling, filters, then by ``framing``

* ``"segments"``: normalise the whole recording, cut it into segments without overlap, drop the rest (ECG-FM);
* ``"crop"``: keep the middle if it is too long, then normalise (ECGFounder).

What is shorter than the network's input is padded with zeros at the end, after normalising, so that a pad is the mean;
time is never stretched. A missing lead is zeros after normalising, and has no part in statistics over all leads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg, lead_index, resample
from mmecg.encoders.filters import FILTERS
from mmecg.errors import ConfigError, SignalError

FLAT = 1e-12
"""A lead whose standard deviation is at most this share of its largest absolute value is flat: rounding, no signal."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a recording before a network sees it. Part of the fingerprint of an encoder.

    Attributes
    ----------
    leads : tuple of str
        Leads of the network's input, in its order.
    sampling_rate_hz : float
    samples : int
        Length of the network's input.
    resampling : {"linear", "polyphase"}
        :func:`resample_linear`, or :func:`mmecg.ecg.resample` with its anti-aliasing filter.
    filters : tuple of str
        Names in :data:`mmecg.encoders.filters.FILTERS`, in order of application.
    normalisation : {"lead", "record"}
        z-score of each lead, or one over all leads that exist.
    epsilon : float
        Added to the standard deviation.
    framing : {"segments", "crop"}
        See the module.
    """

    leads: tuple[str, ...] = LEADS
    sampling_rate_hz: float = 500.0
    samples: int = 5000
    resampling: Literal["linear", "polyphase"] = "linear"
    filters: tuple[str, ...] = ()
    normalisation: Literal["lead", "record"] = "lead"
    epsilon: float = 0.0
    framing: Literal["segments", "crop"] = "segments"

    def __post_init__(self) -> None:
        for field in ("sampling_rate_hz", "epsilon"):  # 500 and 500.0 are one fingerprint
            object.__setattr__(self, field, float(getattr(self, field)))
        for name in self.filters:
            if name not in FILTERS:
                raise ConfigError(f"filter {name!r} is unknown, expected one of {', '.join(FILTERS) or 'none'}")

    def apply(self, ecg: Ecg) -> NDArray[np.float32]:
        """Return the network's input: float32, shape (segments, leads, samples); one segment or more.

        Raises
        ------
        SignalError
            None of :attr:`leads` was recorded.
        """
        rows = lead_rows(ecg, self.leads)
        present = ecg.lead_mask[rows]
        signal = self._resample(ecg.signal[rows], ecg.sampling_rate_hz)
        for name in self.filters:
            signal = FILTERS[name](signal, self.sampling_rate_hz)
        if self.framing == "crop":
            signal = crop_middle(signal, self.samples)
        normalised = self._normalise(signal, present).astype(np.float32)
        count = max(1, normalised.shape[1] // self.samples)
        fitted = pad_end(normalised, self.samples)[:, : count * self.samples]
        return np.ascontiguousarray(fitted.reshape(len(rows), count, self.samples).swapaxes(0, 1))

    def _resample(self, signal: NDArray[np.float32], rate: float) -> NDArray[np.float64]:
        if self.resampling == "linear":
            return resample_linear(signal.astype(np.float64), rate, self.sampling_rate_hz)
        return resample(signal, rate, self.sampling_rate_hz).astype(np.float64)

    def _normalise(self, signal: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
        normalised = np.zeros_like(signal)
        score = z_score_leads if self.normalisation == "lead" else z_score_record
        normalised[present] = score(signal[present], self.epsilon)
        return normalised


def lead_rows(ecg: Ecg, leads: Sequence[str]) -> list[int]:
    """Return the rows of the leads in a recording's signal.

    Raises
    ------
    SignalError
        None of them was recorded.
    """
    rows = [lead_index(lead) for lead in leads]
    if not ecg.lead_mask[rows].any():
        raise SignalError(
            f"recording has {', '.join(ecg.leads)}, expected at least one of {', '.join(leads)}; "
            "choose an encoder for the leads you have",
            field="ecg.leads",
        )
    return rows


def resample_linear(signal: NDArray[np.float64], from_hz: float, to_hz: float) -> NDArray[np.float64]:
    """Resample by linear interpolation, first sample onto first and last onto last, without a filter.

    As ECG-FM does it (``scripts/preprocess/ecg/preprocess.py`` of fairseq-signals). The length is rounded down, and the
    ends are mapped onto each other, so the time axis shrinks by up to one sample of the recording.

    Parameters
    ----------
    signal : float64, shape (leads, samples), mV

    Returns
    -------
    float64, shape (leads, int(samples * to_hz / from_hz)), mV
    """
    if from_hz == to_hz:
        return signal
    have = signal.shape[1]
    wanted = int(have * to_hz / from_hz)
    position = np.arange(have) * ((wanted - 1) / (have - 1))
    at = np.arange(wanted)
    return np.stack([np.interp(at, position, lead) for lead in signal])


def z_score_leads(signal: NDArray[np.float64], epsilon: float = 0.0) -> NDArray[np.float64]:
    """Subtract from each lead its mean and divide by its population standard deviation; a flat lead becomes zeros.

    Parameters
    ----------
    signal : float64, shape (leads, samples)
    epsilon : float
        Added to the standard deviation.
    """
    deviation = signal.std(1, keepdims=True)
    moves = deviation > FLAT * np.abs(signal).max(1, keepdims=True)
    scale = np.where(moves, deviation + epsilon, np.inf)
    scored: NDArray[np.float64] = (signal - signal.mean(1, keepdims=True)) / scale
    return scored


def z_score_record(signal: NDArray[np.float64], epsilon: float = 0.0) -> NDArray[np.float64]:
    """Subtract the mean over all leads and samples and divide by their population standard deviation.

    Parameters
    ----------
    signal : float64, shape (leads, samples)
    epsilon : float
        Added to the standard deviation; a recording that is flat throughout becomes zeros.
    """
    deviation = signal.std()
    scale = deviation + epsilon if deviation > FLAT * np.abs(signal).max() else np.inf
    scored: NDArray[np.float64] = (signal - signal.mean()) / scale
    return scored


def crop_middle(signal: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    """Keep the middle ``samples`` of a signal; one that is short enough is returned as it is."""
    start = max(0, (signal.shape[1] - samples) // 2)
    return signal[:, start : start + samples]


def pad_end(signal: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Append zeros up to ``samples``; a signal that is long enough is returned as it is."""
    return np.pad(signal, ((0, 0), (0, max(0, samples - signal.shape[1]))))
