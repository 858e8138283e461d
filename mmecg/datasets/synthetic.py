"""A simple 12-lead ECG generator for tests, benchmarks and fuzzing. Not a source of training or clinical data.

After McSharry et al., A dynamical model for generating synthetic electrocardiogram signals, IEEE Trans. Biomed. Eng.
50(3):289 (2003): a beat is a sum of Gaussians (P, Q, R, S, T) over the phase of the heart cycle. Here each wave has a
direction in space instead of one amplitude, and a lead is the projection of the sum on the lead's own direction; the
limb leads are those of a planar Einthoven triangle, so that Einthoven's and Goldberger's laws hold exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg

Rhythm = Literal["sinus", "atrial_fibrillation"]

# Wave: time from the R peak in s (at 60 /min), width in s, electrical axis (x left, y feet, z front) in mV.
_WAVES: dict[str, tuple[float, float, tuple[float, float, float]]] = {
    "P": (-0.18, 0.022, (0.09, 0.10, 0.02)),
    "Q": (-0.028, 0.009, (-0.10, -0.05, 0.20)),
    "R": (0.0, 0.012, (1.00, 0.75, -0.25)),
    "S": (0.030, 0.011, (-0.15, -0.20, -0.55)),
    "T": (0.28, 0.045, (0.25, 0.20, 0.12)),
}
_CHEST_ANGLES_DEG = {"V1": 115.0, "V2": 94.0, "V3": 75.0, "V4": 58.0, "V5": 30.0, "V6": 5.0}
"""Directions of the chest electrodes in the horizontal plane: 0 points left, 90 to the front."""


def synthetic_ecg(
    *,
    heart_rate_bpm: float = 70.0,
    duration_s: float = 10.0,
    sampling_rate_hz: float = 100.0,
    amplitude: float = 1.0,
    rhythm: Rhythm = "sinus",
    noise_mv: float = 0.01,
    wander_mv: float = 0.05,
    seed: int = 0,
) -> Ecg:
    """Generate a 12-lead ECG, the same one for the same arguments.

    Parameters
    ----------
    heart_rate_bpm : float
        Mean rate. Wave times scale with the square root of the RR interval (Bazett).
    duration_s, sampling_rate_hz : float
    amplitude : float
        Factor on all waves; at 1 the R wave of lead II is about 1.1 mV.
    rhythm : {"sinus", "atrial_fibrillation"}
        Sinus: RR intervals vary by 3 %. Atrial fibrillation: by 20 %, without P waves, with fibrillatory waves at 6 Hz.
    noise_mv : float
        Standard deviation of white noise at each electrode.
    wander_mv : float
        Amplitude of a baseline wander at breathing rate (0.25 Hz).
    seed : int
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * sampling_rate_hz)) / sampling_rate_hz
    fibrillation = rhythm == "atrial_fibrillation"
    heart = np.zeros((3, len(time)))
    interval = 60.0 / heart_rate_bpm
    beat = -interval * rng.uniform(0.0, 1.0)
    while beat < duration_s + 1.0:
        stretch = np.sqrt(interval)
        for name, (centre, width, axis) in _WAVES.items():
            if not (fibrillation and name == "P"):
                shape = np.exp(-0.5 * ((time - beat - centre * stretch) / width) ** 2)
                heart += np.outer(axis, shape)
        interval = 60.0 / heart_rate_bpm * float(np.clip(rng.normal(1.0, 0.20 if fibrillation else 0.03), 0.5, 1.6))
        beat += interval
    if fibrillation:
        wave = 0.05 * np.sin(2 * np.pi * 6.0 * time + rng.uniform(0, 2 * np.pi))
        heart += np.outer((0.3, 0.7, 1.0), wave)
    signal = _leads_of_heart(amplitude * heart, rng, noise_mv)
    signal += wander_mv * np.sin(2 * np.pi * 0.25 * time) * _limb_weights()[:, None]
    return Ecg.from_array(signal.astype(np.float32), sampling_rate_hz=sampling_rate_hz, leads=LEADS)


def _leads_of_heart(heart: NDArray[np.float64], rng: np.random.Generator, noise_mv: float) -> NDArray[np.float64]:
    """Project the heart vector (x left, y feet, z front) on the 12 leads: float64, shape (leads=12, samples), mV."""
    x, y, z = heart
    noise = rng.normal(0.0, noise_mv, (8, heart.shape[1]))
    i = x + noise[0]
    ii = 0.5 * x + np.sqrt(0.75) * y + noise[1]
    limb = [i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]
    angles = np.deg2rad(list(_CHEST_ANGLES_DEG.values()))
    chest = [1.3 * (np.cos(a) * x + np.sin(a) * z) + extra for a, extra in zip(angles, noise[2:], strict=True)]
    return np.array([*limb, *chest])


def _limb_weights() -> NDArray[np.float64]:
    """Return how much of the baseline wander each lead sees; the limb leads keep Einthoven's law."""
    return np.array([0.5, 1.0, 0.5, -0.75, 0.0, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
