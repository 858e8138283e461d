"""A tiny data set: features show the labels with noise, most labels persist, and each bundle sees them its own way."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mmecg.errors import InvalidInputError
from mmecg.evaluation.age_fitting import ages, fit_age
from mmecg.evaluation.history_fitting import HistoryRecipe
from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.prediction_data import PredictionData, history_of, priors_of
from mmecg.evaluation.prediction_fitting import (
    HonestScores,
    fit_confidence,
    fit_evidence,
    fit_single,
    honest_scores,
    strangers,
)
from mmecg.prediction.history import build_tokens, last_known

LABELS = ("AFIB", "LVH", "superclass/MI")
PATIENTS, STUDIES, NOISE = 240, 3, 1.5
RECIPE = HistoryRecipe(steps=150, batch=64, hidden=8, cross_penalty=1.0, wrong=0.5)


def records(bundle: int) -> PredictionData:
    rng = np.random.default_rng(0)
    shape = (PATIENTS, STUDIES, len(LABELS))
    gold = rng.random((PATIENTS, 1, len(LABELS))) < 0.3
    gold = np.where(rng.random(shape) < 0.1, rng.random(shape) < 0.3, gold).reshape(-1, len(LABELS))
    seen = gold + rng.normal(0, NOISE, gold.shape)
    count = len(gold)
    identity = np.repeat(rng.normal(size=(PATIENTS, 12)), STUDIES, axis=0)
    embedding = np.concatenate([seen, 3 * identity], axis=1) @ np.linalg.qr(rng.normal(size=(15, 15)))[0]
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    mix = np.random.default_rng(bundle).normal(size=(len(LABELS), 8))
    features = (seen @ mix).astype(np.float32)
    patient = np.arange(count) // STUDIES
    table = pl.DataFrame(
        {
            "study_id": [str(row) for row in range(count)],
            "subject_id": [f"p{one}" for one in patient],
            "acquired_at": [datetime(1990, 1, 1) + timedelta(days=9 * row) for row in range(count)],
            "strat_fold": 1 + patient % 4,
            "age_years": 60 + 5 * seen[:, 0],
            "sex": ["female" if one % 2 else "male" for one in patient],
            "height_cm": [None] * count,
            "weight_kg": [None] * count,
            "age_note": ["above 89" if row % 50 == 0 else None for row in range(count)],
        }
    )
    return PredictionData(table, LABELS, gold, features, embedding)


@pytest.fixture(scope="module")
def honest() -> HonestScores:
    return honest_scores([(records(1), (1, 2)), (records(2), (3, 4))])


def test_each_record_is_scored_by_the_bundle_that_left_it_out(honest: HonestScores) -> None:
    np.testing.assert_array_equal(honest.part, np.where(np.isin(honest.data.folds, (1, 2)), 1, 0))
    for part, bundle in enumerate((1, 2)):
        rows = honest.part == part
        np.testing.assert_array_equal(honest.data.features[rows], records(bundle).features[rows])
    assert (auroc(honest.data.gold, honest.logits) > 0.6).all()
    assert np.isfinite(honest.votes).all()
    assert np.isnan(honest.age_error).sum() == len(honest.data) / 50 + 0.6


@pytest.mark.parametrize("folds", [((1, 2, 3, 4), (1, 2)), ((9,), (1, 2)), ((1, 2), (1, 2, 3))])
def test_bundles_that_saw_all_or_nothing_are_refused(folds: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        honest_scores([(records(index), one) for index, one in enumerate(folds)])


def test_history_helps_unless_it_is_a_strangers(honest: HonestScores) -> None:
    group = np.arange(len(honest.data)) // STUDIES % 3
    rows = np.array([row for row in np.flatnonzero(group == 0) if honest.earlier[row]])
    evidence = fit_evidence(honest, np.flatnonzero(group != 0), RECIPE)
    single = evidence.calibration.apply(honest.logits[rows])
    voted = evidence.cohort.apply(single, honest.votes[rows])
    with_history, with_both = evidence.apply(honest, rows)
    gold = honest.data.gold[rows]
    gain = (auroc(gold, with_both) - auroc(gold, voted)).mean()
    assert gain > 0.08
    assert (auroc(gold, with_history) - auroc(gold, single)).mean() > 0.08
    queries, owners = strangers(honest, rows, times=1, seed=3)
    harm = 0.0
    for part, reader in enumerate(honest.readers):
        at = honest.part[queries] == part
        priors = history_of(honest.data, honest.earlier, rows=queries[at], owners=owners[at])
        base = evidence.cohort.apply(evidence.calibration.apply(honest.logits[queries[at]]), honest.votes[queries[at]])
        found = [len(one) for one in priors]
        prevalence = honest.data.gold.mean(axis=0).astype(np.float32)
        tokens = build_tokens(base, honest.data.embedding[queries[at]], priors, found, reader, prevalence)
        after = evidence.history.apply(base, tokens).logits
        truth = honest.data.gold[queries[at]]
        harm += (auroc(truth, base) - auroc(truth, after)).mean() / 2
    assert harm < gain / 3


def test_nothing_but_the_rows_is_learnt_from(honest: HonestScores) -> None:
    rows = np.flatnonzero(np.arange(len(honest.data)) % STUDIES < 2)  # the last study of each patient is kept out
    gold = honest.data.gold.copy()
    gold[2::STUDIES] ^= True
    changed = dataclasses.replace(honest, data=dataclasses.replace(honest.data, gold=gold))
    recipe = HistoryRecipe(steps=3, batch=8, hidden=2)
    first, second = (fit_evidence(one, rows, recipe) for one in (honest, changed))
    for name, value in vars(first.history).items():
        np.testing.assert_array_equal(getattr(second.history, name), value, err_msg=name)
    np.testing.assert_array_equal(first.cohort.weight, second.cohort.weight)
    np.testing.assert_array_equal(first.calibration.offset, second.calibration.offset)


def test_strangers_share_the_bundle_and_not_the_patient(honest: HonestScores) -> None:
    rows = np.arange(len(honest.data))
    queries, owners = strangers(honest, rows)
    assert len(queries) > 1.9 * len(rows)
    assert (honest.part[queries] == honest.part[owners]).all()
    assert (honest.data.subject_ids[queries] != honest.data.subject_ids[owners]).all()


def test_sets_and_intervals_hold_what_they_promise(honest: HonestScores) -> None:
    confidence = fit_confidence(honest, recipe=HistoryRecipe(steps=20, batch=64, hidden=4))
    evidence = fit_evidence(honest, np.arange(len(honest.data)), HistoryRecipe(steps=20, batch=64, hidden=4))
    alone, joined = evidence.apply(honest, np.arange(len(honest.data)))
    category = last_known(history_of(honest.data, priors_of(honest.data)), len(LABELS))
    for route, logits in ((confidence.alone, alone), (confidence.cohort, joined)):
        sets = route.conformal.sets(logits, category, 0.9)
        held = np.where(honest.data.gold, sets[..., 1], sets[..., 0])
        assert 0.85 < held.mean() < 0.97
        low, high = route.venn_abers.interval(logits)
        assert (low <= high).all()
        assert len(route.uncertainty) == 1001
        assert (np.diff(route.uncertainty) >= 0).all()


def test_the_first_member_is_fitted_on_all_and_the_others_spread(honest: HonestScores) -> None:
    data = records(1)
    evidence = fit_evidence(honest, np.arange(len(data)), HistoryRecipe(steps=2, batch=8, hidden=2))
    head = fit_single(data, evidence.calibration, members=3)
    assert head.weight.shape == (3, 8, len(LABELS))
    logits, spread = head.logits(data.features)
    assert (auroc(data.gold, logits) > 0.6).all()
    assert (spread > 0).all()


def test_age_is_read_from_the_features_and_its_interval_holds() -> None:
    data = records(1)
    half = np.arange(len(data)) % 2 == 0
    age = ages(data)
    assert np.isnan(age).sum() == np.ceil(len(data) / 50)
    plain = fit_age(data.take(half))
    assert plain.predict(data.features, 0.9)[1].tolist() == plain.predict(data.features, 0.9)[2].tolist()
    errors = np.abs(plain.predict(data.features, 0.9)[0] - age)
    head = fit_age(data, np.where(np.arange(len(data)) % 4 == 1, errors, np.nan))
    value, low, high = head.predict(data.features, 0.9)
    rest = np.isfinite(age) & (np.arange(len(data)) % 4 == 3)
    assert np.corrcoef(value[rest], age[rest])[0, 1] > 0.95
    assert ((low <= age) & (age <= high))[rest].mean() > 0.8
    assert (head.predict(data.features, 0.99)[2] >= high).all()
