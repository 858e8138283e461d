import math

import numpy as np
import pytest

from mmecg.evaluation.label_metrics import Figure
from mmecg.experiments.figures import (
    auroc_figure,
    average,
    difference,
    excludes_zero,
    fit_head,
    mean_figure,
    rows_beside,
    verdict,
)


def test_the_penalty_is_chosen_on_the_fold_kept_for_it():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 40)).astype(np.float32)
    truth = (features[:, :1] + 0.1 * rng.normal(size=(300, 1)) > 0).astype(np.float32)
    fit, choose = np.arange(60), np.arange(60, 300)
    penalties = (10.0, 1e-4)
    scores = {
        penalty: fit_head(features, truth, fit, choose, penalties=(penalty,)).logits(features[choose])[:, 0]
        for penalty in penalties
    }
    right = truth[choose, 0] > 0

    def pairs(penalty):
        return float((scores[penalty][right][:, None] > scores[penalty][~right][None]).mean())

    best = max(penalties, key=pairs)
    assert fit_head(features, truth, fit, choose, penalties=penalties).penalty.tolist() == [best]


def test_rows_with_unknown_labels_are_left_out(bench):
    truth = bench.recordings.truth(["all/LVH"]).copy()
    scores = truth[bench.split.test] + 0.0
    scores[0] = 1 - scores[0]  # wrong, but of a recording that is not known
    truth[bench.split.test[0]] = math.nan
    assert auroc_figure(bench, truth, scores).value == 1.0


def test_a_difference_is_taken_in_pairs_of_resamples():
    one, other = Figure(0.9, np.array([0.9, 0.8])), Figure(0.8, np.array([0.8, 0.7]))
    gap = difference(one, other)
    assert gap.value == pytest.approx(0.1)
    np.testing.assert_allclose(gap.samples, 0.1)
    assert excludes_zero(gap)
    assert "no difference" not in verdict(gap)


def test_a_difference_within_its_interval_is_called_so():
    gap = Figure(0.01, np.linspace(-0.1, 0.1, 41))
    assert not excludes_zero(gap)
    assert "no difference beyond the interval" in verdict(gap)


def test_a_mean_leaves_out_what_is_unknown():
    weights = np.array([[1, 0], [1, 2], [1, 1]], np.float32)
    found = mean_figure(np.array([1.0, math.nan, 0.0]), weights)
    assert found.value == 0.5
    np.testing.assert_allclose(found.samples, [0.5, 0.0])


def test_an_average_is_taken_resample_by_resample():
    found = average([Figure(1.0, np.array([1.0, 0.0])), Figure(0.0, np.array([1.0, 1.0]))])
    assert found.value == 0.5
    np.testing.assert_allclose(found.samples, [1.0, 0.5])


def test_rows_stand_beside_random_encoder_prevalence_and_further_baselines(bench):
    figures = {name: Figure(value, np.full(3, value)) for name, value in ((bench.first, 0.9), ("random", 0.6))}
    figures["measured"] = Figure(0.7, np.full(3, 0.7))
    rows = {row.key: row for row in rows_beside(bench, "task", figures, 10)}
    assert rows["toy/task"].baselines == {"random_encoder": 0.6, "prevalence": 0.5, "measured": 0.7}
    assert rows["toy/task/gain"].value == pytest.approx(0.3)
    assert rows["toy/task/gain"].extra["excludes_zero"]
