"""Recordings that are no ECG: noise, and other physiological signals, as if 12-lead electrodes had picked them up.

Simple generators to fit and test what tells an ECG from something else; not models of physiology. Every signal is laid
on the nine electrodes first, by one of the ways of :data:`SPREADS`, so that Einthoven's and Goldberger's laws hold and
do not give it away; a signal copied into all leads, as a wrong channel map does, breaks them.

Sources of the shapes: coloured noise by shaping a white spectrum (Timmer and Koenig, Astron. Astrophys. 300:707, 1995);
a pulse wave as two Gaussians (Tang et al., Sci. Data 7:259, 2020: synthetic photoplethysmogram); EEG as 1/f background
with an alpha rhythm of 8-13 Hz (Niedermeyer's Electroencephalography, 7th ed.); surface EMG as band-passed noise in
bursts (De Luca, J. Appl. Biomech. 13:135, 1997); seismocardiogram as damped oscillations at both heart sounds (Inan et
al., IEEE J. Biomed. Health Inform. 19:1414, 2015).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg

Signal = NDArray[np.float64]

SPREADS: tuple[str, ...] = ("electrodes", "sources", "scaled", "leads", "copied")
"""Own course at every electrode; three sources mixed; one course, scaled; own course in every lead; one course in all.
"""

RMS_MV = (0.05, 0.6)
"""Root mean square of the leads, drawn log-uniformly: from a quiet recording to the loudest."""


def leads_of_electrodes(potentials: Signal) -> Signal:
    """Return the 12 leads of electrode potentials.

    Parameters
    ----------
    potentials : float64, shape (electrodes=9, samples), mV
        RA, LA, LL, V1 to V6 against any common reference.

    Returns
    -------
    float64, shape (leads=12, samples), mV
        Einthoven's I, II, III; Goldberger's aVR, aVL, aVF; V1 to V6 against Wilson's terminal, the mean of the limbs.
    """
    ra, la, ll = potentials[:3]
    limb = [la - ra, ll - ra, ll - la, ra - (la + ll) / 2, la - (ra + ll) / 2, ll - (ra + la) / 2]
    return np.concatenate([limb, potentials[3:] - (ra + la + ll) / 3])


def coloured_noise(rows: int, samples: int, exponent: float, rng: np.random.Generator) -> Signal:
    """Return noise with a power spectrum of 1 / f^exponent: float64, shape (rows, samples), mean 0, variance 1.

    0 is white, 1 pink, 2 brown.
    """
    spectrum = np.fft.rfft(rng.standard_normal((rows, samples)), axis=1)
    spectrum *= np.maximum(np.arange(spectrum.shape[1]), 1) ** (-exponent / 2)
    return _standardised(np.fft.irfft(spectrum, samples, axis=1))


def band_noise(rows: int, samples: int, rate: float, band_hz: tuple[float, float], rng: np.random.Generator) -> Signal:
    """Return white noise of a band, which is cut at 0.45 of the sampling rate: float64, shape (rows, samples)."""
    low, high = (min(edge, limit * rate) for edge, limit in zip(band_hz, (0.3, 0.45), strict=True))
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    inside = (frequency >= low) & (frequency <= max(high, low + rate / samples))
    return _standardised(np.fft.irfft(np.fft.rfft(rng.standard_normal((rows, samples)), axis=1) * inside, samples))


def other_signal(kind: str, *, duration_s: float, sampling_rate_hz: float, rng: np.random.Generator) -> Ecg:
    """Return a 12-lead recording of something that is no ECG.

    Parameters
    ----------
    kind : str
        A key of :data:`OTHER_SIGNALS`.
    duration_s, sampling_rate_hz : float
    rng : numpy.random.Generator
        Draws rates, shapes, the spread over the electrodes, and the amplitude.
    """
    samples = round(duration_s * sampling_rate_hz)
    spread = SPREADS[rng.integers(len(SPREADS))]
    courses = {"electrodes": 9, "sources": 3, "scaled": 1, "leads": len(LEADS), "copied": 1}[spread]
    signal = OTHER_SIGNALS[kind](courses, samples, sampling_rate_hz, rng)
    if spread == "copied":
        leads = np.repeat(signal, len(LEADS), axis=0)
    elif spread == "leads":
        leads = signal * rng.uniform(0.5, 1.5, (len(LEADS), 1))
    elif spread == "electrodes":
        leads = leads_of_electrodes(signal * rng.uniform(0.5, 1.5, (9, 1)))
    else:
        leads = leads_of_electrodes(rng.standard_normal((9, courses)) @ signal)
    rms = np.exp(rng.uniform(*np.log(RMS_MV)))
    leads = leads * (rms / max(float(np.sqrt(np.mean(leads**2))), 1e-9))
    return Ecg(leads.astype(np.float32), sampling_rate_hz, np.ones(len(LEADS), np.bool_))


def _standardised(signal: Signal) -> Signal:
    signal = signal - signal.mean(axis=1, keepdims=True)
    return np.asarray(signal / np.maximum(signal.std(axis=1, keepdims=True), 1e-12))


def _beats(samples: int, rate: float, per_minute: tuple[float, float], rng: np.random.Generator) -> Signal:
    """Return the times of beats with 5 % jitter, some before the start: float64, shape (beats,), s."""
    interval = 60 / rng.uniform(*per_minute)
    count = int(samples / rate / interval * 1.3) + 4
    steps = interval * np.clip(rng.normal(1, 0.05, count), 0.7, 1.3)
    return np.asarray(np.cumsum(steps) - interval * (1 + rng.uniform()))


def _each(
    course: Callable[[int, float, np.random.Generator], Signal],
) -> Callable[[int, int, float, np.random.Generator], Signal]:
    """Return a generator of rows from one of a single course."""

    def rows_of(rows: int, samples: int, rate: float, rng: np.random.Generator) -> Signal:
        return _standardised(np.stack([course(samples, rate, rng) for _ in range(rows)]))

    return rows_of


def _pulse(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    time = np.arange(samples) / rate
    delay, width, second = rng.uniform(0.2, 0.35), rng.uniform(0.06, 0.12), rng.uniform(0.2, 0.6)
    wave = np.zeros(samples)
    for beat in _beats(samples, rate, (45, 120), rng):
        wave += np.exp(-0.5 * ((time - beat) / width) ** 2)
        wave += second * np.exp(-0.5 * ((time - beat - delay) / (1.5 * width)) ** 2)
    return np.asarray(wave + 0.1 * wave.std() * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * time + rng.uniform(0, 6.3)))


def _respiration(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    phase = 2 * np.pi * np.cumsum(rng.uniform(0.1, 0.6) * (1 + 0.2 * coloured_noise(1, samples, 2, rng)[0])) / rate
    phase += rng.uniform(0, 2 * np.pi)
    wave = np.sin(phase) + rng.uniform(0, 0.4) * np.sin(2 * phase + rng.uniform(0, 2 * np.pi))
    return np.asarray(wave + rng.uniform(0, 0.05) * rng.standard_normal(samples))


def _eeg(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    rhythm = band_noise(1, samples, rate, (8.0, 13.0), rng)[0]
    return np.asarray(coloured_noise(1, samples, rng.uniform(0.8, 1.8), rng)[0] + rng.uniform(0.2, 2.0) * rhythm)


def _emg(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    envelope = np.full(samples, rng.uniform(0.02, 0.2))
    for _ in range(rng.integers(1, 9)):
        start, length = rng.uniform(-0.5, samples / rate), rng.uniform(0.2, 2.5)
        time = np.arange(samples) / rate
        envelope += np.exp(-0.5 * ((time - start - length / 2) / (length / 3)) ** 2)
    return np.asarray(envelope * band_noise(1, samples, rate, (20.0, 150.0), rng)[0])


def _seismo(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    time = np.arange(samples) / rate
    first, second, decay = rng.uniform(10, 24), rng.uniform(12, 24), rng.uniform(0.03, 0.08)
    ratio = rng.uniform(0.3, 0.8)
    wave = np.zeros(samples)
    for beat in _beats(samples, rate, (45, 120), rng):
        for delay, pitch, size in ((0.0, first, 1.0), (0.32, second, ratio)):
            since = np.maximum(time - beat - delay, 0)
            wave += size * np.exp(-since / decay) * np.sin(2 * np.pi * pitch * since)
    return np.asarray(wave + 0.05 * coloured_noise(1, samples, 1, rng)[0])


def _motion(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    time, pace = np.arange(samples) / rate, rng.uniform(0.8, 3.0)
    wave = coloured_noise(1, samples, 2, rng)[0] * rng.uniform(0.1, 1)
    for harmonic in range(1, 5):
        wave += rng.normal(0, 1 / harmonic) * np.sin(2 * np.pi * pace * harmonic * time + rng.uniform(0, 6.3))
    return np.asarray(wave)


def _eye(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    jumps = rng.random(samples) < rng.uniform(0.5, 4) / rate
    gaze = np.cumsum(jumps * rng.standard_normal(samples))
    return np.asarray(gaze + 0.2 * coloured_noise(1, samples, 2, rng)[0] + 0.02 * rng.standard_normal(samples))


def _square(samples: int, rate: float, rng: np.random.Generator) -> Signal:
    time, pace = np.arange(samples) / rate, rng.uniform(0.5, 5)
    return ((time * pace + rng.uniform()) % 1 < rng.uniform(0.1, 0.9)) + 0.01 * rng.standard_normal(samples)


def _noise(exponent: float) -> Callable[[int, int, float, np.random.Generator], Signal]:
    return lambda rows, samples, rate, rng: coloured_noise(rows, samples, exponent, rng)


OTHER_SIGNALS: dict[str, Callable[[int, int, float, np.random.Generator], Signal]] = {
    "white_noise": _noise(0.0),
    "pink_noise": _noise(1.0),
    "brown_noise": _noise(2.0),
    "muscle_noise": lambda rows, samples, rate, rng: band_noise(rows, samples, rate, (20.0, 150.0), rng),
    "pulse": _each(_pulse),
    "respiration": _each(_respiration),
    "eeg": _each(_eeg),
    "emg": _each(_emg),
    "seismocardiogram": _each(_seismo),
    "motion": _each(_motion),
    "eye": _each(_eye),
    "square": _each(_square),
}
"""Signals by name: ``function(rows, samples, rate, rng)`` gives float64, shape (rows, samples), variance 1."""
