from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmecg.errors import ConfigError, InvalidInputError
from mmecg.labels.agreement import EcgReader, Ridge, fit_stack, vote
from mmecg.labels.few_gold import fit_few_gold
from mmecg.labels.logistic import expit, logit
from mmecg.labels.weights import Agreement, load_agreement, load_text_evidence, read_agreement, save_agreement
from mmecg.neighbours import knn_scores

LABELS = ("A", "B", "C")


def channels(count: int = 1500, *, seed: int = 0):
    """Two channels that each see half of what decides the gold."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(2, count, len(LABELS))).astype(np.float32)
    gold = rng.random((count, len(LABELS))) < expit(1.5 * truth[0] + 0.7 * truth[1] - 1)
    return {"text": truth[0], "probe": truth[1]}, gold


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_stack_finds_the_slopes_that_made_the_data() -> None:
    scores, gold = channels(6000)
    stack = fit_stack(scores, gold, LABELS, tuple(scores), ridge=Ridge(own=1e5, cross=np.inf))
    np.testing.assert_allclose(np.diag(stack.weight[:3]), 1.5, atol=0.15)
    np.testing.assert_allclose(np.diag(stack.weight[3:]), 0.7, atol=0.1)
    assert np.count_nonzero(stack.weight[:3]) == 3


def test_without_sharing_it_is_the_logistic_regression_of_scikit_learn() -> None:
    scores, gold = channels()
    stack = fit_stack(scores, gold, LABELS, tuple(scores), ridge=Ridge(own=1e-3, cross=np.inf))
    for column in range(3):
        inputs = np.stack([scores["text"][:, column], scores["probe"][:, column]], axis=1)
        oracle = LogisticRegression(C=1e6).fit(inputs, gold[:, column])
        np.testing.assert_allclose(stack.weight[[column, 3 + column], column], oracle.coef_[0], atol=0.02)


def test_probabilities_are_calibrated_on_new_records() -> None:
    scores, gold = channels()
    stack = fit_stack(scores, gold, LABELS, tuple(scores), ridge=Ridge())
    fresh, truth = channels(4000, seed=1)
    probability = stack.probabilities(fresh)
    for low in np.arange(0, 1, 0.25):
        inside = (probability >= low) & (probability < low + 0.25)
        assert abs(probability[inside].mean() - truth[inside].mean()) < 0.04


def test_votes_are_those_of_the_evaluation() -> None:
    corpus, labels = unit(300, 0), np.random.default_rng(0).random((300, 4)) < 0.3
    share = knn_scores(unit(20, 1), corpus, labels)
    expected = logit((share + 0.003) / 1.006)
    np.testing.assert_allclose(vote(unit(20, 1), corpus, labels), expected, atol=1e-3)


def test_a_missing_channel_is_named() -> None:
    scores, gold = channels(200)
    stack = fit_stack(scores, gold, LABELS, tuple(scores), ridge=Ridge())
    with pytest.raises(InvalidInputError, match="scores lack the channel 'probe'"):
        stack.log_odds({"text": scores["text"]})


def test_few_gold_says_how_sure_it_is() -> None:
    scores, gold = channels()
    fresh, _ = channels(50, seed=2)
    width = {}
    for count in (60, 600):
        part = {name: values[:count] for name, values in scores.items()}
        subjects = np.array([f"p{row // 2}" for row in range(count)])
        mode = fit_few_gold(part, gold[:count], LABELS, subject_ids=subjects, resamples=15)
        probability, low, high = mode.probabilities(fresh)
        assert ((low <= probability) & (probability <= high)).all()
        width[count] = float((high - low).mean())
    assert width[600] < 0.6 * width[60]


def test_few_gold_refuses_too_few() -> None:
    scores, gold = channels(49)
    with pytest.raises(InvalidInputError, match="49 gold studies, expected at least 50"):
        fit_few_gold(scores, gold, LABELS)


def test_weights_survive_the_file_and_refuse_another_bundle(tmp_path: Path) -> None:
    scores, gold = channels(200)
    stack = fit_stack(scores, gold, LABELS, tuple(scores), ridge=Ridge())
    rng = np.random.default_rng(0)
    reader = EcgReader(
        fingerprint="f" * 64,
        labels=LABELS,
        probe_weight=rng.normal(size=(5, 3)).astype(np.float32),
        probe_bias=np.zeros(3, np.float32),
        prompts=unit(3, 3),
        prompt_mean=np.zeros(3, np.float32),
        prompt_scale=np.ones(3, np.float32),
        corpus=np.rint(unit(60, 4) * 127).astype(np.int8),
        corpus_labels=rng.random((60, 3)) < 0.5,
    )
    path = tmp_path / "a.safetensors"
    save_agreement(Agreement(reader, stack, stack), path)
    again = read_agreement(path)
    features = rng.normal(size=(4, 5)).astype(np.float32)
    for name, values in reader.scores(features, unit(4, 5)).items():
        np.testing.assert_array_equal(again.reader.scores(features, unit(4, 5))[name], values)
    np.testing.assert_array_equal(again.text_ecg.log_odds(scores), stack.log_odds(scores))
    again.reader.check("f" * 64)
    with pytest.raises(ConfigError, match="label weights are of bundle ffffffffffff, got bundle 000000000000"):
        again.reader.check("0" * 64)


def test_the_shipped_stack_fits_the_shipped_text_weights() -> None:
    agreement = load_agreement()
    assert agreement.reader.labels == agreement.text_ecg.labels == load_text_evidence().labels
    own = np.diag(agreement.text_ecg.weight[: len(agreement.reader.labels)])
    assert (own > 0).all()  # more evidence in the text never lowers its own label
