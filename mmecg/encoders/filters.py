"""Filters that published encoders run before their network, by name: :data:`FILTERS`.

None moves a wave: they run forward and backward, or look both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Filter = Callable[[NDArray[np.float64], float], NDArray[np.float64]]
"""From (float64, shape (leads, samples), mV; sampling rate in Hz) to the same shape."""


def notch(
    signal: NDArray[np.float64], sampling_rate_hz: float, *, at_hz: float, quality: float = 30.0
) -> NDArray[np.float64]:
    """Take out one frequency, such as the mains', forward and backward.

    Parameters
    ----------
    signal : float64, shape (leads, samples), mV
    sampling_rate_hz, at_hz : float
    quality : float
        Frequency by bandwidth at -3 dB.
    """
    from scipy.signal import filtfilt, iirnotch

    filtered: NDArray[np.float64] = filtfilt(*iirnotch(at_hz, quality, sampling_rate_hz), signal)
    return filtered


def butterworth(
    signal: NDArray[np.float64],
    sampling_rate_hz: float,
    *,
    kind: Literal["lowpass", "highpass", "bandpass"],
    order: int,
    cutoff_hz: float | tuple[float, float],
) -> NDArray[np.float64]:
    """Run a Butterworth filter forward and backward, as one transfer function (not in second-order sections).

    Parameters
    ----------
    signal : float64, shape (leads, samples), mV
    sampling_rate_hz : float
    kind : {"lowpass", "highpass", "bandpass"}
    order : int
    cutoff_hz : float or pair of float
    """
    from scipy.signal import butter, filtfilt

    filtered: NDArray[np.float64] = filtfilt(*butter(order, cutoff_hz, kind, fs=sampling_rate_hz), signal)
    return filtered


def subtract_median(
    signal: NDArray[np.float64], sampling_rate_hz: float, *, window_s: float = 0.4
) -> NDArray[np.float64]:
    """Subtract from each sample the median of the window around it; zeros lie beyond the ends.

    Parameters
    ----------
    signal : float64, shape (leads, samples), mV
    sampling_rate_hz : float
    window_s : float
        Rounded down to samples, and one more if that is even: 201 at 500 Hz.
    """
    from scipy.signal import medfilt

    window = int(window_s * sampling_rate_hz) | 1
    return np.stack([lead - medfilt(lead, window) for lead in signal])


FILTERS: Mapping[str, Filter] = MappingProxyType(
    {
        "notch_50hz": partial(notch, at_hz=50.0),
        "notch_60hz": partial(notch, at_hz=60.0),
        "bandpass_0.67_40hz": partial(butterworth, kind="bandpass", order=4, cutoff_hz=(0.67, 40.0)),
        "highpass_0.5hz": partial(butterworth, kind="highpass", order=2, cutoff_hz=0.5),
        "lowpass_50hz": partial(butterworth, kind="lowpass", order=2, cutoff_hz=50.0),
        "median_0.4s": subtract_median,
    }
)
"""Filters by the name that :attr:`mmecg.encoders.preprocessing.Preprocessing.filters` uses."""
