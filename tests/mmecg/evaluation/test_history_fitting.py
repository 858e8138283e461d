from __future__ import annotations

import numpy as np
import pytest
import torch

from mmecg.errors import InvalidInputError
from mmecg.evaluation.history_fitting import HistoryPart, HistoryRecipe, _Batches, _HistoryNet, fit_cohort, fit_history
from mmecg.evaluation.metrics import auroc
from mmecg.prediction.history import HistoryTokens

N, PRIORS, LABELS = 60, 3, 4
RNG = np.random.default_rng(0)


def part(*, own: bool = True) -> HistoryPart:
    mask = np.arange(PRIORS) < RNG.integers(1, PRIORS + 1, (N, 1))
    known = (RNG.random((N, PRIORS, LABELS)) < 0.4).astype(np.float32)
    known[RNG.random(known.shape) < 0.3] = np.nan
    current, then = (RNG.normal(size=shape).astype(np.float32) for shape in ((N, LABELS), known.shape))
    log_days, cosine = RNG.random((2, N, PRIORS)).astype(np.float32)
    tokens = HistoryTokens(
        current, known, then, mask, log_days, cosine, np.log(mask.sum(axis=1)).astype(np.float32),
        np.full(LABELS, 0.4, np.float32), mask,
    )  # fmt: skip
    gold = np.nan_to_num(known[:, 0], nan=0.0) > 0
    return HistoryPart(tokens, current.astype(np.float64), gold, own)


def test_inference_is_what_was_fitted() -> None:
    some = part()
    net = _HistoryNet(LABELS, HistoryRecipe(hidden=6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
        inputs, base, _ = _Batches([some]).take(torch.arange(N))
        expected = (base + net(*inputs)).numpy()
    np.testing.assert_allclose(net.head().apply(some.logits, some.tokens).logits, expected, atol=2e-4)


def test_what_was_known_last_is_learnt() -> None:
    some = part()
    head = fit_history([some], HistoryRecipe(steps=200, batch=64, hidden=8, learning_rate=1e-2))
    after = head.apply(some.logits, some.tokens).logits
    assert (auroc(some.gold, after) > auroc(some.gold, some.logits) + 0.2).all()
    assert (head.decay >= 0).all()


def test_no_own_history_is_refused() -> None:
    for parts in ([], [part(own=False)]):
        with pytest.raises(InvalidInputError, match="no record has an earlier study"):
            fit_history(parts)


def test_votes_count_as_far_as_they_help() -> None:
    gold = RNG.random((3000, 2)) < 0.3
    logits = gold - 1.3 + RNG.normal(size=gold.shape)
    votes = np.stack([np.clip(0.3 + 0.3 * (gold[:, 0] - 0.3) + RNG.normal(0, 0.1, 3000), 0, 1), RNG.random(3000)], 1)
    head = fit_cohort(logits, votes, gold, penalty=1e-3)
    assert head.weight[1, 0] > 0.5
    assert abs(head.weight[1, 1]) < 0.15
    assert auroc(gold, head.apply(logits, votes))[0] > auroc(gold, logits)[0] + 0.05
