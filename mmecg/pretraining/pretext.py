"""An encoder as masked prediction sees it: what is predicted, what predicts it, and the features of the whole.

ECG-FM's network splits between its convolutions (targets) and its transformer (predictions from what is left visible).
A network of convolutions alone, such as ours, gives targets from its last maps; a light context network of one
transformer layer is put on top for predictions and thrown away after pretraining. There, features are pooled from the
maps before masking, so that the encoder itself learns from both contrasts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmecg.adaptation.backbone import Backbone
from mmecg.encoders.ecg_fm import EcgFm, EcgFmConfig, PositionConv, Transformer
from mmecg.errors import ConfigError
from mmecg.pretraining.config import MaskedConfig

GRADIENT_SHARE = 0.1
"""ECG-FM's convolutions receive this share of the gradient (``feature_grad_mult``)."""

MIN_STEPS = 8


class Views(NamedTuple):
    """One pass over a batch.

    Attributes
    ----------
    local : float, shape (batch, steps, width)
        What the quantiser makes targets of.
    context : float, shape (batch, steps, context width)
        What predicts them.
    features : float, shape (batch, feature_dim)
        As the encoder pools.
    penalty : float, scalar
        Mean square of the convolutions' maps.
    """

    local: Tensor
    context: Tensor
    features: Tensor
    penalty: Tensor


class _Masked(nn.Module):
    """A backbone and the vector that hidden tokens are replaced by."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_emb = nn.Parameter(torch.rand(width))

    def hide(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Put the mask's embedding in the place of hidden tokens: float, shape (batch, steps, width)."""
        return torch.where(mask[..., None], self.mask_emb.to(tokens.dtype), tokens)


class TransformerPretext(_Masked):
    """ECG-FM's own split, as its authors pretrain it.

    Parameters
    ----------
    backbone : Backbone
    network : EcgFm
        The backbone's.
    """

    def __init__(self, backbone: Backbone, network: EcgFm) -> None:
        super().__init__(backbone, network.config.width)
        self.local_dim, self.context_dim = network.config.convolutions[-1][0], network.config.width
        self._network = (network,)  # in a tuple: it is registered once, within the backbone

    def forward(self, signal: Tensor, mask: Tensor) -> Views:
        """Pass a batch.

        Parameters
        ----------
        signal : float, shape (batch, leads, samples)
        mask : bool, shape (batch, steps)
            True hides a step from the transformer.
        """
        (network,) = self._network
        maps = _scale_gradient(network.feature_extractor(signal), GRADIENT_SHARE)
        local = network.layer_norm(maps.transpose(1, 2))
        tokens = self.hide(network.post_extract_proj(local), mask)
        context = network.contextualise(tokens)
        features = self.backbone.pool(context.transpose(1, 2))
        return Views(local, context, features, maps.float().square().mean())


class ConvolutionalPretext(_Masked):
    """A network of convolutions, and a light context network over its last maps.

    Parameters
    ----------
    backbone : Backbone
    config : MaskedConfig
    maps : int
        Number of its last maps.
    """

    def __init__(self, backbone: Backbone, config: MaskedConfig, *, maps: int) -> None:
        width = config.context_width
        super().__init__(backbone, width)
        self.local_dim, self.context_dim = maps, width
        shape = EcgFmConfig(
            width=width,
            layers=config.context_layers,
            heads=config.context_heads,
            feed_forward=2 * width,
            position_kernel=32,
            position_groups=config.context_heads,
        )
        self.norm = nn.LayerNorm(maps)
        self.project = nn.Linear(maps, width)
        self.positions = PositionConv(shape)
        self.transformer = Transformer(shape)

    def forward(self, signal: Tensor, mask: Tensor) -> Views:
        """Pass a batch.

        Parameters
        ----------
        signal : float, shape (batch, leads, samples)
        mask : bool, shape (batch, steps)
            True hides a step from the context network.
        """
        maps = self.backbone.maps(signal)
        local = self.norm(maps.transpose(1, 2))
        tokens = self.hide(self.project(local), mask)
        context = self.transformer(tokens + self.positions(tokens))
        return Views(local, context, self.backbone.pool(maps), maps.float().square().mean())


Pretext = TransformerPretext | ConvolutionalPretext


def new_pretext(backbone: Backbone, config: MaskedConfig, *, samples: int) -> tuple[Pretext, int]:
    """Return a backbone's pretext network, and how many steps a segment of ``samples`` gives.

    Raises
    ------
    ConfigError
        The network gives too few steps to hide some of them.
    """
    training = backbone.training
    with torch.inference_mode():
        zeros = torch.zeros(1, len(backbone.leads), samples, device=backbone.device)
        _, width, steps = backbone.eval().maps(zeros).shape
    backbone.train(training)
    if steps < MIN_STEPS:
        raise ConfigError(
            f"{backbone.name} gives {steps} steps for a segment, expected {MIN_STEPS} or more; "
            "take longer segments, or turn masked prediction off"
        )
    if isinstance(backbone.network, EcgFm):
        return TransformerPretext(backbone, backbone.network), steps
    return ConvolutionalPretext(backbone, config, maps=width), steps


def _scale_gradient(x: Tensor, share: float) -> Tensor:
    return x * share + x.detach() * (1 - share)
