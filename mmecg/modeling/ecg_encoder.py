"""The ECG tower: a residual 1-D CNN over 12 leads, of any length and any subset of leads.

The network is fully convolutional; features are the time mean of the last map beside the mean of its maxima over
2.5 s windows, the length it is trained on. So a 10 s recording costs one pass, and its features are on the scale that
training saw. Building blocks: residual networks (He et al. 2016, arXiv:1512.03385), squeeze-and-excitation (Hu et al.
2018, arXiv:1709.01507); the use on 12-lead ECG follows Strodthoff et al. 2021 (doi:10.1109/JBHI.2020.3022989).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmecg.ecg import LEADS


@dataclass(frozen=True)
class EcgEncoderConfig:
    """Shape of the ECG tower.

    Attributes
    ----------
    sampling_rate_hz : float
        Rate of the input.
    window_s : float
        Window of the max pooling.
    stem_width, stem_kernel : int
        Number of maps of the first convolution (stride 2), and its kernel.
    widths, kernels, strides : tuple of int
        One entry a residual block.
    stochastic_depth : float
        Probability with which a block is skipped in training (Huang et al. 2016, arXiv:1603.09382).
    """

    sampling_rate_hz: float = 100.0
    window_s: float = 2.5
    stem_width: int = 64
    stem_kernel: int = 11
    widths: tuple[int, ...] = (64, 128, 128, 256, 256)
    kernels: tuple[int, ...] = (7, 5, 5, 3, 3)
    strides: tuple[int, ...] = (2, 2, 1, 2, 1)
    stochastic_depth: float = 0.0

    @property
    def features(self) -> int:
        """Length of the feature vector."""
        return 2 * self.widths[-1]


class SqueezeExcite(nn.Module):
    """Scale each feature map by a gate computed from the time mean of all maps."""

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(width, width // reduction), nn.ReLU(), nn.Linear(width // reduction, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, samples) to the same shape."""
        gate: Tensor = self.gate(x.mean(-1))  # (batch, width)
        return x * gate.unsqueeze(-1)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, squeeze-and-excitation, and a shortcut; the residual branch starts at zero."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, stochastic_depth: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm1d(width)
        self.excite = SqueezeExcite(width)
        nn.init.zeros_(self.norm2.weight)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool1d(stride, ceil_mode=True))
        if width_in != width:
            shortcut += [nn.Conv1d(width_in, width, 1, bias=False), nn.BatchNorm1d(width)]
        self.shortcut = nn.Sequential(*shortcut)
        self.stochastic_depth = stochastic_depth

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, ceil(samples / stride))."""
        branch = self.norm1(self.conv1(x)).relu()
        branch = self.excite(self.norm2(self.conv2(branch)))
        if self.training and self.stochastic_depth:
            keep = torch.rand(len(x), 1, 1, device=x.device) >= self.stochastic_depth
            branch = branch * keep / (1 - self.stochastic_depth)
        return functional.relu(self.shortcut(x) + branch)


class EcgEncoder(nn.Module):
    """Residual CNN from leads in millivolt to a feature vector.

    Parameters
    ----------
    config : EcgEncoderConfig
    """

    SCALE = 5.0
    """Input gain: brings the typical lead of about 0.2 mV standard deviation (PTB-XL: 0.24) near one."""

    def __init__(self, config: EcgEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.stem_width
        layers: list[nn.Module] = [
            nn.Conv1d(len(LEADS), width, config.stem_kernel, stride=2, padding=config.stem_kernel // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        ]
        for next_width, kernel, stride in zip(config.widths, config.kernels, config.strides, strict=True):
            layers.append(ResidualBlock(width, next_width, kernel, stride, config.stochastic_depth))
            width = next_width
        self.network = nn.Sequential(*layers)

    def forward(self, signal: Tensor) -> Tensor:
        """Return features.

        Parameters
        ----------
        signal : float, shape (batch, leads=12, samples), mV
            At ``config.sampling_rate_hz``; missing leads are zero.

        Returns
        -------
        float, shape (batch, features)
        """
        x = (signal - signal.mean(-1, keepdim=True)) * self.SCALE  # (batch, leads, samples); removes the offset
        return pool_maps(self.network(x).float(), self.config, samples=signal.shape[-1])


def pool_maps(maps: Tensor, config: EcgEncoderConfig, *, samples: int) -> Tensor:
    """Return features: the time mean of the maps beside the mean of their maxima over windows.

    Parameters
    ----------
    maps : float32, shape (batch, width, steps)
    config : EcgEncoderConfig
    samples : int
        Length of the signal that the maps were made from.
    """
    windows = max(1, round(samples / (config.window_s * config.sampling_rate_hz)))
    maxima = functional.adaptive_max_pool1d(maps, windows).mean(-1)  # (batch, width)
    return torch.cat([maps.mean(-1), maxima], dim=1)
