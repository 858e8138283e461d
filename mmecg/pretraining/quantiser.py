"""Product quantiser with straight-through Gumbel softmax: the targets of masked prediction are its codes.

wav2vec 2.0, section 2 (Baevski et al. 2020, arXiv:2006.11477); Gumbel softmax: Jang et al. 2017 (arXiv:1611.01144).
Modules bear the names that ECG-FM's pretraining gives them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Quantised(NamedTuple):
    """Vectors after quantisation.

    Attributes
    ----------
    vectors : float, shape (n, dim)
        The entries of the chosen codes, one group beside the other.
    codes : int64, shape (n, groups)
    shares : float, shape (groups, codes)
        Mean probability of each code, without noise; what diversity is measured on.
    """

    vectors: Tensor
    codes: Tensor
    shares: Tensor


class GumbelQuantiser(nn.Module):
    """Choose one of ``codes`` entries in each of ``groups`` code books; the gradient is that of the soft choice.

    In training the choice is drawn with Gumbel noise at a temperature that falls with every batch; in evaluation it is
    the most probable one.

    Parameters
    ----------
    width : int
        Of the vectors that are quantised.
    dim : int
        Of the result; divisible by ``groups``.
    groups, codes : int
    temperature : tuple of (start, end, factor)
        The temperature starts at ``start`` and is multiplied by ``factor`` a batch, down to ``end``.
    """

    updates: Tensor

    def __init__(
        self,
        width: int,
        *,
        dim: int = 256,
        groups: int = 2,
        codes: int = 320,
        temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995),
    ) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        self._schedule = temperature
        self.weight_proj = nn.Linear(width, groups * codes)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)
        self.vars = nn.Parameter(torch.rand(1, groups * codes, dim // groups))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def temperature(self) -> float:
        """Of the Gumbel softmax, now."""
        start, end, factor = self._schedule
        return float(max(start * factor ** int(self.updates), end))

    def forward(self, vectors: Tensor) -> Quantised:
        """Quantise vectors: float, shape (n, width)."""
        logits = self.weight_proj(vectors).float().unflatten(-1, (self.groups, self.codes))  # (n, groups, codes)
        shares = logits.softmax(-1).mean(0)
        if self.training:
            choice = functional.gumbel_softmax(logits, self.temperature, hard=True)
            self.updates += 1
        else:
            choice = functional.one_hot(logits.argmax(-1), self.codes).to(logits.dtype)
        entries = self.vars.view(self.groups, self.codes, -1).float()
        found = torch.einsum("ngc,gcd->ngd", choice, entries).flatten(1)  # (n, dim)
        return Quantised(found, choice.argmax(-1), shares)


def perplexity(shares: Tensor) -> Tensor:
    """Return how many codes are in use, summed over groups: the exponential of the entropy of their shares.

    Parameters
    ----------
    shares : float, shape (groups, codes)
        Each row adds up to 1.
    """
    entropy = -(shares * (shares + 1e-7).log()).sum(-1)
    return entropy.exp().sum()


def diversity_loss(shares: Tensor) -> Tensor:
    """Return the share of codes that are not in use, 0 to 1: equation 4 of wav2vec 2.0, as its footnote writes it."""
    return (shares.numel() - perplexity(shares)) / shares.numel()
