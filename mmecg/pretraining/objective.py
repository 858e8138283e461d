"""The objective: masked prediction and contrast of segments, each a switch; random lead masking is in the data.

Terms of the log: ``masked`` (contrast), ``diversity`` and ``penalty`` (before their weights), ``segments`` (CMSC).
Measures: ``masked_accuracy``, ``codes`` in use, ``segments_top_1``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmecg.adaptation.backbone import Backbone
from mmecg.modeling.ecg_inference import resolve_dtype
from mmecg.pretraining.config import PretrainingConfig
from mmecg.pretraining.contrastive import draw_negatives, masked_contrast, segment_contrast
from mmecg.pretraining.data import Batch
from mmecg.pretraining.pretext import Pretext, Views, new_pretext
from mmecg.pretraining.quantiser import GumbelQuantiser, diversity_loss, perplexity
from mmecg.training.distributed import gather

TERMS = ("masked", "diversity", "penalty", "segments")
MEASURES = ("masked_accuracy", "codes", "segments_top_1")


class Objective(nn.Module):
    """A backbone with its training-only parts; its forward is the loss of one batch.

    Parameters
    ----------
    backbone : Backbone
    config : PretrainingConfig
    samples : int
        Length of a segment.
    """

    def __init__(self, backbone: Backbone, config: PretrainingConfig, *, samples: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.pretext: Pretext | None = None
        self.steps = 0
        if config.masked:
            spans = config.masking
            self.pretext, self.steps = new_pretext(backbone, spans, samples=samples)
            start, end, factor = spans.code_temperature
            self.quantizer = GumbelQuantiser(
                self.pretext.local_dim,
                dim=spans.dim,
                groups=spans.groups,
                codes=spans.codes,
                temperature=(start, end, factor),
            )
            self.project_q = nn.Linear(spans.dim, spans.dim)
            self.final_proj = nn.Linear(self.pretext.context_dim, spans.dim)
        self.projection: nn.Module = nn.Identity()
        if config.cmsc != "off" and config.segments.projection:
            width = backbone.feature_dim
            self.projection = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.segments.projection)
            )

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and each term and measure.

        In training with several processes, segments are contrasted with those of all of them.
        """
        device = batch.signal.device
        dtype = resolve_dtype(self.config.precision, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if self.pretext is None:
                features, views = self.backbone(batch.signal), None
            else:
                views = self.pretext(batch.signal, batch.mask)
                features = views.features
        total = features.new_zeros((), dtype=torch.float32)
        found: dict[str, Tensor] = {}
        if views is not None:
            total, found = self._masked(views, batch.mask)
        if self.config.cmsc != "off":
            embedded = self.projection(features.float())
            first, second = (self._gathered(each) for each in embedded.chunk(2))
            found["segments"], found["segments_top_1"] = segment_contrast(
                first, second, self._gathered(batch.groups), temperature=self.config.segments.temperature
            )
            total = total + self.config.segments.weight * found["segments"]
        return total, {name: value.detach() for name, value in found.items()}

    def _masked(self, views: Views, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        spans = self.config.masking
        batch = len(mask)
        quantised = self.quantizer(views.local[mask].float())
        targets = self.project_q(quantised.vectors).unflatten(0, (batch, -1))  # (batch, hidden steps, dim)
        predictions = self.final_proj(views.context[mask].float()).unflatten(0, (batch, -1))
        loss, accuracy = masked_contrast(
            predictions,
            targets,
            quantised.codes.unflatten(0, (batch, -1)),
            draw_negatives(batch, targets.shape[1], spans.negatives, mask.device),
            temperature=spans.temperature,
        )
        shares = self._gathered(quantised.shares[None]).mean(0)
        diversity = diversity_loss(shares)
        total = loss + spans.diversity_weight * diversity + spans.penalty_weight * views.penalty
        return total, {
            "masked": loss,
            "diversity": diversity,
            "penalty": views.penalty,
            "masked_accuracy": accuracy,
            "codes": perplexity(shares),
        }

    def _gathered(self, tensor: Tensor) -> Tensor:
        return gather(tensor) if self.training else tensor
