"""The networks of backbones: how each is built, where its last maps are, and how it pools them.

A network that is not known here (an encoder of a third party) is taken as a function from signal to features: its
"maps" are its features at one step, and pooling takes them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmecg.config import parse_config
from mmecg.ecg import LEADS, Ecg
from mmecg.encoders.ecg_fm import EcgFm, mean_tokens
from mmecg.encoders.ecg_founder import EcgFounder
from mmecg.encoders.preprocessing import lead_rows
from mmecg.encoders.registry import get_encoder
from mmecg.errors import ConfigError
from mmecg.modeling.dual_encoder import SEGMENT_S
from mmecg.modeling.ecg_encoder import EcgEncoder, EcgEncoderConfig, pool_maps

OWN = "mmecg"
"""Name of our own tower among the encoders."""


@dataclass(frozen=True)
class TowerInput:
    """What is done to a recording before our own tower sees it.

    Resampled, and cut into segments of :data:`~mmecg.modeling.dual_encoder.SEGMENT_S`; the last one ends with the
    recording, so that it may overlap the one before. A shorter recording is used whole, a missing lead is zeros.

    Attributes
    ----------
    leads : tuple of str
    sampling_rate_hz : float
    """

    leads: tuple[str, ...] = LEADS
    sampling_rate_hz: float = 100.0

    @property
    def samples(self) -> int:
        """Length of a segment."""
        return round(SEGMENT_S * self.sampling_rate_hz)

    def apply(self, ecg: Ecg) -> NDArray[np.float32]:
        """Return the network's input: float32, shape (segments, leads, samples), mV.

        Raises
        ------
        SignalError
            None of :attr:`leads` was recorded.
        """
        rows = lead_rows(ecg, self.leads)
        signal = ecg.resample(self.sampling_rate_hz).signal[rows]
        length = signal.shape[1]
        if length <= self.samples:
            return signal[None]
        starts = [*range(0, length - self.samples, self.samples), length - self.samples]
        return np.stack([signal[:, start : start + self.samples] for start in starts])


def build_network(encoder: str, hyperparameters: Mapping[str, Any], *, leads: int) -> nn.Module:
    """Return a network with fresh weights for an input of ``leads`` leads.

    Residual branches of our tower start at full strength, not at zero as for its own training: an untrained network is
    then a fair baseline.

    Raises
    ------
    InvalidInputError
        No encoder of this name is registered here.
    ConfigError
        A hyper-parameter is unknown or impossible, or the network has no convolution over the leads.
    """
    if encoder == OWN:
        network: nn.Module = EcgEncoder(parse_config(EcgEncoderConfig, hyperparameters))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.ones_(module.weight)
    else:
        network = get_encoder(encoder).build(hyperparameters)
    _take_leads(network, leads)
    return freeze_unused(network)


def freeze_unused(network: nn.Module) -> nn.Module:
    """Exclude the published classifiers, on which features do not depend, from training; return the network."""
    for head in ("dense", "proj"):
        if isinstance(unused := getattr(network, head, None), nn.Linear):
            unused.requires_grad_(False)
    return network


def last_maps(network: nn.Module, signal: Tensor) -> Tensor:
    """Return the last maps before pooling: float, shape (batch, width, steps)."""
    if isinstance(network, EcgEncoder):
        centred = (signal - signal.mean(-1, keepdim=True)) * EcgEncoder.SCALE
        out: Tensor = network.network(centred)
        return out.float()
    if isinstance(network, EcgFm):
        return network.contextualise(network.embed(signal)).transpose(1, 2)
    if isinstance(network, EcgFounder):
        x: Tensor = functional.silu(network.first_conv(signal))
        for stage in network.stage_list:
            x = stage(x)
        return x
    features: Tensor = network(signal)[0]
    return features.unsqueeze(-1)


def pool_last_maps(network: nn.Module, maps: Tensor) -> Tensor:
    """Return features, as the network itself pools its last maps: float, shape (batch, feature_dim)."""
    if isinstance(network, EcgEncoder):
        stride = 2 * int(np.prod(network.config.strides))  # 2: of the first convolution
        return pool_maps(maps, network.config, samples=maps.shape[-1] * stride)
    if isinstance(network, EcgFm):
        return mean_tokens(maps.transpose(1, 2))
    return maps.mean(-1)


def _take_leads(network: nn.Module, leads: int) -> None:
    """Replace the first convolution by one over another number of leads, if it has another one."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d):
            if module.in_channels != leads:
                owner, _, attribute = name.rpartition(".")
                size = {item: getattr(module, item) for item in ("kernel_size", "stride", "padding", "dilation")}
                fresh = nn.Conv1d(leads, module.out_channels, bias=module.bias is not None, **size)
                fresh.to(device=module.weight.device, dtype=module.weight.dtype)
                setattr(network.get_submodule(owner), attribute, fresh)
            return
    raise ConfigError(f"network {type(network).__name__} has no convolution over leads; it cannot take {leads} leads")


__all__ = ["OWN", "TowerInput", "build_network", "freeze_unused", "last_maps", "pool_last_maps"]
