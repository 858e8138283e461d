"""Recordings in memory, as a network takes them: of PTB-XL with its folds, or of any other studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.adaptation.backbone import Backbone
from mmecg.adaptation.label_table import hash_folds
from mmecg.datasets.ptb_xl import (
    DURATION_S,
    SUPERCLASSES,
    read_ptb_xl_signals,
    read_ptb_xl_table,
    read_scp_statements,
    superclass_matrix,
)
from mmecg.datasets.splits import select_folds
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError
from mmecg.study import Study


@dataclass(frozen=True)
class Recordings:
    """Prepared recordings of one length.

    Attributes
    ----------
    signals : float16, shape (recordings, leads, samples)
        As :meth:`Backbone.prepare` gives them, segments joined in time. Half precision halves the memory; its rounding
        (0.0005 at 1 mV) is below the noise of a recording.
    subject_ids : list of str, length recordings
    superclass : bool, shape (recordings, labels=5)
        For the probe only; no loss sees it.
    """

    signals: NDArray[np.float16]
    subject_ids: list[str]
    superclass: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.subject_ids)


def ptb_xl_recordings(folder: Path, backbone: Backbone, folds: Sequence[int], *, quiet: bool = False) -> Recordings:
    """Read folds of a PTB-XL folder: its copy at 500 Hz if the backbone takes more than 100 Hz and it is there.

    Raises
    ------
    InvalidInputError
        The folder cannot be read, lacks the folds, or a patient is inside and outside of them.
    """
    table = select_folds(read_ptb_xl_table(folder), folds)
    rate = 500 if backbone.sampling_rate_hz > 100 and (folder / "records500").is_dir() else 100
    read = read_ptb_xl_signals(folder, table, sampling_rate_hz=rate, quiet=quiet)
    return Recordings(
        prepare_signals(backbone, read.signals, rate),
        read.table["subject_id"].to_list(),
        superclass_matrix(read.table, read_scp_statements(folder)),
    )


def study_recordings(
    studies: Iterable[Study], backbone: Backbone, folds: Sequence[Sequence[int]]
) -> tuple[Recordings, ...]:
    """Return the recordings of any studies, without labels; folds 1 to 10 come from a hash of the subject.

    Of each recording the first 10 s are taken; one that is shorter, or has none of the backbone's leads, is left out.

    Parameters
    ----------
    studies : iterable of Study
    backbone : Backbone
    folds : sequence of sequences of int
        What each group of recordings holds.

    Raises
    ------
    InvalidInputError
        A group has no recording.
    """
    signals: list[list[NDArray[np.float16]]] = [[] for _ in folds]
    subjects: list[list[str]] = [[] for _ in folds]
    length = max(1, round(DURATION_S * backbone.sampling_rate_hz) // backbone.samples) * backbone.samples
    for study in studies:
        (fold,) = hash_folds([study.subject_id])
        groups = [group for group, wanted in enumerate(folds) if fold in wanted]
        ecg = _first_seconds(study.ecg, backbone) if groups else None
        joined = None if ecg is None else _joined(backbone, ecg)
        if joined is None or joined.shape[1] != length:  # an odd rate may round to a sample less
            continue
        for group in groups:
            signals[group].append(joined)
            subjects[group].append(study.subject_id)
    for group, wanted in enumerate(folds):
        if not signals[group]:
            raise InvalidInputError(
                f"no recording of {DURATION_S} s or more is in fold {', '.join(map(str, wanted))} of 1 to 10; "
                "give more data",
                field="data",
            )
    return tuple(
        Recordings(np.stack(items), names, np.zeros((len(names), len(SUPERCLASSES)), np.bool_))
        for items, names in zip(signals, subjects, strict=True)
    )


def prepare_signals(backbone: Backbone, signals: NDArray[np.int16], sampling_rate_hz: float) -> NDArray[np.float16]:
    """Return what a backbone makes of signals, segments joined in time.

    Parameters
    ----------
    backbone : Backbone
    signals : int16, shape (recordings, leads=12, samples), µV
    sampling_rate_hz : float

    Returns
    -------
    float16, shape (recordings, leads, samples)
    """
    prepared = np.empty((0, 0, 0), np.float16)
    for row, joined in enumerate(_prepared(backbone, signals, sampling_rate_hz)):
        if not row:
            prepared = np.empty((len(signals), *joined.shape), np.float16)
        prepared[row] = joined
    return prepared


def _prepared(backbone: Backbone, signals: NDArray[np.int16], rate: float) -> Iterator[NDArray[np.float16]]:
    for signal in signals:
        millivolt = signal.astype(np.float32) / np.float32(1000)
        yield _joined(backbone, Ecg.from_array(millivolt, sampling_rate_hz=rate, leads=LEADS))


def _first_seconds(ecg: Ecg | None, backbone: Backbone) -> Ecg | None:
    """Return the part of a recording that is used, or None if it is too short or lacks the leads."""
    if ecg is None or not set(ecg.leads) & set(backbone.leads):
        return None
    samples = round(DURATION_S * ecg.sampling_rate_hz)
    if ecg.signal.shape[1] < samples:
        return None
    return Ecg(ecg.signal[:, :samples], ecg.sampling_rate_hz, ecg.lead_mask)


def _joined(backbone: Backbone, ecg: Ecg) -> NDArray[np.float16]:
    (segments,) = backbone.prepare([ecg])
    return np.concatenate(list(segments), axis=1).astype(np.float16)
