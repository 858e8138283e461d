"""Augmentation of training crops: gain, noise, baseline wander, and missing leads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, LIMB_LEADS

GAIN = (0.85, 1.15)
NOISE_SHARE, NOISE_MV = 0.3, 0.02
WANDER_SHARE, WANDER_MV, WANDER_HZ = 0.2, 0.1, (0.1, 0.5)

_LIMB = len(LIMB_LEADS)
_SUBSETS: tuple[tuple[int, ...], ...] = ((1,), (0, 1), (0, 1, 2), (1, 6), tuple(range(6, 12)))


def random_crops(
    signals: NDArray[np.int16], rows: NDArray[np.int64], samples: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return one random crop of each row: float32, shape (batch, leads=12, samples), mV; input in microvolt."""
    starts = rng.integers(0, signals.shape[2] - samples + 1, len(rows))
    crops = np.stack([signals[row, :, start : start + samples] for row, start in zip(rows, starts, strict=True)])
    return crops.astype(np.float32) / np.float32(1000)


def augment(crops: NDArray[np.float32], sampling_rate_hz: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Scale every crop, and add white noise and baseline wander to some. Shape (batch, leads=12, samples), mV."""
    batch, leads, samples = crops.shape
    out: NDArray[np.float32] = crops * rng.uniform(*GAIN, (batch, 1, 1)).astype(np.float32)
    noisy = np.flatnonzero(rng.random(batch) < NOISE_SHARE)
    out[noisy] += NOISE_MV * rng.standard_normal((len(noisy), leads, samples), np.float32)
    wandering = np.flatnonzero(rng.random(batch) < WANDER_SHARE)
    seconds = np.arange(samples) / sampling_rate_hz
    frequency = rng.uniform(*WANDER_HZ, (len(wandering), 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (len(wandering), 1, 1))
    amplitude = WANDER_MV * rng.standard_normal((len(wandering), leads, 1))
    out[wandering] += (amplitude * np.sin(2 * np.pi * frequency * seconds + phase)).astype(np.float32)
    return out


def random_lead_masks(batch: int, probability: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return masks, float32, shape (batch, leads=12, 1): 1 keeps a lead.

    A share ``probability`` of the crops loses leads: 30 % of them keep lead I only, 25 % the six limb leads, 20 % one
    of a few other common subsets, the rest each lead with probability 0.6 (random lead masking as in ECG-FM,
    arXiv:2408.05178, there with 0.5).
    """
    masks = np.ones((batch, len(LEADS), 1), np.float32)
    for row in np.flatnonzero(rng.random(batch) < probability):
        kind = rng.random()
        if kind < 0.75:
            keep: NDArray[np.int64] | slice
            if kind < 0.3:
                keep = np.array([0])
            elif kind < 0.55:
                keep = np.arange(_LIMB)
            else:
                keep = np.array(_SUBSETS[rng.integers(len(_SUBSETS))])
            masks[row] = 0
            masks[row, keep] = 1
        else:
            kept = rng.random(len(LEADS)) < 0.6
            kept[rng.integers(len(LEADS))] = True
            masks[row, :, 0] = kept
    return masks
