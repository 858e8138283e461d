from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from mmecg.bundle import Bundle, load_bundle
from mmecg.errors import InvalidInputError
from mmecg.evaluation.cohort import Encoded
from mmecg.evaluation.label_data import LabelData
from mmecg.evaluation.label_fitting import (
    HonestScores,
    fit_agreement,
    fit_reader,
    fit_text,
    honest_scores,
    join_honest,
)
from mmecg.labels.assertion import LabelAssertion, Status

LABELS = ("AFIB", "LVH")
COUNT = 400


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The shipped bundle, said to be trained on fold 1 only."""
    loaded = load_bundle()
    training = dataclasses.replace(loaded.config.training, folds=(1,))
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, training=training))


def records() -> tuple[LabelData, Encoded]:
    """Records whose features show the gold; the text states it, with some errors."""
    rng = np.random.default_rng(0)
    gold = rng.random((COUNT, 2)) < 0.3
    features = (2 * gold @ rng.normal(size=(2, 6)) + rng.normal(0, 0.5, (COUNT, 6))).astype(np.float32)
    embedding = rng.normal(size=(COUNT, 256)).astype(np.float32)
    embedding[:, :2] += 20 * gold
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    said = gold ^ (rng.random(gold.shape) < 0.1)
    reports = tuple(
        tuple(LabelAssertion(LABELS[at], Status.PRESENT, 0, 1, f"en/{LABELS[at]}/0", language="en") for at in places)
        for places in (np.flatnonzero(row) for row in said)
    )
    table = pl.DataFrame(
        {"subject_id": [f"p{row // 2}" for row in range(COUNT)], "strat_fold": [1 + row // 200 for row in range(COUNT)]}
    )
    return LabelData(table, reports, LABELS, gold), Encoded(features, embedding, {})


def test_scores_are_of_records_that_the_bundle_has_not_seen(bundle: Bundle) -> None:
    data, encoded = records()
    honest = honest_scores(bundle, encoded, data, (1, 2), {})
    assert honest.rows.tolist() == list(range(200, 400))
    for name, values in honest.channels.items():
        assert values.shape == (200, 2), name
    gold = data.gold[honest.rows]
    for name in ("probe", "votes"):
        assert honest.channels[name][gold].mean() > honest.channels[name][~gold].mean() + 1, name


def test_a_bundle_that_saw_every_fold_is_refused(bundle: Bundle) -> None:
    data, encoded = records()
    with pytest.raises(InvalidInputError, match=r"was trained on folds \[1\], expected some of \[1\] but not all"):
        honest_scores(
            bundle, Encoded(encoded.features[:200], encoded.embedding[:200], {}), data.take(np.arange(200)), (1,), {}
        )


def test_the_stack_is_better_than_the_text_alone(bundle: Bundle) -> None:
    data, encoded = records()
    text, honest = fit_text(data), honest_scores(bundle, encoded, data, (1, 2), {})
    agreement = fit_agreement(fit_reader(bundle.encoder, encoded, data, {}, corpus=50), honest, text, data)
    assert len(agreement.reader.corpus) == 50
    assert agreement.reader.fingerprint == bundle.fingerprint
    scores = {"text": text.held_out[honest.rows], **honest.channels}
    gold = data.gold[honest.rows]
    errors = {
        "text": (scores["text"] > 0) != gold,
        "ecg": agreement.ecg.decided(scores) != gold,
        "both": agreement.text_ecg.decided(scores) != gold,
    }
    assert errors["both"].mean() < errors["text"].mean()
    assert errors["ecg"].mean() < 0.2


def test_joined_scores_hold_every_record_once_from_the_first_bundle_that_left_it_out():
    parts = [
        HonestScores(np.array(rows), {"probe": np.full((len(rows), 2), value, np.float32)})
        for rows, value in (([3, 5], 1.0), ([0, 3, 1], 2.0))
    ]
    joined = join_honest(parts)
    assert joined.rows.tolist() == [0, 1, 3, 5]
    assert joined.channels["probe"][:, 0].tolist() == [2, 2, 1, 1]
