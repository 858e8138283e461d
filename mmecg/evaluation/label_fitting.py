"""Fitting of the label weights that ship with mmecg: text, ECG reader, stacks. See ``scripts/train-labels``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.bundle import Bundle
from mmecg.datasets.splits import subject_groups
from mmecg.embedding import Encoder
from mmecg.errors import InvalidInputError
from mmecg.evaluation.cohort import Encoded
from mmecg.evaluation.label_data import LabelData
from mmecg.evaluation.probe import fit_probe
from mmecg.evaluation.prompts import embed_prompts, load_prompts
from mmecg.labels.agreement import CHANNELS, ECG_CHANNELS, EcgReader, Ridge, fit_stack
from mmecg.labels.evidence import FittedText, fit_text_evidence
from mmecg.labels.weights import Agreement

GROUPS = 4
CORPUS = 8000
"""Training records that vote in the shipped reader; a random choice."""


@dataclass(frozen=True)
class HonestScores:
    """ECG channels of records that the bundle they come from was not trained on.

    Attributes
    ----------
    rows : int64, shape (kept,)
        Positions in the label data.
    channels : mapping of channel to float32, shape (kept, labels)
    """

    rows: NDArray[np.int64]
    channels: Mapping[str, NDArray[np.float32]]


def fit_text(data: LabelData) -> FittedText:
    """Fit the text weights on all records, held out in groups of patients."""
    return fit_text_evidence(data.reports, data.gold, data.labels, subject_groups(data.subject_ids, GROUPS))


def fit_reader(
    encoder: Encoder, encoded: Encoded, data: LabelData, descriptions: Mapping[str, str], *, corpus: int = CORPUS
) -> EcgReader:
    """Fit what turns an encoder's output into ECG channels.

    Parameters
    ----------
    encoder : Encoder
    encoded : Encoded
        Of the records of ``data``, which the encoder may have been trained on.
    data : LabelData
    descriptions : mapping of label to str
        For labels that the prompt bank lacks.
    corpus : int
        Records that are kept as neighbours, at most.
    """
    probe = fit_probe(encoded.features, data.gold, data.subject_ids)
    weight = probe.weight / probe.scale[:, None]
    prompts = embed_prompts(encoder, load_prompts().of_task("all", data.labels, descriptions)).ensemble
    cosines = encoded.embedding @ prompts.T
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.gold))[:corpus])
    return EcgReader(
        fingerprint=encoder.fingerprint,
        labels=data.labels,
        probe_weight=weight.astype(np.float32),
        probe_bias=(probe.bias - probe.mean @ weight).astype(np.float32),
        prompts=prompts,
        prompt_mean=cosines.mean(axis=0).astype(np.float32),
        prompt_scale=(cosines.std(axis=0) + 1e-6).astype(np.float32),
        corpus=np.rint(encoded.embedding[chosen] * 127).astype(np.int8),
        corpus_labels=data.gold[chosen],
    )


def honest_scores(
    bundle: Bundle, encoded: Encoded, data: LabelData, folds: Sequence[int], descriptions: Mapping[str, str]
) -> HonestScores:
    """Return the ECG channels of the records outside a bundle's training folds.

    The reader is fitted on the bundle's own folds, as that of the shipped bundle is on its own.

    Parameters
    ----------
    bundle : Bundle
        Trained on some of ``folds``.
    encoded : Encoded
        Of all records of ``data``.
    data : LabelData
        Records of ``folds``.
    folds : sequence of int
    descriptions : mapping of label to str

    Raises
    ------
    InvalidInputError
        The bundle was trained on all folds, or on none of them.
    """
    seen = np.isin(data.table["strat_fold"].to_numpy(), bundle.config.training.folds)
    if seen.all() or not seen.any():
        raise InvalidInputError(
            f"bundle {bundle.path} was trained on folds {list(bundle.config.training.folds)}, expected some of "
            f"{list(folds)} but not all; train one that leaves a fold out (`mmecg train --config`)"
        )
    known, fresh = np.flatnonzero(seen), np.flatnonzero(~seen)
    reader = fit_reader(bundle.encoder, encoded.take(known), data.take(known), descriptions)
    unseen = encoded.take(fresh)
    return HonestScores(fresh, reader.scores(unseen.features, unseen.embedding))


def join_honest(parts: Sequence[HonestScores]) -> HonestScores:
    """Put the scores of several bundles together; a record that several leave out is taken from the first of them."""
    rows, first = np.unique(np.concatenate([part.rows for part in parts]), return_index=True)
    channels = {name: np.concatenate([part.channels[name] for part in parts])[first] for name in parts[0].channels}
    return HonestScores(rows, channels)


def fit_agreement(reader: EcgReader, honest: HonestScores, text: FittedText, data: LabelData) -> Agreement:
    """Fit the stacks on scores that neither the text weights nor the bundle had been fitted on.

    Parameters
    ----------
    reader : EcgReader
        Of the bundle that the stacks will be used with.
    honest : HonestScores
    text : FittedText
        Of the records of ``data``.
    data : LabelData
    """
    scores = {"text": text.held_out[honest.rows], **honest.channels}
    gold = data.gold[honest.rows]
    both = fit_stack(scores, gold, data.labels, CHANNELS, ridge=Ridge())
    ecg = fit_stack(scores, gold, data.labels, ECG_CHANNELS, ridge=Ridge())
    return Agreement(reader, both, ecg)
