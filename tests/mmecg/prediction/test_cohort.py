from __future__ import annotations

import numpy as np

from mmecg.neighbours import vote_logits
from mmecg.prediction.cohort import CohortHead


def test_votes_move_the_log_odds_their_way() -> None:
    head = CohortHead(np.array([[1, 1], [0.5, 0]], np.float32), np.zeros(2, np.float32), 50, 2000.0)
    logits = np.zeros((3, 2))
    joined = head.apply(logits, np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))
    assert joined[0, 0] < joined[1, 0] == 0 < joined[2, 0]
    assert (joined[:, 1] == 0).all()


def test_unanimous_votes_stay_finite() -> None:
    ends = vote_logits(np.array([0.0, 1.0]))
    assert np.isfinite(ends).all()
    np.testing.assert_allclose(ends[0], -ends[1])


def test_fewer_studies_vote_with_less_weight() -> None:
    head = CohortHead(np.array([[0.8], [0.5]], np.float32), np.array([0.1], np.float32), 50, 100.0)
    logits, votes = np.array([[-1.0]]), np.array([[0.9]])
    moved = [(head.apply(logits, votes, studies) - logits).item() for studies in (20, 500, 2000, 100_000)]
    np.testing.assert_allclose(moved[:2], [0.1 * moved[2], 0.5 * moved[2]])
    assert moved[2] == moved[3] == (head.apply(logits, votes) - logits).item()
