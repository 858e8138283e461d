"""Synthetic recordings with labels that a network can read from them."""

from __future__ import annotations

import numpy as np
import pytest

from mmecg.adaptation.examples import Examples
from mmecg.adaptation.label_table import LabelTable
from mmecg.datasets.synthetic import synthetic_ecg


def make_table(values, folds, *, labels=("fibrillation", "fast"), groups=None):
    values = np.asarray(values, np.float32)
    names = tuple(f"s{row}" for row in range(len(values)))
    patients = tuple(f"p{row // 2}" for row in range(len(values)))
    groups = groups or {"rhythm": tuple(range(len(labels)))}
    return LabelTable(names, patients, np.asarray(folds, np.int64), tuple(labels), values, groups)


def make_examples(count=160, seconds=3.0):
    """Pairs of recordings of a patient in folds 1 to 4; even patients fibrillate, every third is fast."""
    rng = np.random.default_rng(0)
    ecgs, values, folds = [], [], []
    for row in range(count):
        patient = row // 2
        fibrillates, fast = patient % 2 == 0, patient % 3 == 0
        rate = rng.normal(105 if fast else 65, 8)
        ecgs.append(
            synthetic_ecg(
                rhythm="atrial_fibrillation" if fibrillates else "sinus",
                heart_rate_bpm=float(np.clip(rate, 45, 140)),
                amplitude=float(rng.uniform(0.6, 1.4)),
                noise_mv=0.03,
                duration_s=seconds,
                seed=row,
            )
        )
        values.append([fibrillates, fast])
        folds.append(1 + patient % 4)
    return Examples(tuple(ecgs), make_table(values, folds), "synthetic")


@pytest.fixture(scope="session")
def examples():
    return make_examples()
