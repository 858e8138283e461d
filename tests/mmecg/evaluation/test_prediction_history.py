"""Gain from history and its controls, where the truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.prediction_cases import Cases
from mmecg.evaluation.prediction_history import (
    apply_count,
    carry_forward,
    fit_count,
    history,
    other_owners,
    reordered,
    shuffled,
)
from mmecg.prediction.history import Prior


def prior(name: str, days: float, *known: float) -> Prior:
    return Prior(study_id=name, days_before=days, source="labels", known=np.array(known, np.float32))


def test_nobody_gets_a_history_of_their_own() -> None:
    rng = np.random.default_rng(0)
    for sizes in ([1, 1], [3, 1, 1, 1], rng.integers(1, 9, 60).tolist()):
        subjects = rng.permutation(np.repeat(np.arange(len(sizes)), sizes).astype(str))
        owners = other_owners(subjects, seed=3)
        assert (subjects[owners] != subjects).all()
        assert sorted(owners.tolist()) == list(range(len(subjects)))


def test_shuffling_keeps_counts_and_the_pool_but_not_who_has_what() -> None:
    histories = [
        [prior(f"{row}-{place}", 1.0 + place + row / 100, row) for place in range(1 + row % 3)] for row in range(60)
    ]
    found = shuffled(histories, seed=1)
    assert [len(one) for one in found] == [len(one) for one in histories]
    pool = sorted(item.study_id for one in histories for item in one)
    assert sorted(item.study_id for one in found for item in one) == pool
    assert all(list(one) == sorted(one, key=lambda item: item.days_before) for one in found)
    kept = sum(item.study_id.startswith(f"{row}-") for row, one in enumerate(found) for item in one)
    assert kept < 0.1 * len(pool)


def test_reordering_keeps_each_history_to_itself() -> None:
    histories = [[prior("a", 1.0, 0), prior("b", 5.0, 1), prior("c", 9.0, 1)]]
    (found,) = reordered(histories, seed=2)
    assert {item.study_id for item in found} == {"a", "b", "c"}
    assert [item.days_before for item in found] == [1.0, 5.0, 9.0]


def test_the_last_known_value_is_carried_forward() -> None:
    rates = np.array([-2.0, -3.0, -4.0])
    found = carry_forward([[prior("new", 1.0, 1, np.nan, np.nan), prior("old", 9.0, 0, 0, np.nan)]], rates)[0]
    assert found[0] > 0
    assert found[1] < 0
    assert found[2] == -4.0


def test_the_count_is_fitted_where_it_tells_something_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, 6000)
    offset = np.zeros((6000, 2))
    chance = 1 / (1 + np.exp(-np.column_stack([1.5 * np.log1p(counts) - 1, np.zeros(6000)])))
    weights = fit_count(offset, counts, rng.random(chance.shape) < chance)
    assert weights[1, 0] == pytest.approx(1.5, abs=0.15)
    assert weights[0, 0] == pytest.approx(-1, abs=0.15)
    assert abs(weights[1, 1]) < 0.1
    assert apply_count(offset[:1], np.array([0]), weights)[0] == pytest.approx(weights[0])


@pytest.fixture(scope="module")
def cases() -> Cases:
    """Studies whose label persists: history helps by a known amount, a shuffled one does not."""
    rng = np.random.default_rng(5)
    n, labels = 1200, ("AFIB", "LVH", "superclass/MI")
    gold = rng.random((n, len(labels))) < 0.2
    gold[:, 2] |= ~gold.any(axis=1)  # every study has a superclass
    subjects = (np.arange(n) // 2).astype(str)
    single = np.where(gold, 1.0, 0.0) + rng.normal(0, 1, gold.shape)
    followed = np.arange(n) % 2 == 1
    more = np.where(followed[:, None], np.where(gold, 1.0, 0.0) + rng.normal(0, 1, gold.shape), 0.0)
    noise = np.where(followed[:, None], rng.normal(0, 0.01, gold.shape), 0.0)
    systems = {
        "single": single - 0.1,
        "current": single,
        "history": single + more,
        "control_shuffled": single + noise,
        "random_encoder": single * 0.1,
    }
    return Cases(
        pl.DataFrame({"subject_id": subjects}),
        labels,
        gold,
        patient_weights(subjects, resamples=200),
        followed.astype(np.int64),
        np.where(followed, 40.0, np.nan),
        systems,
    )


def test_gain_is_found_and_controls_show_none(cases: Cases) -> None:
    part = history(cases)
    rows = {row.key: row for row in part.rows}
    gain, control = rows["history_gain/macro_auroc"], rows["control_shuffled/macro_auroc"]
    assert gain.n == 600
    assert gain.value > 0.05
    assert gain.extra["excludes_zero"]
    assert gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(gain.extra["auroc"] - gain.extra["auroc_without"])
    assert abs(control.value) < 0.005
    assert gain.baselines["prevalence"] == 0.0
    assert gain.baselines["control_shuffled"] == control.value
    assert rows["history_gain/brier"].n == 600


def test_strata_and_labels_of_the_gain(cases: Cases) -> None:
    tables = history(cases, "/cross_fitted").tables
    strata = {
        (line["by"], line["stratum"]): line for line in tables["history_strata_cross_fitted"].iter_rows(named=True)
    }
    assert strata["earlier studies", "0"]["gain"] == 0.0
    assert strata["earlier studies", "1"]["studies"] == 600
    assert strata["earlier studies", "5+"]["studies"] == 0
    assert strata["gap to the latest", "1-12 months"]["gain"] > 0.05
    labels = tables["history_labels_cross_fitted"]
    assert labels["label"].to_list() != []
    assert (labels["p_holm"] >= labels["p"]).all()
    assert (labels["p_holm"] < 0.05).all()


def test_without_enough_followed_studies_rows_say_so(cases: Cases) -> None:
    part = history(cases.take(np.arange(20)))
    (first, *_) = part.rows
    assert first.key == "history_gain/macro_auroc"
    assert "no label has 10 positives among the 10 studies" in first.extra["reason"]
