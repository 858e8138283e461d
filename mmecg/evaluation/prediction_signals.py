"""Recordings made worse on purpose, and signals that are no ordinary ECG, for the shift and novelty tests.

Everything starts from a seed. Nothing here is used to fit the novelty detector: it has generators of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, LIMB_LEADS, Ecg, resample

SNRS_DB: tuple[int, ...] = (24, 12, 6, 0, -6)
MAINS_RATE_HZ = 500.0
"""Mains hum is added at this rate: at 100 Hz it would lie on the highest frequency that there is."""

MAINS_HZ = 50.0

_Signal = NDArray[np.floating]
Change = Callable[[Ecg, np.random.Generator], Ecg]


def with_noise(ecg: Ecg, kind: str, snr_db: float, rng: np.random.Generator) -> Ecg:
    """Return the recording with noise added to every lead that was recorded.

    Parameters
    ----------
    ecg : Ecg
    kind : {"wander", "muscle", "powerline"}
    snr_db : float
        Power of the lead (about its median) over that of the noise. A lead without power gets the mean noise of the
        others.
    rng : numpy.random.Generator
    """
    clean = ecg.resample(MAINS_RATE_HZ) if kind == "powerline" else ecg
    signal = clean.signal
    noise = _NOISE[kind](signal.shape, clean.sampling_rate_hz, rng)
    power = np.square(signal - np.median(signal, axis=1, keepdims=True)).mean(axis=1)
    power = np.where(power > 0, power, power[power > 0].mean() if (power > 0).any() else 0.0)
    scale = np.sqrt(power / np.square(noise).mean(axis=1) / 10 ** (snr_db / 10)) * clean.lead_mask
    return _like(clean, signal + scale[:, None] * noise)


def wander(shape: tuple[int, int], rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return baseline wander: five slow sines a lead, 0.05 to 0.5 Hz: float64, shape (leads, samples)."""
    time = np.arange(shape[1]) / rate
    frequency, phase = rng.uniform(0.05, 0.5, (shape[0], 5, 1)), rng.uniform(0, 2 * np.pi, (shape[0], 5, 1))
    return np.asarray(np.sin(2 * np.pi * frequency * time + phase).sum(axis=1))


