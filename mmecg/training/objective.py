"""The objective: contrast of ECG with report, label prompt and vitals, and two auxiliary predictions from the ECG.

Terms (weights in :class:`mmecg.training.config.LossWeights`):

* **reports**: ECG against report text; identical reports are positives; reports of other studies are further negatives.
* **prompts**: ECG against a true claim made of label prompts; every ECG for which the claim is true is a positive.
* **vitals**: vitals, and ECG fused with vitals, against the claim (against the report under report supervision).
* **statements**: binary cross-entropy of the labels, from the ECG features.
* **words**: binary cross-entropy of the report's words and word pairs, from the ECG features (report supervision only
  needs this one; it teaches axis, voltage and other findings that have no statement code).
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmecg.modeling.dual_encoder import DualEncoder
from mmecg.modeling.loss import contrastive_loss
from mmecg.training.config import TrainingConfig
from mmecg.training.data import Batch
from mmecg.training.distributed import gather

TERMS: tuple[str, ...] = ("reports", "prompts", "vitals", "statements", "words")
_STATEMENTS_SCALE = 1 / 4
_WORDS_SCALE = 1 / 20
"""Bring the sums of binary cross-entropies over 76 labels and about 1,000 words near the size of the contrast terms."""


class Objective(nn.Module):
    """The model with its training-only heads; its forward is the loss of one batch.

    Parameters
    ----------
    model : DualEncoder
    config : TrainingConfig
    labels, words : int
        Number of labels and of words to predict.
    """

    def __init__(self, model: DualEncoder, config: TrainingConfig, *, labels: int, words: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.weights = asdict(config.effective_weights())
        features = config.model.ecg.features
        self.statement_head = nn.Sequential(nn.Dropout(config.model.dropout), nn.Linear(features, labels))
        self.word_head = nn.Sequential(nn.Dropout(config.model.dropout), nn.Linear(features, words))
        self.prompt_logit_scale = nn.Parameter(model.logit_scale.detach().clone())

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and each term."""
        model = self.model
        device = batch.signal.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.mixed_precision):
            features = model.ecg(batch.signal)  # (batch, features)
        ecg = gather(model.project_ecg(features))  # (world batch, dim)
        terms = {
            "reports": self._reports(ecg, batch),
            "words": _WORDS_SCALE * _summed_bce(self.word_head(features), batch.words),
        }
        vitals = gather(model.vitals(batch.vitals))
        fused = functional.normalize(ecg + self.config.vitals_weight * vitals, dim=-1)
        if self.config.supervision == "labels":
            terms["statements"] = _STATEMENTS_SCALE * _summed_bce(self.statement_head(features), batch.labels)
            claims = gather(model.text.embed_tokens(batch.prompt_tokens))
            true = _claims_true(gather(batch.labels), gather(batch.prompt_labels))
            scale = self.prompt_logit_scale
            terms["prompts"] = contrastive_loss(ecg, claims, true, scale)
        else:
            claims = gather(model.text.embed_tokens(batch.report_tokens))
            true = _same_group(gather(batch.report_group), gather(batch.report_group))
            scale = model.logit_scale
        terms["vitals"] = contrastive_loss(fused, claims, true, scale) + contrastive_loss(
            vitals, claims.detach(), true, scale
        )
        total = sum((self.weights[name] * term for name, term in terms.items()), start=ecg.new_zeros(()))
        return total, {name: term.detach() for name, term in terms.items()}

    def _reports(self, ecg: Tensor, batch: Batch) -> Tensor:
        own = gather(self.model.text.embed_tokens(batch.report_tokens))
        groups = gather(batch.report_group)
        extra = self.model.text.embed_tokens(batch.extra_tokens)
        positives = torch.cat([_same_group(groups, groups), ecg.new_zeros(len(ecg), len(extra))], dim=1)
        # A report drawn n times weighs as n negatives: its logit gains log n.
        offset = torch.cat([ecg.new_zeros(len(own)), batch.extra_log_count])
        return contrastive_loss(
            ecg, torch.cat([own, extra]), positives, self.model.logit_scale, keys_as_queries=len(own), offset=offset
        )


def _summed_bce(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(0).sum()


def _same_group(rows: Tensor, columns: Tensor) -> Tensor:
    return ((rows[:, None] == columns[None, :]) & (rows[:, None] >= 0)).float()


def _claims_true(labels: Tensor, claimed: Tensor) -> Tensor:
    """Return 1 where every label that a claim names is listed; an empty claim is true of none. (batch, claims)."""
    count = claimed.sum(1)
    return ((labels @ claimed.T >= count - 0.5) & (count > 0)).float()
