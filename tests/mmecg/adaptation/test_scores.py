"""Figures of systems: as the metrics say, with intervals by patient; unknown labels have no part."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mmecg.adaptation.scores import bootstrap_auprc, label_auprc, label_auroc, score_systems

from .conftest import make_table


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    truth = rng.random((300, 3)) < (0.3, 0.5, 0.01)
    values = truth.astype(np.float32)
    values[rng.random(300) < 0.2, 1] = np.nan
    good, bad = (truth + noise * rng.standard_normal((300, 3)) for noise in (0.7, 3.0))
    table = make_table(values, np.ones(300), labels=("a", "b", "rare"), groups={"x": (0, 1), "y": (2,)})
    return table, good.round(1), bad.round(1)


def test_labels_are_scored_where_they_are_known(case):
    table, good, _ = case
    for label in (0, 1):
        known = ~np.isnan(table.values[:, label])
        truth, scores = table.values[known, label] == 1, good[known, label]
        assert label_auroc(table.values, good)[label] == pytest.approx(roc_auc_score(truth, scores))
        assert label_auprc(table.values, good)[label] == pytest.approx(average_precision_score(truth, scores))


def test_resampled_precision_is_that_of_repeated_records():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(60) < 0.4, rng.integers(0, 8, 60).astype(float)
    weights = rng.integers(0, 3, (60, 5)).astype(np.float32)
    found = bootstrap_auprc(labels, scores, weights)
    for resample in range(5):
        rows = np.repeat(np.arange(60), weights[:, resample].astype(int))
        assert found[resample] == pytest.approx(average_precision_score(labels[rows], scores[rows]))


def test_the_table_has_systems_prevalence_and_differences(case):
    table, good, bad = case
    scored = score_systems({"encoder": good, "random encoder": bad}, table, resamples=200)
    first, second = (scored.value("x", name) for name in ("encoder", "random encoder"))
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(label_auroc(table.values, good)[:2].mean())
    gain = scored.value("x", "encoder", less="random encoder")
    assert gain.value == pytest.approx(first.value - second.value)
    assert 0 < gain.low < gain.value < gain.high
    assert scored.value("x", "prevalence").value == 0.5
    share = np.nanmean(table.values, axis=0)[:2].mean()
    assert scored.value("x", "prevalence", "auprc").value == pytest.approx(share)
    assert scored.value("y", "encoder").labels == 0
    assert np.isnan(scored.value("y", "encoder").value)
    assert len(scored.cells()) == 8
    rows = {row.key: row for row in scored.rows("linear_probe", seed=3)}
    row = rows["linear_probe/x/auroc"]
    assert set(row.baselines) == {"random_encoder", "prevalence"}
    assert row.to_json()["differences"]["random_encoder"]["value"] == pytest.approx(gain.value, abs=1e-6)
    assert row.extra["seed"] == 3
    assert scored.per_label["positives"].to_list()[2] < 10
