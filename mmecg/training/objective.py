"""The objective: contrast of ECG with report, label prompt and vitals, and two auxiliary predictions from the ECG.

Terms (weights in :class:`mmecg.training.config.LossWeights`):

* **reports**: ECG against report text; identical reports are positives; reports of other studies are further negatives.
* **prompts**: ECG against a true claim made of label prompts; every ECG for which the claim is true is a positive.
* **vitals**: vitals, and ECG fused with vitals, against the claim (against the report under report supervision).
* **neighbours**: ECG, and ECG fused with vitals, against the ECGs of recent batches, with their label similarity as
  target: what nearest-neighbour search will ask of the space.
* **spread**: the squared correlations between the dimensions of ECG embeddings (Bardes et al. 2022, arXiv:2105.04906),
  so that the space does not collapse onto a few directions.
* **statements**: binary cross-entropy of the labels, from the ECG features.
* **words**: binary cross-entropy of the report's words and word pairs, from the ECG features (report supervision only
  needs this one; it teaches axis, voltage and other findings that have no statement code).
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmecg.embedding import EMBEDDING_DIM
from mmecg.modeling.joint_encoder import JointEncoder
from mmecg.modeling.loss import contrastive_loss
from mmecg.training.config import TrainingConfig
from mmecg.training.data import Batch
from mmecg.training.distributed import gather

TERMS: tuple[str, ...] = ("reports", "prompts", "neighbours", "spread", "vitals", "statements", "words")
_STATEMENTS_SCALE = 1 / 4
_WORDS_SCALE = 1 / 20
"""Bring the sums of binary cross-entropies over 76 labels and about 1,000 words near the size of the contrast terms."""


class Objective(nn.Module):
    """The model with its training-only heads; its forward is the loss of one batch.

    Parameters
    ----------
    model : JointEncoder
    config : TrainingConfig
    label_prevalence : float32, shape (labels,)
        Share of training studies that list each label.
    words : int
        Number of words to predict; 0 leaves the term out.
    """

    def __init__(self, model: JointEncoder, config: TrainingConfig, *, label_prevalence: Tensor, words: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.weights = asdict(config.effective_weights())
        features = model.projection.linear.in_features
        self.statement_head = nn.Sequential(
            nn.Dropout(config.model.dropout), nn.Linear(features, len(label_prevalence))
        )
        self.word_head = nn.Sequential(nn.Dropout(config.model.dropout), nn.Linear(features, words)) if words else None
        self.prompt_logit_scale = nn.Parameter(model.logit_scale.detach().clone())
        self.neighbours = NeighbourLoss(label_prevalence)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and each term."""
        model = self.model
        device = batch.signal.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.mixed_precision):
            features = model.ecg(batch.signal)  # (batch, features)
        ecg = gather(model.project_ecg(features))  # (world batch, dim)
        terms = {
            "reports": self._reports(ecg, batch),
            "spread": _redundancy(ecg),
        }
        if self.word_head is not None:
            terms["words"] = _WORDS_SCALE * _summed_bce(self.word_head(features), batch.words)
        vitals = gather(model.vitals(batch.vitals))
        fused = functional.normalize(ecg + self.config.vitals_weight * vitals, dim=-1)
        if self.config.supervision == "labels":
            terms["statements"] = _STATEMENTS_SCALE * _summed_bce(self.statement_head(features), batch.labels)
            claims = gather(model.text.embed_tokens(batch.prompt_tokens))
            true = _claims_true(gather(batch.labels), gather(batch.prompt_labels))
            scale = self.prompt_logit_scale
            terms["prompts"] = contrastive_loss(ecg, claims, true, scale)
            labels = gather(batch.labels)
            terms["neighbours"] = (self.neighbours(ecg, labels) + self.neighbours(fused, labels)) / 2
            self.neighbours.remember(ecg, labels)
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


class NeighbourLoss(nn.Module):
    """Cross-entropy between similarities to a memory of ECGs and the similarity of their label sets.

    The target is the Jaccard index of the two label sets, each label weighted by the logarithm of its inverse
    prevalence (so that a shared rare finding counts for more than a shared sinus rhythm), squared and normalised. The
    memory of recent embeddings follows He et al. 2020 (arXiv:1911.05722), without a second encoder.

    Parameters
    ----------
    prevalence : float32, shape (labels,)
    size : int
        Number of remembered ECGs.
    """

    LOGIT_SCALE = 10.0

    rarity: Tensor
    memory: Tensor
    memory_labels: Tensor
    filled: Tensor

    def __init__(self, prevalence: Tensor, size: int = 4096) -> None:
        super().__init__()
        self.register_buffer("rarity", -prevalence.clamp(min=1e-4).log())
        self.register_buffer("memory", torch.zeros(size, EMBEDDING_DIM))
        self.register_buffer("memory_labels", torch.zeros(size, len(prevalence)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch against the memory; 0 until the memory is full.

        Parameters
        ----------
        queries : float, shape (batch, dim), unit norm
        labels : float, shape (batch, labels)
        """
        if self.filled < len(self.memory):
            return queries.new_zeros(())
        weighted = labels * self.rarity
        shared = weighted @ self.memory_labels.T  # (batch, size)
        union = weighted.sum(1, keepdim=True) + self.memory_labels @ self.rarity - shared
        targets = (shared / union.clamp(min=1e-6)).square()
        targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-6)
        log_shares = functional.log_softmax(self.LOGIT_SCALE * queries @ self.memory.T, dim=1)
        return -(targets * log_shares).sum(1).mean()

    def remember(self, ecg: Tensor, labels: Tensor) -> None:
        """Put a batch in the place of the oldest one."""
        rows = (self.filled + torch.arange(len(ecg), device=ecg.device)) % len(self.memory)
        # New tensors: the graph of this batch still holds the old ones.
        self.memory = self.memory.index_copy(0, rows, ecg.detach())
        self.memory_labels = self.memory_labels.index_copy(0, rows, labels)
        self.filled += len(ecg)


def _summed_bce(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(0).sum()


def _redundancy(embeddings: Tensor) -> Tensor:
    """Return the sum of squared correlations of a dimension with the others, averaged over dimensions."""
    centred = embeddings - embeddings.mean(0)
    scaled = centred / centred.norm(dim=0).clamp(min=1e-6)
    correlation: Tensor = scaled.T @ scaled  # (dim, dim)
    off_diagonal: Tensor = correlation.square().sum() - correlation.diagonal().square().sum()
    return off_diagonal / len(correlation)


def _same_group(rows: Tensor, columns: Tensor) -> Tensor:
    return ((rows[:, None] == columns[None, :]) & (rows[:, None] >= 0)).float()


def _claims_true(labels: Tensor, claimed: Tensor) -> Tensor:
    """Return 1 where every label that a claim names is listed; an empty claim is true of none. (batch, claims)."""
    count = claimed.sum(1)
    return ((labels @ claimed.T >= count - 0.5) & (count > 0)).float()
