"""The networks of ECG-FM and ECGFounder written the obvious way, for :mod:`bench_encode` to compare with.

Modules of ``torch.nn``, one operation after the other, float32, weights drawn at random: what somebody who knows the
papers writes, and as much work as the published implementations do. Sources: arXiv:2408.05178, arXiv:2410.04133.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class Attention(nn.Module):
    """Multi-head self-attention with the matrix of attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (each(x).view(split).transpose(1, 2) for each in (self.query, self.key, self.value))
        scores = torch.softmax(query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5, dim=-1)
        out: Tensor = self.out((scores @ value).transpose(1, 2).reshape(batch, tokens, width))
        return out


class PlainLayer(nn.Module):
    """A transformer layer that normalises after each sum."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = self.norms[0](x + self.attention(x))
        out: Tensor = self.norms[1](x + self.perceptron(x))
        return out


class PlainEcgFm(nn.Module):
    """(batch, 12, 2500) to features: (batch, 768)."""

    def __init__(self, width: int = 768, layers: int = 12) -> None:
        super().__init__()
        convolutions: list[nn.Module] = [nn.Conv1d(12, 256, 2, 2, bias=False), nn.GroupNorm(256, 256), nn.GELU()]
        for _ in range(3):
            convolutions += [nn.Conv1d(256, 256, 2, 2, bias=False), nn.GELU()]
        self.convolutions = nn.Sequential(*convolutions)
        self.project = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, width))
        self.position = weight_norm(nn.Conv1d(width, width, 128, padding=64, groups=16), dim=2)
        self.layers = nn.Sequential(nn.LayerNorm(width), *(PlainLayer(width, 12, 4 * width) for _ in range(layers)))

    def forward(self, signal: Tensor) -> Tensor:
        """Return features."""
        tokens = self.project(self.convolutions(signal).transpose(1, 2))
        position = functional.gelu(self.position(tokens.transpose(1, 2))[..., :-1]).transpose(1, 2)
        out: Tensor = self.layers(tokens + position)
        return out.sum(1) / (out != 0).sum(1)


class Same(nn.Module):
    """A convolution after zeros on both sides, so that the output has ceil(samples / stride) samples."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.convolution = nn.Conv1d(width_in, width, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, ceil(samples / stride))."""
        samples = x.shape[-1]
        total = max(0, (-(-samples // self.stride) - 1) * self.stride + self.kernel - samples)
        out: Tensor = self.convolution(functional.pad(x, (total // 2, total - total // 2)))
        return out


class PlainBlock(nn.Module):
    """A bottleneck block with squeeze-and-excitation and a shortcut without weights."""

    def __init__(self, width_in: int, width: int, *, halves: bool, is_first: bool) -> None:
        super().__init__()
        self.halves, self.is_first, self.more = halves, is_first, width - width_in
        self.convolutions = nn.ModuleList(
            [Same(width_in, width, 1), Same(width, width, 16, 1 + halves, width // 16), Same(width, width, 1)]
        )
        self.squeeze, self.excite = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, samples or ceil(samples / 2))."""
        branch = x
        for index, convolution in enumerate(self.convolutions):
            if index or not self.is_first:
                branch = functional.silu(branch)
            branch = convolution(branch)
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(branch.mean(-1)))))
        branch = torch.einsum("bct,bc->bct", branch, gate)
        if self.halves:
            x = functional.max_pool1d(functional.pad(x, (0, 1)), 2)
        if self.more:
            before = self.more // 2
            x = functional.pad(x.transpose(1, 2), (before, self.more - before)).transpose(1, 2)
        return branch + x


class PlainEcgFounder(nn.Module):
    """(batch, 12, 5000) to features: (batch, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        widths, counts, last = (64, 160, 160, 400, 400, 1024, 1024), (2, 2, 2, 3, 3, 4, 4), 64
        self.stem = Same(12, last, 16, 2)
        blocks = []
        for width, count in zip(widths, counts, strict=True):
            for index in range(count):
                blocks.append(PlainBlock(last, width, halves=index == 0, is_first=not blocks))
                last = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, signal: Tensor) -> Tensor:
        """Return features."""
        out: Tensor = self.blocks(functional.silu(self.stem(signal)))
        return out.mean(-1)
