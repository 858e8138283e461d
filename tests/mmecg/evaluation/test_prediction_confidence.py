"""Calibration, conformal coverage, abstention and subgroups on studies drawn from a known model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.prediction_cases import Cases
from mmecg.evaluation.prediction_confidence import calibration, conformal, discrimination
from mmecg.evaluation.prediction_decisions import THRESHOLDS, abstention, decision_curves
from mmecg.evaluation.prediction_metrics import net_benefit
from mmecg.evaluation.prediction_subgroups import gaps, subgroups

LABELS = ("AFIB", "LVH", "IMI", "PACE", "superclass/MI", "superclass/CD")
N = 3000


@pytest.fixture(scope="module")
def cases() -> Cases:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, (N, len(LABELS)))
    logits[:, 3] = -9  # hardly anybody is paced
    gold = rng.random(logits.shape) < expit(logits)
    subjects = (np.arange(N) // 3).astype(str)
    empty = pl.lit(None, pl.String)
    table = pl.DataFrame(
        {
            "subject_id": subjects,
            "age_years": np.where(np.arange(N) < 5, 15.0, 30.0 + np.arange(N) % 60),
            "sex": np.where(np.arange(N) % 2, "male", "female"),
            "height_cm": np.full(N, 170.0),
            "weight_kg": np.full(N, 70.0),
            "site": np.full(N, "1"),
            "device": np.full(N, "CS-12"),
        }
    ).with_columns(
        *(empty.alias(name) for name in ("static_noise", "burst_noise", "electrodes_problems", "pacemaker")),
        pl.when(pl.int_range(pl.len()) < 100).then(pl.lit("I-V1")).alias("baseline_drift"),
    )
    systems = {"history": logits, "current": logits, "random_encoder": rng.normal(-1, 0.1, logits.shape)}
    weights = patient_weights(subjects, resamples=100)
    return Cases(table, LABELS, gold, weights, np.arange(N) % 2, np.full(N, np.nan), systems)


def best_sets(cases: Cases, level: float) -> NDArray[np.bool_]:
    """Return class-conditional sets from the true quantiles."""
    logits = cases.systems["history"]
    found = np.empty((*logits.shape, 2), np.bool_)
    for label in range(logits.shape[1]):
        present = cases.gold[:, label]
        found[:, label, 0] = logits[:, label] <= np.quantile(logits[~present, label], level)
        found[:, label, 1] = logits[:, label] >= (
            np.quantile(logits[present, label], 1 - level) if present.any() else 0
        )
    return found


def test_a_true_model_is_calibrated_and_a_sharpened_one_is_not(cases: Cases) -> None:
    rows = {row.key: row for row in calibration(cases, "history").rows}
    assert rows["ece/macro"].value < 0.03
    assert rows["ece/macro"].value == pytest.approx(rows["ece/macro"].extra["value_if_calibrated"], abs=0.01)
    assert rows["calibration/slope"].low < 1 < rows["calibration/slope"].high
    assert rows["calibration/intercept"].value == pytest.approx(0, abs=0.1)
    assert rows["brier/macro"].value < rows["brier/macro"].baselines["prevalence"]
    sharp = replace(cases, systems={**cases.systems, "history": 2 * cases.systems["history"]})
    rows = {row.key: row for row in calibration(sharp, "history").rows}
    assert rows["calibration/slope"].value == pytest.approx(0.5, abs=0.05)
    assert rows["ece/macro"].value > 0.05


def test_discrimination_has_both_means_and_both_baselines(cases: Cases) -> None:
    part = discrimination(cases, "history", "full")
    rows = {row.key: row for row in part.rows}
    assert rows["full/all"].baselines["prevalence"] == 0.5
    assert rows["full/superclass"].baselines["random_encoder"] == pytest.approx(0.5, abs=0.03)
    extra = rows["full/all"].extra
    assert (extra["n_labels"], extra["n_labels_all_labels"]) == (3, 4)  # PACE is too rare
    assert rows["full/superclass"].n == int(cases.gold[:, 4:].any(axis=1).sum())
    assert rows["full/all/sensitivity_at_90"].value > rows["full/all/sensitivity_at_95"].value
    assert part.tables["labels_full"].height == len(LABELS)


def test_coverage_is_as_promised_in_each_class(cases: Cases) -> None:
    part = conformal(cases, lambda level: best_sets(cases, level))
    rows = {row.key: row for row in part.rows}
    for percent in (80, 90, 95):
        assert rows[f"conformal{percent}/coverage_present"].value == pytest.approx(percent / 100, abs=0.01)
        assert rows[f"conformal{percent}/coverage_absent"].value == pytest.approx(percent / 100, abs=0.01)
    everything = conformal(cases, lambda level: np.ones((N, len(LABELS), 2), np.bool_), levels=(0.9,))
    assert [row.value for row in everything.rows[:2]] == [1.0, 2.0]
    assert everything.rows[0].extra["share_both"] == 1.0
    beside = conformal(cases, lambda level: best_sets(cases, level), lambda level: best_sets(cases, level), (0.9,))
    for row in beside.rows:
        assert row.baselines["random_encoder"] == pytest.approx(row.value)


def test_abstaining_from_uncertain_studies_avoids_errors_and_random_doubt_does_not(cases: Cases) -> None:
    rows = {row.key: row for row in abstention(cases, "history").rows}
    found = rows["abstain20/error_reduction"]
    assert 0.15 < found.value < found.extra["value_if_errors_were_known"]
    assert abs(found.baselines["random_encoder"]) < 0.05
    assert rows["abstain20/error_reduction/per_decision"].value > found.value
    assert found.extra["value_if_probabilities_are_true"] == pytest.approx(found.value, abs=0.03), "as they are here"
    assert rows["abstain20/error_reduction/any_error"].value > 0.05
    assert rows["abstain20/error_reduction/per_label"].value > 0.2
    assert rows["abstain20/error_reduction/per_label"].extra["n_labels"] == 3
    area = rows["aurc"]
    assert area.extra["value_if_errors_were_known"] < area.low < area.value < area.high < area.baselines["prevalence"]
    assert 0.2 < area.extra["share_of_possible"] < 0.8
    assert rows["aurc/superclass"].n < area.n
    table = abstention(cases, "history").tables["risk_coverage"]
    assert (table["by_uncertainty"] >= table["if_errors_were_known"] - 1e-12).all()


def test_decision_curves_lie_above_a_useless_system(cases: Cases) -> None:
    row = decision_curves(cases, ("history", "random_encoder")).rows[-1]
    assert row.key == "decision_curve/all"
    assert row.low < row.value < row.high
    assert row.baselines["random_encoder"] < 0.05 < 0.2 < row.value
    wide = (THRESHOLDS >= 0.05) & (THRESHOLDS <= 0.5)
    by_hand = []
    for label in range(3):
        rate = cases.gold[:, label].mean()
        curve = net_benefit(cases.gold[:, label], cases.probability("history")[:, label], THRESHOLDS)
        everyone = rate - (1 - rate) * THRESHOLDS / (1 - THRESHOLDS)
        by_hand.append((curve - np.maximum(everyone, 0))[wide].mean() / rate)
    assert row.value == pytest.approx(np.mean(by_hand))


def test_small_cells_are_suppressed_and_said_so(cases: Cases) -> None:
    part = subgroups(cases, "history", best_sets(cases, 0.9))
    table = part.tables["subgroups"]
    young = table.filter((pl.col("attribute") == "age") & (pl.col("value") == "10-19")).row(0, named=True)
    assert (young["studies"], young["suppressed"], young["auroc"]) == (5, True, None)
    sex = table.filter((pl.col("attribute") == "sex") & (pl.col("value") == "male")).row(0, named=True)
    assert sex["suppressed"] is False
    assert sex["coverage"] == pytest.approx(0.92, abs=0.01)  # nobody paced is missed, for there is nobody
    assert sex["random_encoder"] == pytest.approx(0.5, abs=0.05)
    cells = part.tables["subgroup_labels"]
    assert cells.filter(pl.col("suppressed") != (pl.col("positives") < 10)).is_empty()
    assert cells.filter(pl.col("suppressed"))["auroc"].null_count() == cells["suppressed"].sum()
    rows = {row.key: row for row in part.rows}
    assert rows["ece/worst_subgroup"].value == table.filter(pl.col("studies") >= 150)["ece"].max()
    assert rows["ece/worst_subgroup"].extra["value_any_size"] == table["ece"].max()
    cells_by_pacing = cells.filter(pl.col("attribute") == "pacing")["label"].to_list()
    assert "AFIB" in cells_by_pacing
    assert "PACE" not in cells_by_pacing
    assert rows["ece/worst_subgroup"].extra["value_beyond_noise"] < 0.05
    assert rows["conformal90/worst_subgroup"].value == table.filter(pl.col("positives") >= 50)["coverage"].min()


def test_gaps_are_small_where_groups_do_not_differ_and_large_where_they_do(cases: Cases) -> None:
    rows = {row.key: row for row in gaps(cases, "history").rows}
    assert rows["gap/sex"].value < 0.03
    assert rows["gap/sex"].extra["difference_low"] < 0 < rows["gap/sex"].extra["difference_high"]
    logits = cases.systems["history"].copy()
    male = cases.table["sex"].to_numpy() == "male"
    logits[male] = np.random.default_rng(1).normal(size=logits[male].shape)
    worse = replace(cases, systems={**cases.systems, "history": logits})
    row = next(row for row in gaps(worse, "history").rows if row.key == "gap/sex")
    assert row.value > 0.3
    assert row.extra["difference"] == pytest.approx(row.value)
    assert row.extra["auroc_male"] < row.extra["auroc_female"]
