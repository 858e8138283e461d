"""Contrastive loss with any number of positives per row and column."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    logit_scale: Tensor,
    *,
    keys_as_queries: int | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Return the symmetric cross-entropy between similarities and uniform targets over the positives.

    With one positive a row this is the CLIP loss (Radford et al. 2021, arXiv:2103.00020); with several it is the
    supervised contrastive loss "out" of Khosla et al. 2020 (arXiv:2004.11362), so that identical reports, or a prompt
    that is true of several ECGs, are never negatives of each other.

    Parameters
    ----------
    queries : float, shape (batch, dim), unit norm
    keys : float, shape (keys, dim), unit norm
    positives : bool or float, shape (batch, keys)
        1 where the pair belongs together; rows and columns without a positive do not count.
    logit_scale : float, scalar
        Logarithm of the factor on the cosine; the factor is capped at 100.
    keys_as_queries : int, optional
        Only the first so many keys are matched back to the queries (the others are negatives only).
    offset : float, shape (keys,), optional
        Added to the logits of each key when queries look for keys.

    Returns
    -------
    float, scalar
    """
    logits = logit_scale.exp().clamp(max=100) * queries @ keys.T  # (batch, keys)
    back = len(keys) if keys_as_queries is None else keys_as_queries
    targets = positives.to(logits.dtype)
    forward = logits if offset is None else logits + offset
    return 0.5 * (_one_way(forward, targets) + _one_way(logits[:, :back].T, targets[:, :back].T))


def _one_way(logits: Tensor, targets: Tensor) -> Tensor:
    count = targets.sum(1)
    log_likelihood = (targets * functional.log_softmax(logits, dim=1)).sum(1) / count.clamp(min=1)
    return -log_likelihood.sum() / (count > 0).sum().clamp(min=1)
