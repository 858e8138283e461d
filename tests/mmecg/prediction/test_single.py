from __future__ import annotations

import numpy as np

from mmecg.prediction.calibration import fit_logit_map
from mmecg.prediction.single import EmbeddingHead, SingleHead

RNG = np.random.default_rng(1)


def test_member_0_gives_the_logits_and_all_give_the_spread() -> None:
    scores = RNG.normal(size=(500, 2))
    gold = RNG.random((500, 2)) < 1 / (1 + np.exp(-3 * scores))
    calibration = fit_logit_map(scores, gold)
    weight = RNG.normal(size=(3, 6, 2)).astype(np.float32)
    head = SingleHead(weight, np.ones((3, 2), np.float32), calibration)
    features = RNG.normal(size=(4, 6)).astype(np.float32)
    logits, spread = head.logits(features)
    members = np.stack([features @ one + 1 for one in weight])
    np.testing.assert_allclose(logits, calibration.apply(members[0]), rtol=1e-5)
    np.testing.assert_allclose(spread, members.std(axis=0), rtol=1e-4)
    assert logits.dtype == spread.dtype == np.float64
    np.testing.assert_allclose(head.logits(features[:1])[0], logits[:1], rtol=1e-5)


def test_a_stored_embedding_gives_log_odds() -> None:
    head = EmbeddingHead(np.eye(2, dtype=np.float32), np.array([1, -1], np.float32))
    np.testing.assert_allclose(head.logits(np.array([[0.6, 0.8]], np.float32)), [[1.6, -0.2]], rtol=1e-6)