def muscle(shape: tuple[int, int], rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return muscle noise: white above 20 Hz, its strength changing slowly."""
    spectrum = np.fft.rfft(rng.normal(size=shape), axis=1)
    spectrum *= np.fft.rfftfreq(shape[1], 1 / rate) >= 20
    strength = 0.4 + np.abs(wander(shape, rate, rng))
    return np.asarray(np.fft.irfft(spectrum, shape[1], axis=1) * strength)


def powerline(shape: tuple[int, int], rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return mains hum with its third harmonic where the rate allows one; one phase for all leads."""
    time = np.arange(shape[1]) / rate
    hum = np.sin(2 * np.pi * MAINS_HZ * time + rng.uniform(0, 2 * np.pi))
    if rate > 6 * MAINS_HZ:
        hum = hum + 0.2 * np.sin(6 * np.pi * MAINS_HZ * time + rng.uniform(0, 2 * np.pi))
    return np.asarray(rng.uniform(0.7, 1.3, (shape[0], 1)) * hum)


_NOISE: Mapping[str, Callable[[tuple[int, int], float, np.random.Generator], NDArray[np.float64]]] = {
    "wander": wander,
    "muscle": muscle,
    "powerline": powerline,
}

# New lead: the recorded lead that it shows, with its sign, as follows from the definitions of the leads.
SWAPS: dict[str, dict[str, tuple[float, str]]] = {
    "RA_LA": {"I": (-1, "I"), "II": (1, "III"), "III": (1, "II"), "aVR": (1, "aVL"), "aVL": (1, "aVR")},
    "RA_LL": {"I": (-1, "III"), "II": (-1, "II"), "III": (-1, "I"), "aVR": (1, "aVF"), "aVF": (1, "aVR")},
    "LA_LL": {"I": (1, "II"), "II": (1, "I"), "III": (-1, "III"), "aVL": (1, "aVF"), "aVF": (1, "aVL")},
    "V1_V2": {"V1": (1, "V2"), "V2": (1, "V1")},
    "V_reversed": {f"V{place}": (1, f"V{7 - place}") for place in range(1, 7)},
}
LIMB_SWAPS: tuple[str, ...] = ("RA_LA", "RA_LL", "LA_LL")


def swapped(ecg: Ecg, name: str) -> Ecg:
    """Return what the recorder shows when two electrodes, or the order of the chest electrodes, are exchanged."""
    signal = ecg.signal.copy()
    for lead, (sign, source) in SWAPS[name].items():
        signal[LEADS.index(lead)] = sign * ecg.signal[LEADS.index(source)]
    return _like(ecg, signal)


def shifts() -> dict[str, Change]:
    """Return every change of the shift test by name, such as ``"muscle/6dB"``."""
    found: dict[str, Change] = {}
    for kind in _NOISE:
        for snr in SNRS_DB:
            found[f"{kind}/{snr}dB"] = lambda ecg, rng, kind=kind, snr=snr: with_noise(ecg, kind, snr, rng)  # type: ignore[misc]
    for name in SWAPS:
        found[f"swap/{name}"] = lambda ecg, rng, name=name: swapped(ecg, name)  # type: ignore[misc]
    subsets: dict[str, Sequence[str]] = {
        "limb": LIMB_LEADS,
        "I": ("I",),
        "II": ("II",),
        "independent_8": ("I", "II", *LEADS[6:]),
        "no_V4_V6": LEADS[:9],
    }
    for name, leads in subsets.items():
        found[f"leads/{name}"] = lambda ecg, rng, leads=leads: ecg.select_leads(leads)  # type: ignore[misc]
    for rate in (500, 250, 50):
        found[f"rate/{rate}Hz"] = lambda ecg, rng, rate=rate: ecg.resample(rate)  # type: ignore[misc]
    found["length/5s"] = lambda ecg, rng: ecg.crop((ecg.duration_s - 5) / 2, 5.0) if ecg.duration_s > 5 else ecg
    return found


def strangers(ecgs: Sequence[Ecg], count: int, *, seed: int = 0) -> dict[str, list[Ecg]]:
    """Return recordings that are no ordinary ECG, by kind.

    Parameters
    ----------
    ecgs : sequence of Ecg
        Real ones, from which the swapped and inverted are made.
    count : int
        Of each kind of signal without an ECG.
    seed : int

    Returns
    -------
    dict of str to list of Ecg
        ``noise``, ``limb_swap``, ``inverted``, ``other_signal``. The first of the derived kinds belongs to the first
        ECG, and so on.
    """
    rng = np.random.default_rng(seed)
    swaps = rng.choice(LIMB_SWAPS, len(ecgs))
    return {
        "noise": [_noise_only(rng) for _ in range(count)],
        "limb_swap": [swapped(ecg, name) for ecg, name in zip(ecgs, swaps, strict=True)],
        "inverted": [_like(ecg, -ecg.signal) for ecg in ecgs],
        "other_signal": [_OTHER[index % len(_OTHER)](rng) for index in range(count)],
    }


_RATE, _SAMPLES = 100.0, 1000
_SHAPE = (len(LEADS), _SAMPLES)


def _noise_only(rng: np.random.Generator) -> Ecg:
    """Return a mixture of noises as electrodes that touch no patient may give."""
    kinds = [rng.normal(size=_SHAPE), wander(_SHAPE, _RATE, rng), muscle(_SHAPE, _RATE, rng)]
    hum = resample(powerline((len(LEADS), 5 * _SAMPLES), 500.0, rng).astype(np.float32), 500.0, _RATE)
    kinds.append(hum.astype(np.float64))
    share = rng.dirichlet(np.full(len(kinds), 0.5))
    mixed = sum(part * _unit(kind) for part, kind in zip(np.sqrt(share), kinds, strict=True))
    return _signal(rng.uniform(0.02, 1.0) * np.asarray(mixed) * rng.uniform(0.5, 1.5, (len(LEADS), 1)))


def _ppg(rng: np.random.Generator) -> Ecg:
    """Return a pulse wave: a steep rise, a slow fall and a dicrotic wave in every beat, on all leads."""
    time, beats = np.arange(_SAMPLES) / _RATE, [rng.uniform(-1, 0)]
    while beats[-1] < _SAMPLES / _RATE + 1:
        beats.append(beats[-1] + rng.normal(60 / rng.uniform(55, 100), 0.03))
    wave = sum(
        height * np.exp(-(((time - beat - delay) / width) ** 2))
        for beat in beats
        for delay, width, height in ((0.15, 0.09, 1.0), (0.28, 0.13, 0.6), (0.45, 0.09, 0.35))
    )
    return _everywhere(np.asarray(wave), rng)


def _respiration(rng: np.random.Generator) -> Ecg:
    time = np.arange(_SAMPLES) / _RATE
    rate = rng.uniform(0.15, 0.4)
    phase = 2 * np.pi * rate * time + rng.uniform(0, 6) + 0.3 * np.sin(2 * np.pi * 0.05 * time)
    return _everywhere(np.sin(phase) + 0.25 * np.sin(2 * phase), rng)


def _eeg(rng: np.random.Generator) -> Ecg:
    """Return background activity that falls with frequency, with a waxing alpha rhythm."""
    frequency = np.fft.rfftfreq(_SAMPLES, 1 / _RATE)
    spectrum = np.fft.rfft(rng.normal(size=_SHAPE), axis=1) / np.maximum(frequency, 0.5)
    alpha = np.sin(2 * np.pi * rng.uniform(8, 12) * np.arange(_SAMPLES) / _RATE) * np.abs(wander(_SHAPE, _RATE, rng))
    background = _unit(np.fft.irfft(spectrum, _SAMPLES, axis=1))
    return _signal(rng.uniform(0.02, 0.5) * (background + rng.uniform(0, 0.8) * _unit(alpha)))


def _emg(rng: np.random.Generator) -> Ecg:
    """Return contractions: bursts of broadband noise with silence between them."""
    centre, width = rng.uniform(0, 10, 6), rng.uniform(0.2, 1.0, 6)
    time = np.arange(_SAMPLES)[:, None] / _RATE
    strength = np.exp(-(((time - centre) / width) ** 2)).sum(axis=1) + 0.03
    burst = rng.normal(size=_SHAPE) * strength
    return _signal(rng.uniform(0.05, 1.0) * _unit(burst) * rng.uniform(0.2, 1.5, (len(LEADS), 1)))


_OTHER: tuple[Callable[[np.random.Generator], Ecg], ...] = (_ppg, _respiration, _eeg, _emg)


def _everywhere(wave: NDArray[np.float64], rng: np.random.Generator) -> Ecg:
    """Return one wave on every lead, each with its own size and a little noise."""
    size = rng.uniform(0.3, 1.2, (len(LEADS), 1)) * rng.uniform(0.1, 1.5)
    return _signal(size * _unit(wave[None, :]) + 0.01 * rng.normal(size=_SHAPE))


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.maximum(centred.std(axis=-1, keepdims=True), 1e-12))


def _signal(values: NDArray[np.float64]) -> Ecg:
    return Ecg.from_array(values, sampling_rate_hz=_RATE)


def _like(ecg: Ecg, signal: _Signal) -> Ecg:
    return Ecg(np.asarray(signal * ecg.lead_mask[:, None], np.float32), ecg.sampling_rate_hz, ecg.lead_mask.copy())
