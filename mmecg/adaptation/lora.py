"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) of linear layers and 1-D convolutions.

A weight ``W`` becomes ``W + (alpha / rank) B A``, where ``A`` is random, ``B`` starts at zero, and ``W`` is fixed. A
convolution's weight, shape (out, in / groups, kernel), is taken as a matrix (out, in / groups * kernel). Merging leaves
plain layers, so that what is saved has the shape of the network before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK, ALPHA = 8, 16.0


class LowRank(nn.Module):
    """What is added to a weight.

    Parameters
    ----------
    weight : Tensor
    rank : int
        At most the smaller side of the matrix.
    alpha : float
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, columns))  # A
        self.up = nn.Parameter(weight.new_zeros(rows, rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, shape as ``weight``."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_lora(module: nn.Module, *, rank: int = RANK, alpha: float = ALPHA) -> list[nn.Parameter]:
    """Fix all weights of a module and adapt its layers; return the parameters to train.

    Layers whose weights were fixed already (unused classifiers) stay as they are.

    Parameters
    ----------
    module : nn.Module
    rank : int
    alpha : float
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d)]
    layers = [layer for layer in layers if layer.weight.requires_grad]
    module.requires_grad_(False)
    found: list[nn.Parameter] = []
    for layer in layers:
        added = LowRank(layer.weight.detach(), rank, alpha)
        parametrize.register_parametrization(layer, "weight", added)
        found += added.parameters()
    return found


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Write the adapted weights into the layers, in place; the module is plain again.

    Deep copies of an adapted module share their classes in torch: once one is merged, no other can be used.
    """
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


__all__ = ["ALPHA", "RANK", "LowRank", "add_lora", "merge_lora"]
