"""What is hidden from a network in self-supervised training: spans of time steps, and whole leads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def span_masks(
    batch: int,
    steps: int,
    rng: np.random.Generator,
    *,
    probability: float = 0.65,
    length: int = 10,
    min_spans: int = 2,
) -> NDArray[np.bool_]:
    """Return which time steps are hidden: bool, shape (batch, steps); as many in every row.

    As in wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477): ``probability * steps / length`` spans a row, rounded up
    or down at random, start at distinct random steps and may overlap, so that the share of hidden steps is near
    ``1 - exp(-probability)``. Then rows with more hidden steps than the row with the fewest show some of them, chosen
    at random: the contrast needs equal numbers.

    Parameters
    ----------
    batch, steps : int
    rng : numpy.random.Generator
    probability : float
        Share of steps that would be hidden if spans never overlapped.
    length : int
        Steps in a span; at most half of the steps.
    min_spans : int
        Spans in a row at least.
    """
    length = max(1, min(length, steps // 2))
    hidden = np.zeros((batch, steps), np.bool_)
    places = steps - length + 1
    for row in hidden:
        count = min(places, max(min_spans, int(probability * steps / length + rng.random())))
        starts = rng.choice(places, count, replace=False)
        row[(starts[:, None] + np.arange(length)).ravel()] = True
    fewest = int(hidden.sum(1).min()) if batch else 0
    for row in hidden:
        ones = np.flatnonzero(row)
        row[rng.choice(ones, len(ones) - fewest, replace=False)] = False
    return hidden


def lead_masks(batch: int, leads: int, probability: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return masks that hide each lead with a probability: float32, shape (batch, leads, 1); 1 keeps a lead.

    Random lead masking of Oh et al. 2022 (arXiv:2203.06889), but a recording never loses all its leads: where that was
    drawn (at 0.5, once in 4096 times), one lead stays.
    """
    keep = rng.random((batch, leads)) >= probability
    spared = rng.integers(0, leads, batch)
    empty = ~keep.any(1)
    keep[empty, spared[empty]] = True
    return keep[:, :, None].astype(np.float32)
