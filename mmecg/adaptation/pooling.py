"""Attention pooling: at which steps to look is learnt (after Ilse et al. 2018, arXiv:1802.04712)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Average maps over time with learnt weights, one set of weights a head; each head sees its share of the maps.

    It begins as the mean over time: the scores start at zero.

    Parameters
    ----------
    width : int
        Number of maps.
    heads : int
        How many sets of weights; fewer if ``width`` is not divisible by it.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = next(count for count in range(heads, 0, -1) if width % count == 0)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, max(8, width // 4))
        self.score = nn.Linear(max(8, width // 4), self.heads)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def weights(self, maps: Tensor) -> Tensor:
        """Return how much each step counts: float, shape (batch, heads, steps); its sum over steps is 1."""
        scores: Tensor = self.score(torch.tanh(self.hidden(self.norm(maps.transpose(1, 2)))))  # (batch, steps, heads)
        return scores.softmax(1).transpose(1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, width, steps) to (batch, width)."""
        values = self.norm(maps.transpose(1, 2)).transpose(1, 2).unflatten(1, (self.heads, -1))
        pooled = torch.einsum("bhws,bhs->bhw", values, self.weights(maps))  # (batch, heads, width / heads)
        return pooled.flatten(1)
