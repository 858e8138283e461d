"""Attention pooling: starts as the mean, and learns where to look."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from mmecg.adaptation.pooling import AttentionPool


def test_it_begins_as_the_mean_over_time():
    pool = AttentionPool(12, heads=5)
    maps = torch.randn(3, 12, 9)
    assert pool.heads == 4
    torch.testing.assert_close(pool.weights(maps), torch.full((3, 4, 9), 1 / 9))
    torch.testing.assert_close(pool(maps), pool.norm(maps.transpose(1, 2)).mean(1))


def test_it_learns_to_look_at_the_step_that_decides():
    torch.manual_seed(0)
    maps = 0.5 * torch.randn(256, 8, 40)
    truth = torch.arange(256) % 2
    step = torch.randint(0, 40, (256,))
    rows = torch.arange(256)
    maps[rows, 0, step] = 4.0  # marks the step
    maps[rows, 1, step] = 4.0 * truth - 2.0  # which says the label
    pool, head = AttentionPool(8, heads=1), torch.nn.Linear(8, 1)
    optimiser = torch.optim.AdamW([*pool.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        loss = binary_cross_entropy_with_logits(head(pool(maps))[:, 0], truth.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3
    looked = pool.weights(maps)[rows, 0, step]
    assert looked.mean() > 5 / 40
