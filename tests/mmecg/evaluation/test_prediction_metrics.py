"""Metrics of predictions against obvious slow code, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.label_metrics import ece
from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.prediction_metrics import (
    Aurocs,
    average_precision,
    calibration_line,
    ece_if_calibrated,
    ece_of_labels,
    error_reduction,
    holm,
    net_benefit,
    reliability,
    risk_coverage,
    sensitivity_at,
    wald_p,
)

Sample = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float32]]


@pytest.fixture(scope="module")
def sample() -> Sample:
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(-1, 1.5, (400, 4)), 1)  # with ties
    gold = rng.random(logits.shape) < expit(logits)
    return gold, logits, patient_weights(rng.integers(0, 150, 400).astype(str), resamples=30)


def repeated(weights: NDArray[np.float32], column: int) -> NDArray[np.int64]:
    """Return the records of a resample, each as often as it was drawn."""
    return np.repeat(np.arange(len(weights)), weights[:, column].astype(int))


def slow_sensitivity(gold: NDArray[np.bool_], scores: NDArray[np.float64], specificity: float) -> float:
    found = 0.0
    for threshold in np.unique(scores):
        called = scores > threshold
        if (~called[~gold]).mean() >= specificity - 1e-12:
            found = max(found, called[gold].mean())
    return found


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95])
def test_sensitivity_is_that_of_the_lowest_threshold_specific_enough(sample: Sample, specificity: float) -> None:
    gold, logits, weights = sample
    values, samples = sensitivity_at(gold, logits, weights, specificity)
    for label in range(gold.shape[1]):
        assert values[label] == pytest.approx(slow_sensitivity(gold[:, label], logits[:, label], specificity))
        for resample in range(5):
            rows = repeated(weights, resample)
            expected = slow_sensitivity(gold[rows, label], logits[rows, label], specificity)
            assert samples[resample, label] == pytest.approx(expected)


def test_average_precision_is_that_of_scikit_learn_and_of_repeated_records() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(3)
    scores = rng.permutation(600.0 * np.arange(1200)).reshape(400, 3)  # no ties
    gold = rng.random(scores.shape) < 0.1 + 0.5 * (scores > np.median(scores))
    weights = patient_weights(rng.integers(0, 150, 400).astype(str), resamples=3)
    values, samples = average_precision(gold, scores, weights)
    for label in range(3):
        assert values[label] == pytest.approx(average_precision_score(gold[:, label], scores[:, label]))
        times = weights[:, 1]
        # Copies of a record tie, so the weighted score is the one to compare with.
        expected = average_precision_score(gold[:, label], scores[:, label], sample_weight=times)
        assert samples[1, label] == pytest.approx(expected)


def test_calibration_line_is_that_of_a_logistic_regression(sample: Sample) -> None:
    from sklearn.linear_model import LogisticRegression

    gold, logits, weights = sample
    slope, intercept = calibration_line(gold, 2 * logits + 0.5, weights)
    for label in range(gold.shape[1]):
        model = LogisticRegression(C=1e9).fit(2 * logits[:, [label]] + 0.5, gold[:, label])
        assert slope[0, label] == pytest.approx(model.coef_[0, 0], abs=1e-3)
        rows = repeated(weights, 0)
        again = LogisticRegression(C=1e9).fit(2 * logits[rows][:, [label]] + 0.5, gold[rows, label])
        assert slope[1, label] == pytest.approx(again.coef_[0, 0], abs=0.03)
        shift = intercept[0, label]
        assert expit(2 * logits[:, label] + 0.5 + shift).sum() == pytest.approx(gold[:, label].sum(), rel=1e-4)
    assert slope[0].mean() == pytest.approx(0.5, abs=0.1)


def test_calibration_line_of_separable_outcomes_is_left_out() -> None:
    logits = np.linspace(-3, 3, 40)[:, None]
    slope, _ = calibration_line(logits > 0, logits, np.ones((40, 0), np.float32))
    assert np.isnan(slope).all()


def test_ece_of_labels_is_the_mean_that_label_metrics_gives(sample: Sample) -> None:
    gold, logits, weights = sample
    probability = expit(logits)
    assert ece_of_labels(gold, probability).mean() == pytest.approx(ece(gold, probability, weights).value, abs=1e-6)


def test_ece_if_calibrated_is_what_calibrated_outcomes_show() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random((150, 6))
    drawn = [ece_of_labels(rng.random(probability.shape) < probability, probability) for _ in range(200)]
    assert ece_if_calibrated(probability, draws=200) == pytest.approx(np.mean(drawn, axis=0), abs=0.005)


def test_reliability_bins_have_equal_mass() -> None:
    probability = np.linspace(0, 1, 150)
    expected, seen, size = reliability(probability > 0.5, probability)
    assert size.tolist() == [10] * 15
    assert (np.diff(expected) > 0).all()
    assert seen[0] == 0
    assert seen[-1] == 1


def test_macro_means_are_over_labels_with_enough_positives(sample: Sample) -> None:
    gold, logits, weights = sample
    gold = gold.copy()
    gold[:, 3] = False
    gold[:5, 3] = True
    found = Aurocs.of(gold, logits, weights)
    values = auroc(gold, logits)
    assert found.macro().value == pytest.approx(values[:3].mean())
    assert found.macro(found.some).value == pytest.approx(values.mean())
    rows = repeated(weights, 2)
    assert found.macro().samples[2] == pytest.approx(auroc(gold[rows], logits[rows])[:3].mean())
    assert found.gain_over(found).samples.tolist() == [0.0] * 30


def test_error_reduction_when_the_uncertain_fifth_abstains() -> None:
    errors = np.array([0, 0, 0, 0, 0, 0, 0, 1, 3, 4], float)
    weights = patient_weights([str(at) for at in range(10)], resamples=50)
    found = error_reduction(errors, errors, weights, 0.2)
    assert found.value == pytest.approx(1 - (1 / 8) / (8 / 10))
    for resample in range(50):
        rows = repeated(weights, resample)
        ordered = np.sort(errors[rows])
        if ordered.sum():
            assert found.samples[resample] == pytest.approx(1 - ordered[:8].mean() / ordered.mean())
    assert error_reduction(errors, -errors, weights, 0.2).value < 0


def test_risk_coverage_ends_at_the_error_rate() -> None:
    errors = np.array([0.0, 1.0, 0.0, 1.0])
    found = risk_coverage(errors, np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])


def test_net_benefit_of_a_perfect_test_is_the_prevalence_and_of_acting_on_everyone_vanishes_there() -> None:
    gold = np.arange(100) < 20
    thresholds = np.array([0.1, 0.2, 0.5])
    assert net_benefit(gold, gold.astype(float), thresholds).tolist() == pytest.approx([0.2] * 3)
    everyone = net_benefit(gold, np.ones(100), thresholds)
    assert everyone.tolist() == pytest.approx([0.2 - 0.8 / 9, 0.0, 0.2 - 0.8])


def test_holm_multiplies_by_how_many_are_left() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == pytest.approx([1.0, 1.0])


def test_wald_p_is_small_only_for_differences_beyond_their_error() -> None:
    samples = np.random.default_rng(0).normal([0.0, 5.0], 1.0, (2000, 2))
    p = wald_p(np.array([0.1, 5.0]), samples)
    assert p[0] > 0.8
    assert p[1] < 1e-5
    assert wald_p(np.zeros(1), np.zeros((10, 1))).tolist() == [1.0]
