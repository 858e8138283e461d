from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from mmecg.evaluation import metrics


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(5, 60), levels=st.integers(2, 40))
def test_auroc_and_auprc_agree_with_sklearn_also_with_ties(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 4)) < 0.4
    labels[0], labels[1] = True, False
    scores = rng.integers(0, levels, (n, 4)).astype(np.float32)
    roc, precision = metrics.auroc(labels, scores), metrics.auprc(labels, scores)
    for column in range(4):
        assert roc[column] == pytest.approx(roc_auc_score(labels[:, column], scores[:, column]), abs=1e-12)
        expected = average_precision_score(labels[:, column], scores[:, column])
        assert precision[column] == pytest.approx(expected, abs=1e-12)


def test_a_label_without_positives_or_negatives_has_no_auroc() -> None:
    labels = np.array([[True, False, True], [True, False, False]])
    found = metrics.auroc(labels, np.array([[1.0, 1, 1], [0, 0, 0]]))
    assert np.isnan(found[:2]).all()
    assert found[2] == 1.0
    assert np.isnan(metrics.auprc(labels, np.ones((2, 3)))[1])


def test_constant_scores_are_at_chance() -> None:
    labels = np.array([[True], [False], [False], [True], [False]])
    assert metrics.auroc(labels, np.zeros((5, 1)))[0] == 0.5


def test_macro_leaves_out_rare_labels_and_counts_the_others() -> None:
    labels = np.zeros((30, 3), np.bool_)
    labels[:10, 0], labels[:9, 1], labels[:20, 2] = True, True, True
    values = np.array([0.8, 0.1, 0.6])
    assert metrics.macro(values, labels) == (pytest.approx(0.7), 2)
    assert metrics.macro(values, labels, min_positives=1) == (pytest.approx(0.5), 3)
    mean, count = metrics.macro(values, labels, min_positives=25)
    assert math.isnan(mean)
    assert count == 0


def test_precision_at_k_ignores_entries_that_are_not_allowed() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    relevant = np.array([[True, False, True, True]])
    allowed = np.array([[False, True, True, True]])
    assert metrics.precision_at_k(scores, relevant, 2)[0] == 0.5
    assert metrics.precision_at_k(scores, relevant, 2, allowed=allowed)[0] == 0.5
    assert metrics.precision_at_k(scores, relevant, 3, allowed=allowed)[0] == pytest.approx(2 / 3)
    # Only three are allowed: asking for ten does not dilute the precision.
    assert metrics.precision_at_k(scores, relevant, 10, allowed=allowed)[0] == pytest.approx(2 / 3)
    assert np.isnan(metrics.precision_at_k(scores, relevant, 2, allowed=np.zeros((1, 4), np.bool_))[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
def test_ndcg_agrees_with_sklearn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, gains = rng.normal(size=(5, 12)), rng.random((5, 12))
    ours = metrics.ndcg_at_k(scores, gains, k)
    theirs = [ndcg_score(gains[[row]], scores[[row]], k=k) for row in range(5)]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_ndcg_of_allowed_entries_equals_ndcg_without_the_others() -> None:
    rng = np.random.default_rng(0)
    scores, gains = rng.normal(size=(1, 9)), rng.random((1, 9))
    allowed = np.array([[True, False, True, True, False, True, True, True, True]])
    kept = np.flatnonzero(allowed[0])
    expected = metrics.ndcg_at_k(scores[:, kept], gains[:, kept], 4)
    np.testing.assert_allclose(metrics.ndcg_at_k(scores, gains, 4, allowed=allowed), expected)


def test_jaccard_by_hand() -> None:
    first = np.array([[True, True, False], [False, False, False]])
    second = np.array([[True, False, False], [True, True, False], [False, False, True], [False, False, False]])
    np.testing.assert_allclose(metrics.jaccard(first, second), [[0.5, 1, 0, 0], [0, 0, 0, 0]])


def test_recall_counts_identical_texts_as_hits_by_hand() -> None:
    # Texts a b a c; record 2 is found through record 0, which carries the same text.
    text = np.array([0, 1, 0, 2])
    relevant = text[:, None] == text[None, :]
    scores = np.array([
        [0.1, 0.9, 0.8, 0.7],  # own text second best: b, a
        [0.9, 0.1, 0.8, 0.7],  # own text last
        [0.9, 0.5, 0.1, 0.2],  # own record last, but record 0 has the same text
        [0.1, 0.2, 0.3, 0.9],
    ])  # fmt: skip
    assert metrics.recall_at_k(scores, relevant, 1).tolist() == [0, 0, 1, 1]
    assert metrics.recall_at_k(scores, relevant, 2).tolist() == [1, 0, 1, 1]
    assert metrics.recall_at_k(scores, relevant, 4).tolist() == [1, 1, 1, 1]


def test_recall_gives_a_collapsed_encoder_nothing() -> None:
    relevant = np.eye(20, dtype=np.bool_)
    assert metrics.recall_at_k(np.ones((20, 20)), relevant, 10).sum() == 0
    assert np.isnan(metrics.recall_at_k(np.ones((1, 3)), np.zeros((1, 3), np.bool_), 2)[0])


def test_expected_recall_equals_the_mean_over_all_orders() -> None:
    corpus, hits, k = 6, 2, 3
    orders = list(itertools.permutations(range(corpus)))
    recalled = np.mean([any(entry < hits for entry in order[:k]) for order in orders])
    assert metrics.expected_recall(np.array([hits]), corpus, k)[0] == pytest.approx(recalled)
    assert metrics.expected_recall(np.array([4, 6]), corpus, k).tolist() == [1.0, 1.0]


def test_expected_precision_and_ndcg_equal_the_mean_over_random_orders() -> None:
    rng = np.random.default_rng(3)
    gains = rng.random((1, 8))
    relevant = gains > 0.5
    allowed = np.array([[True] * 7 + [False]])
    draws = [rng.normal(size=(1, 8)) for _ in range(4000)]
    precision = np.mean([metrics.precision_at_k(draw, relevant, 3, allowed=allowed) for draw in draws])
    ndcg = np.mean([metrics.ndcg_at_k(draw, gains, 3, allowed=allowed) for draw in draws])
    assert metrics.expected_precision(relevant, allowed)[0] == pytest.approx(precision, abs=0.02)
    assert metrics.expected_ndcg(gains, 3, allowed=allowed)[0] == pytest.approx(ndcg, abs=0.02)
