"""Simulated masking: what positive-unlabelled training recovers, with an interval over test patients."""

from __future__ import annotations

import numpy as np
import pytest

from mmecg.evaluation.bootstrap import interval, patient_weights
from mmecg.evaluation.label_pu import simulate_positive_unlabelled

RECORDS, FEATURES = 6000, 5
PRIORS = np.array([0.3, 0.1])
SUBJECTS = np.arange(RECORDS) // 2


def population(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels: a label moves a feature of its own by three standard deviations."""
    rng = np.random.default_rng(seed)
    labels = rng.random((RECORDS, len(PRIORS))) < PRIORS
    features = rng.normal(size=(RECORDS, FEATURES))
    features[:, : len(PRIORS)] += 3.0 * labels
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return patient_weights(SUBJECTS.astype(str), resamples=40)


@pytest.mark.parametrize("method", ["elkan_noto", "nnpu"])
@pytest.mark.parametrize("frequency", [0.2, (0.2, 0.7)])
def test_most_of_the_oracle_is_recovered(weights: np.ndarray, method: str, frequency: float | tuple) -> None:
    found = simulate_positive_unlabelled(population(1), population(3), weights, SUBJECTS, frequency, method=method)
    assert found.f1_naive.value < 0.6 * found.f1_oracle.value
    assert found.share.value == pytest.approx(1, abs=0.1)
    assert found.more["auroc"] > found.more["auroc_oracle"] - 0.02
    assert found.more["brier_oracle"] < found.more["brier"] < 1.5 * found.more["brier_oracle"]
    assert found.more["prior_error"] < 0.06


def test_the_share_is_that_of_one_resample_not_of_two(weights: np.ndarray) -> None:
    found = simulate_positive_unlabelled(population(1), population(3), weights, SUBJECTS, 0.2)
    np.testing.assert_allclose(found.share.samples, found.f1.samples / found.f1_oracle.samples)
    bounds = interval(found.share.samples)
    assert bounds.low < found.share.value < bounds.high
    apart = np.std(found.f1.samples / np.roll(found.f1_oracle.samples, 1))
    assert np.std(found.share.samples) < apart, "model and oracle err on the same patients"
