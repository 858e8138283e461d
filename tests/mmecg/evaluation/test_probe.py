from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.probe import fit_probe, inner_split


def _data(n: int = 600, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, dim)) * rng.uniform(0.1, 5, dim) + 3).astype(np.float32)
    logits = (features - 3) / features.std(axis=0) @ rng.normal(size=(dim, 3))
    return features, rng.random((n, 3)) < 1 / (1 + np.exp(-logits)), [str(row // 2) for row in range(n)]


def test_the_fit_equals_independent_logistic_regressions() -> None:
    features, labels, subjects = _data()
    penalty = 1e-3
    probe = fit_probe(features, labels, subjects, penalties=(penalty,))
    scaled = StandardScaler().fit_transform(features)
    # mean loss + p * |w|^2 is scikit-learn's sum of losses + |w|^2 / (2 C) with C = 1 / (2 p n).
    for column in range(3):
        oracle = LogisticRegression(C=1 / (2 * penalty * len(features)), tol=1e-8, max_iter=1000)
        oracle.fit(scaled, labels[:, column])
        np.testing.assert_allclose(probe.weight[:, column], oracle.coef_[0], atol=5e-3)
        assert probe.bias[column] == pytest.approx(oracle.intercept_[0], abs=5e-3)
        np.testing.assert_allclose(probe.scores(features)[:, column], oracle.decision_function(scaled), atol=0.02)


def test_a_strong_penalty_is_chosen_for_noise_features() -> None:
    rng = np.random.default_rng(1)
    n = 200
    signal = rng.normal(size=(n, 1))
    features = np.concatenate([signal, rng.normal(size=(n, 150))], axis=1).astype(np.float32)
    labels = rng.random((n, 1)) < 1 / (1 + np.exp(-2 * signal))
    probe = fit_probe(features, labels, [str(row) for row in range(n)], penalties=(1e-1, 1e-6))
    assert probe.penalty == 1e-1


def test_constant_features_do_no_harm() -> None:
    features, labels, subjects = _data()
    features = np.concatenate([features, np.full((len(features), 1), 7, np.float32)], axis=1)
    assert (auroc(labels, fit_probe(features, labels, subjects).scores(features)) > 0.6).all()


def test_the_inner_split_keeps_patients_whole() -> None:
    subjects = [str(row // 3) for row in range(300)]
    held_out = inner_split(subjects)
    inside = {subject for subject, held in zip(subjects, held_out, strict=True) if held}
    assert len(inside) == 15
    assert held_out.sum() == 45
