"""Positive-unlabelled learning: on simulated masking, where prior and label frequency are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from mmecg.errors import InvalidInputError
from mmecg.labels import positive_unlabelled
from mmecg.labels.positive_unlabelled import PENALTY, fit_positive_unlabelled, mask_labels

RECORDS, FEATURES = 6000, 5
PRIORS = np.array([0.3, 0.1])
FREQUENCIES = np.array([0.2, 0.7])
SUBJECTS = np.arange(RECORDS) // 2


def population(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels: a label moves a feature of its own by three standard deviations."""
    rng = np.random.default_rng(seed)
    labels = rng.random((RECORDS, len(PRIORS))) < PRIORS
    features = rng.normal(size=(RECORDS, FEATURES))
    features[:, : len(PRIORS)] += 3.0 * labels
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    return population(1)


@pytest.fixture(scope="module")
def mentioned(train: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return mask_labels(train[1], FREQUENCIES, np.random.default_rng(2))


@pytest.mark.parametrize("method", ["elkan_noto", "nnpu"])
def test_prior_and_label_frequency_are_found(train: tuple, mentioned: np.ndarray, method: str) -> None:
    model = fit_positive_unlabelled(train[0], mentioned, SUBJECTS, method)
    assert np.abs(np.log(model.label_frequency / FREQUENCIES)).max() < 0.3
    assert np.abs(model.prior / PRIORS - 1).max() < 0.3


@pytest.mark.parametrize("method", ["elkan_noto", "nnpu"])
def test_probabilities_mean_what_they_say(train: tuple, mentioned: np.ndarray, method: str) -> None:
    features, labels = population(3)
    chance = fit_positive_unlabelled(train[0], mentioned, SUBJECTS, method).probabilities(features)
    assert chance.dtype == np.float32
    assert np.abs(chance.mean(axis=0) / labels.mean(axis=0) - 1).max() < 0.2
    for sure in (chance > 0.5, chance < 0.5):
        assert chance[sure].mean() == pytest.approx(labels[sure].mean(), abs=0.1)


def test_newton_agrees_with_scikit_learn(train: tuple) -> None:
    inputs = np.column_stack([train[0], np.ones(RECORDS)]).astype(float)
    ours = positive_unlabelled._fit_soft(inputs, train[1])
    theirs = LogisticRegression(C=1 / (2 * PENALTY * RECORDS), tol=1e-8).fit(train[0], train[1][:, 0])
    np.testing.assert_allclose(ours[:-1, 0], theirs.coef_[0], atol=2e-3)


@pytest.mark.parametrize(("frequency", "clamped"), [(0.5, False), (0.15, True)])
def test_non_negative_risk_is_minimised(train: tuple, mentioned: np.ndarray, frequency: float, clamped: bool) -> None:
    inputs, positive = np.column_stack([train[0], np.ones(RECORDS)]).astype(float), mentioned[:, 0]
    prior = positive.mean() / frequency

    def risk(point: np.ndarray) -> tuple[float, float]:
        scores = inputs @ point
        negatives = np.logaddexp(0, scores).mean() - prior * np.logaddexp(0, scores[positive]).mean()
        fitted = prior * np.logaddexp(0, -scores[positive]).mean()
        return fitted + max(0, negatives) + PENALTY * point[:-1] @ point[:-1], negatives

    ours = positive_unlabelled._fit_nnpu_label(inputs, positive, frequency)
    slow = minimize(lambda point: risk(point)[0], np.zeros(FEATURES + 1), method="Powell", options={"ftol": 1e-6})
    assert risk(ours)[0] < slow.fun + 2e-3
    assert (abs(risk(ours)[1]) < 0.02) == clamped


def test_subject_stays_on_one_side(train: tuple, mentioned: np.ndarray) -> None:
    fold = positive_unlabelled._check(train[0], mentioned, SUBJECTS, "nnpu", 0)
    assert (fold[::2] == fold[1::2]).all()
    assert set(fold) == set(range(positive_unlabelled.FOLDS))


def test_masking_only_removes(train: tuple, mentioned: np.ndarray) -> None:
    labels = train[1]
    assert not (mentioned & ~labels).any()
    np.testing.assert_allclose(mentioned.sum(axis=0) / labels.sum(axis=0), FREQUENCIES, atol=0.06)
    with pytest.raises(InvalidInputError, match="above 0"):
        mask_labels(labels, 0.0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "elkan_noto, nnpu"),
        ({"subjects": SUBJECTS[:-1]}, "as many of each"),
        ({"subjects": np.zeros(RECORDS)}, "1 subjects"),
        ({"mentioned": np.zeros((RECORDS, 1), bool)}, "label 0 is mentioned in 0 records"),
        ({"features": np.full((RECORDS, 2), np.nan)}, "not finite"),
    ],
)
def test_unusable_input_is_refused(train: tuple, mentioned: np.ndarray, change: dict, message: str) -> None:
    given = {"features": train[0], "mentioned": mentioned, "subjects": SUBJECTS} | change
    with pytest.raises(InvalidInputError, match=message):
        fit_positive_unlabelled(**given)


def test_same_seed_same_model(train: tuple, mentioned: np.ndarray) -> None:
    first, second = (fit_positive_unlabelled(train[0], mentioned, SUBJECTS, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
