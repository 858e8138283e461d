from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score

from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.label_metrics import brier, ece, everything_f1, f1, f1_of_labels, precision_at


def sample(count: int = 300, labels: int = 4):
    rng = np.random.default_rng(0)
    probability = rng.random((count, labels))
    gold = rng.random((count, labels)) < probability
    return gold, probability, rng.integers(0, 3, (count, 20)).astype(np.float32)


def test_f1_is_that_of_scikit_learn_in_the_fold_and_in_each_resample() -> None:
    gold, probability, weights = sample()
    decided = probability > 0.4
    for figure, average in zip(f1(gold, decided, weights), ("macro", "micro"), strict=True):
        assert figure.value == pytest.approx(f1_score(gold, decided, average=average))
        for column in (0, 7):
            rows = np.repeat(np.arange(len(gold)), weights[:, column].astype(int))
            assert figure.samples[column] == pytest.approx(
                f1_score(gold[rows], decided[rows], average=average), abs=1e-6
            )
    np.testing.assert_allclose(f1_of_labels(gold, decided), f1_score(gold, decided, average=None))


def test_a_label_without_a_positive_is_left_out_of_the_macro_mean() -> None:
    gold = np.array([[True, False], [False, False]])
    decided = np.array([[True, True], [False, False]])
    macro, micro = f1(gold, decided, np.zeros((2, 3), np.float32))
    assert (macro.value, micro.value) == (1.0, pytest.approx(2 / 3))
    assert np.isnan(macro.samples).all()  # a resample that drew nobody has no value


def test_everything_present_has_the_f1_of_the_prevalence() -> None:
    gold = np.array([[True], [False], [False], [False]])
    assert everything_f1(gold) == (pytest.approx(0.4), pytest.approx(0.4))


def test_brier_is_that_of_scikit_learn() -> None:
    gold, probability, weights = sample(labels=1)
    figure = brier(gold, probability, weights)
    assert figure.value == pytest.approx(brier_score_loss(gold[:, 0], probability[:, 0]))
    expected = brier_score_loss(gold[:, 0], probability[:, 0], sample_weight=weights[:, 3])
    assert figure.samples[3] == pytest.approx(expected, rel=1e-4)


def test_ece_is_small_if_calibrated_and_the_shift_if_not() -> None:
    gold, probability, weights = sample(20_000, 2)
    assert ece(gold, probability, weights[:, :1]).value < 0.02
    low = probability * 0.5
    shift = float(np.abs(probability - low).mean())
    assert ece(gold, low, weights[:, :1]).value == pytest.approx(shift, abs=0.02)
    assert ece(gold, np.ones_like(probability), weights[:, :1]).value == pytest.approx(1 - gold.mean(), abs=1e-6)


def test_the_interval_of_a_calibration_error_holds_its_value() -> None:
    gold, probability, _ = sample(1500, 3)
    figure = ece(gold, probability, patient_weights(np.arange(1500).astype(str), resamples=200))
    row = figure.row("ece", 1500, {})
    assert figure.bias > 0.002, "a resample is noisier than the fold"
    assert row.low < row.value < row.high
    assert figure.value - figure.bias < figure.value < 0.05


def test_precision_counts_pairs_of_record_and_label() -> None:
    suspicion = np.array([[0.9, 0.1], [0.8, 0.7]])
    wrong = np.array([[True, False], [False, True]])
    weights = np.array([[1, 0], [1, 2]], np.float32)
    figure = precision_at(suspicion, wrong, weights, k=2)
    assert figure.value == 0.5
    assert figure.samples.tolist() == [0.5, 0.0]  # the second resample has only the second record, twice
