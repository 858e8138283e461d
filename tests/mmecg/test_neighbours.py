from __future__ import annotations

import numpy as np
import pytest

from mmecg.embedding import normalise
from mmecg.neighbours import VOTE_TEMPERATURE, knn_scores


def test_votes_equal_the_obvious_loop() -> None:
    rng = np.random.default_rng(0)
    queries, corpus = normalise(rng.normal(size=(700, 6))), normalise(rng.normal(size=(90, 6)))
    labels = rng.random((90, 3)) < 0.3
    found = knn_scores(queries, corpus, labels, k=7)
    for row in range(0, 700, 37):
        similarity = (corpus @ queries[row]).astype(float)
        nearest = np.argsort(-similarity)[:7]
        votes = np.exp(similarity[nearest] / VOTE_TEMPERATURE)
        np.testing.assert_allclose(found[row], votes @ labels[nearest] / votes.sum(), rtol=1e-4)


def test_a_corpus_smaller_than_k_is_used_whole() -> None:
    corpus = np.eye(3, dtype=np.float32)
    scores = knn_scores(corpus[:1], corpus, np.eye(3, dtype=np.bool_), k=50)
    assert scores.sum() == pytest.approx(1)
    assert scores[0].argmax() == 0
