"""The two contrasts: hidden steps against other steps of the same signal, and segments against other recordings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mmecg.modeling.loss import contrastive_loss


def draw_negatives(batch: int, steps: int, count: int, device: torch.device) -> Tensor:
    """Return for each step the steps of its own signal that it is told apart from.

    Parameters
    ----------
    batch, steps : int
        Signals, and hidden steps of each; at least two.
    count : int
        Negatives of a step, drawn with replacement, never the step itself.

    Returns
    -------
    int64, shape (batch, steps, count)
    """
    drawn = torch.randint(0, steps - 1, (batch, steps, count), device=device)
    return drawn + (drawn >= torch.arange(steps, device=device)[:, None]).long()


def masked_contrast(
    predictions: Tensor, targets: Tensor, codes: Tensor, negatives: Tensor, *, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss of hidden steps, and how often the true step comes first.

    wav2vec 2.0, equation 3 (Baevski et al. 2020, arXiv:2006.11477): the cosine of a prediction to the target of its own
    step against those to targets of other hidden steps of the same signal. A negative that was quantised to the very
    codes of the positive is none and is left out.

    Parameters
    ----------
    predictions, targets : float, shape (batch, steps, dim)
        Of hidden steps.
    codes : int64, shape (batch, steps, groups)
        What each target was quantised to.
    negatives : int64, shape (batch, steps, count)
        See :func:`draw_negatives`.
    temperature : float

    Returns
    -------
    loss, accuracy : float, scalar
        Means over steps. A step without a negative that differs counts as missed.
    """
    cosine = functional.normalize(predictions, dim=-1) @ functional.normalize(targets, dim=-1).transpose(1, 2)
    logits = cosine / temperature  # (batch, steps, steps)
    same = (codes[:, :, None] == codes[:, None]).all(-1)  # (batch, steps, steps)
    others = logits.gather(2, negatives).masked_fill(same.gather(2, negatives), -math.inf)
    own = logits.diagonal(dim1=1, dim2=2)
    loss = torch.logsumexp(torch.cat([own.unsqueeze(-1), others], dim=-1), dim=-1) - own
    best = others.max(-1).values
    return loss.mean(), ((own > best) & best.isfinite()).float().mean()


def segment_contrast(
    first: Tensor, second: Tensor, groups: Tensor, *, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return the CMSC loss of a batch of segment pairs, and how often a segment finds its like first.

    Contrastive multi-segment coding (Kiyasseh et al. 2021, arXiv:2005.13249): segments of one group are positives of
    each other, all others negatives; symmetric.

    Parameters
    ----------
    first, second : float, shape (batch, dim)
        Features of the two segments of each pair; normalised here.
    groups : int64, shape (batch,)
        Recording, or patient, of each pair.
    temperature : float

    Returns
    -------
    loss, top_1 : float, scalar
    """
    queries, keys = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
    positives = groups[:, None] == groups[None]
    loss = contrastive_loss(queries, keys, positives.float(), queries.new_tensor(-math.log(temperature)))
    with torch.no_grad():
        cosine = queries @ keys.T
        hits = [positives.gather(1, each.argmax(1, keepdim=True)).float().mean() for each in (cosine, cosine.T)]
    return loss, (hits[0] + hits[1]) / 2
