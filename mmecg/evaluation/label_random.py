"""The random-encoder baseline of label mining: reader and stacks fitted on an encoder that was never trained.

The shipped stacks belong to the shipped bundle. For an untrained encoder of the same shape everything after the encoder
is therefore fitted anew, in the same way: the text weights' held-out scores and the ECG channels of training records
that their reader has not seen go into a stack. What the stack then gains over the text is the gain of any ECG features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmecg.datasets.splits import subject_groups
from mmecg.embedding import Encoder
from mmecg.evaluation.cohort import Progress
from mmecg.evaluation.label_data import encode_data, read_label_data
from mmecg.evaluation.label_fitting import HonestScores, fit_agreement, fit_reader, fit_text, join_honest
from mmecg.labels.mining import LabelMiner
from mmecg.labels.weights import Agreement

RECORDS = 4000
"""Training records whose signals are read, at most; a random choice."""


def fit_untrained(
    folder: Path,
    train: pl.DataFrame,
    statements: pl.DataFrame,
    labels: tuple[str, ...],
    encoder: Encoder,
    *,
    progress: Progress,
    seed: int = 0,
) -> Agreement:
    """Fit reader and stacks for an encoder that has seen no record.

    Parameters
    ----------
    folder : Path
        In PTB-XL layout.
    train, statements : polars.DataFrame
        Records of the training folds, none of a test patient; and what the labels mean.
    labels : tuple of str
    encoder : Encoder
    progress : callable
    seed : int

    Raises
    ------
    InvalidInputError
        There are fewer than two patients, or no signal can be read.
    """
    data = read_label_data(train, labels, LabelMiner())
    text = fit_text(data)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.gold))[:RECORDS])
    kept, found, _ = encode_data(
        folder, data.take(chosen), statements, {"random": encoder}, progress=progress, what="training records"
    )
    rows, encoded = chosen[kept], found["random"]
    descriptions = dict(statements.select("label", "description").iter_rows())
    part = data.take(rows)
    groups = subject_groups(part.subject_ids, 2, seed=seed)
    parts = []
    for group in (0, 1):
        seen, fresh = np.flatnonzero(groups != group), np.flatnonzero(groups == group)
        reader = fit_reader(encoder, encoded.take(seen), part.take(seen), descriptions)
        unseen = encoded.take(fresh)
        parts.append(HonestScores(rows[fresh], reader.scores(unseen.features, unseen.embedding)))
    reader = fit_reader(encoder, encoded, part, descriptions)
    return fit_agreement(reader, join_honest(parts), text, data)
