"""Losses for labels that are incomplete: 1 is present, 0 and NaN are as the kind of loss takes them.

==========  ==========================================================================================================
known       NaN has no part; 0 is absent: cross-entropy.
naive       0 and NaN are absent.
weighted    As naive, but what is not labelled is a negative of weight ``(1 - prior) / (1 - share)``, the share of true
            negatives among the unlabelled; after Cole et al. 2021 (arXiv:2106.09708), who weigh all labels alike.
asymmetric  As naive, but easy negatives are faded out: ``p_m^4 log(1 - p_m)`` with ``p_m = max(p - 0.05, 0)``; Ridnik
            et al. 2021 (arXiv:2009.14119). Its probabilities are not calibrated.
pu          0 and NaN are unlabelled: the non-negative risk estimator of Kiryo et al. 2017 (arXiv:1703.00593), equation
            6, ``R+ + max(0, N)``, with the logistic loss; for batches as their algorithm 1 with beta 0 and gamma 1.
==========  ==========================================================================================================

All labelled and unlabelled records together stand for the population, as in
:mod:`mmecg.labels.positive_unlabelled`: with the label frequency ``c = share / prior``, the risk of the positives is
the mean over *all* records of ``[labelled] softplus(-z) / c``. So a batch needs no positive of each label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mmecg.errors import InvalidInputError
from mmecg.labels.positive_unlabelled import FOLDS, MIN_MENTIONED, fit_positive_unlabelled

Incomplete = Literal["known", "naive", "weighted", "asymmetric", "pu"]
NEEDS_PRIOR: tuple[Incomplete, ...] = ("weighted", "pu")

FOCUS, MARGIN = 4.0, 0.05
"""Of the asymmetric loss: exponent, and the probability below which a negative counts nothing."""


@dataclass(frozen=True)
class LabelLoss:
    """A loss of every label.

    Attributes
    ----------
    kind : str
        See the module.
    share, prior : float32, shape (labels,)
        How often a label is given, and how often it is true; used by :data:`NEEDS_PRIOR`.
    positive_weight : float32, shape (labels,)
        Weight of the positives, for rare labels; ones change nothing. Not for ``pu`` and ``asymmetric``.
    """

    kind: Incomplete
    share: Tensor
    prior: Tensor
    positive_weight: Tensor

    def per_label(self, logits: Tensor, values: Tensor, *, batch: bool = True) -> Tensor:
        """Return the loss of every label: float, shape (labels,).

        Parameters
        ----------
        logits : float, shape (n, labels)
        values : float, shape (n, labels)
            1, 0 or NaN.
        batch : bool
            These are some of the records, so that ``pu`` steps back where a batch has a negative risk below 0; False:
            all of them.
        """
        labelled = (values == 1).to(logits.dtype)
        if self.kind == "pu":
            return self._non_negative(logits, labelled, batch=batch)
        counted = (~values.isnan()).to(logits.dtype) if self.kind == "known" else torch.ones_like(logits)
        if self.kind == "asymmetric":
            shifted = (logits.sigmoid() - MARGIN).clamp(min=0)
            negative = -shifted.pow(FOCUS) * torch.log1p(-shifted)
        else:
            negative = softplus(logits)
        if self.kind == "weighted":
            negative = negative * ((1 - self.prior) / (1 - self.share).clamp(min=1e-6)).clamp(0, 1)
        loss = -self.positive_weight * labelled * logsigmoid(logits) + (counted - labelled) * negative
        return loss.sum(0) / counted.sum(0).clamp(min=1)

    def _non_negative(self, logits: Tensor, labelled: Tensor, *, batch: bool) -> Tensor:
        times = self.prior / self.share.clamp(min=1e-6)  # 1 / c
        loss = softplus(logits)
        positive = -times * (labelled * logsigmoid(logits)).mean(0)
        negative = loss.mean(0) - times * (labelled * loss).mean(0)
        if batch:
            return torch.where(negative >= 0, positive + negative, -negative)
        return positive + negative.clamp(min=0)


def label_loss(
    kind: Incomplete,
    values: NDArray[np.float32],
    *,
    prior: NDArray[np.float64] | None = None,
    class_weights: bool = False,
) -> LabelLoss:
    """Return the loss for the labels of the records to fit on.

    Parameters
    ----------
    kind : {"known", "naive", "weighted", "asymmetric", "pu"}
    values : float32, shape (n, labels)
    prior : float64, shape (labels,)
        Needed by "weighted" and "pu"; see :func:`estimate_prior`.
    class_weights : bool
        Weigh positives by the square root of negatives per positive.

    Raises
    ------
    InvalidInputError
        The kind is unknown, needs a prior, or has no use for class weights.
    """
    if kind not in get_args(Incomplete):
        raise InvalidInputError(f"loss is {kind!r}, expected one of {', '.join(get_args(Incomplete))}", field="loss")
    if class_weights and kind in ("pu", "asymmetric"):
        raise InvalidInputError(f"class weights go with known, naive or weighted labels, not with {kind}", field="loss")
    if kind in NEEDS_PRIOR and prior is None:
        raise InvalidInputError(f"{kind} needs the prior of every label; estimate it", field="prior")
    share = (values == 1).mean(axis=0)
    counted = (~np.isnan(values)).sum(axis=0) if kind == "known" else np.full(values.shape[1], len(values))
    count = (values == 1).sum(axis=0)
    weight = np.sqrt(np.maximum(counted - count, 1) / np.maximum(count, 1)) if class_weights else np.ones(len(share))
    held = share if prior is None else np.maximum(prior, share)
    return LabelLoss(kind, *(torch.from_numpy(item.astype(np.float32)) for item in (share, held, weight)))


def estimate_prior(
    features: NDArray[np.float32],
    values: NDArray[np.float32],
    subject_ids: Sequence[str],
    *,
    given: Mapping[int, float] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return how often each label is true, estimated from how often it is given: float64, shape (labels,).

    By :func:`mmecg.labels.positive_unlabelled.fit_positive_unlabelled`. A label that is given too rarely for it is
    taken as complete.

    Parameters
    ----------
    features : float32, shape (n, features)
        Of a frozen encoder.
    values : float32, shape (n, labels)
    subject_ids : sequence of str, length n
    given : mapping of column to prior, optional
        Priors that are known.
    seed : int
    """
    labelled = values == 1
    prior = labelled.mean(axis=0)
    known = dict(given or {})
    asked = [label for label in range(values.shape[1]) if label not in known]
    often = [label for label in asked if labelled[:, label].sum() >= MIN_MENTIONED]
    if often and len(set(subject_ids)) >= FOLDS:
        model = fit_positive_unlabelled(features, labelled[:, often], subject_ids, seed=seed)
        prior[often] = np.clip(model.prior, prior[often], 0.99)
    for label, value in known.items():
        if not 0 < value < 1:
            raise InvalidInputError(f"prior of label {label} is {value}, expected between 0 and 1", field="prior")
        prior[label] = value
    return np.asarray(prior, np.float64)
