from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmecg.evaluation.bootstrap import (
    bootstrap_auroc,
    bootstrap_mean,
    interval,
    mean_of_labels,
    patient_weights,
)
from mmecg.evaluation.metrics import auroc


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.integers(0, 100))
def test_the_records_of_a_patient_are_drawn_together(subjects: list[str], seed: int) -> None:
    weights = patient_weights(subjects, resamples=20, seed=seed)
    for subject in set(subjects):
        rows = weights[[index for index, name in enumerate(subjects) if name == subject]]
        assert (rows == rows[0]).all()
    first = [subjects.index(subject) for subject in sorted(set(subjects))]
    assert (weights[first].sum(axis=0) == len(first)).all()  # as many patients are drawn as there are


def test_weights_are_deterministic_and_depend_on_the_seed() -> None:
    subjects = [str(index // 2) for index in range(40)]
    np.testing.assert_array_equal(patient_weights(subjects, seed=3), patient_weights(subjects, seed=3))
    assert (patient_weights(subjects, seed=3) != patient_weights(subjects, seed=4)).any()


@pytest.mark.parametrize("levels", [3, 1000])
def test_weighted_auroc_equals_auroc_of_the_repeated_records(levels: int) -> None:
    rng = np.random.default_rng(0)
    subjects = [str(index // 3) for index in range(90)]
    labels = rng.random((90, 3)) < [0.5, 0.2, 0.03]
    labels[0] = True
    scores = rng.integers(0, levels, (90, 3)) + labels
    weights = patient_weights(subjects, resamples=300, seed=1)
    fast = bootstrap_auroc(labels, scores, weights)
    for resample in range(0, 300, 7):
        drawn = np.repeat(np.arange(90), weights[:, resample].astype(int))
        np.testing.assert_allclose(fast[resample], auroc(labels[drawn], scores[drawn]), atol=1e-6)
    assert np.isnan(fast[:, 2]).any()  # the rare label was lost in some draws
    assert np.isfinite(mean_of_labels(fast, np.ones(3, np.bool_))).all()  # and left out of their mean


def test_mean_of_labels_averages_what_is_left() -> None:
    samples = np.array([[0.5, np.nan, 0.9], [np.nan, np.nan, 0.1]])
    np.testing.assert_allclose(mean_of_labels(samples, np.array([True, True, True])), [0.7, 0.1])
    assert np.isnan(mean_of_labels(samples, np.array([True, True, False]))[1])


def test_bootstrap_mean_equals_the_mean_of_the_repeated_records() -> None:
    rng = np.random.default_rng(2)
    values = rng.random(50)
    values[::9] = np.nan
    weights = patient_weights([str(index // 2) for index in range(50)], resamples=40)
    found = bootstrap_mean(values, weights)
    for resample in range(40):
        drawn = np.repeat(values, weights[:, resample].astype(int))
        assert found[resample] == pytest.approx(np.nanmean(drawn))


def test_the_interval_holds_the_point_and_widens_when_records_are_clustered() -> None:
    rng = np.random.default_rng(5)
    of_patient = rng.random(60)
    values = np.repeat(of_patient, 5)
    clustered = interval(bootstrap_mean(values, patient_weights([str(index // 5) for index in range(300)])))
    naive = interval(bootstrap_mean(values, patient_weights([str(index) for index in range(300)])))
    assert clustered.low < values.mean() < clustered.high
    assert clustered.high - clustered.low > 1.8 * (naive.high - naive.low)  # sqrt(5) in expectation


def test_interval_of_nothing_is_nan() -> None:
    found = interval(np.full(10, np.nan))
    assert np.isnan(found.low)
    assert np.isnan(found.high)
