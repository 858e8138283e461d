"""The records that prediction is fitted and tested on: gold, encodings, and which record is earlier than which."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.bundle import Bundle
from mmecg.datasets.ptb_xl import (
    SUPERCLASSES,
    label_matrix,
    read_ptb_xl_table,
    read_scp_statements,
    superclass_matrix,
)
from mmecg.datasets.splits import select_folds
from mmecg.evaluation.cohort import Progress, read_cohort
from mmecg.prediction.history import Prior
from mmecg.prediction.result import SUPERCLASS_PREFIX
from mmecg.prediction.vitals_head import vitals_channels
from mmecg.vitals import Vitals

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class PredictionData:
    """Records with gold and encodings.

    Attributes
    ----------
    table : polars.DataFrame
        Rows of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`, n of them.
    labels : tuple of str
        71 statements and the five ``superclass/…``.
    gold : bool, shape (n, labels)
        Statements that the record lists, whatever their likelihood; superclasses of these.
    features : float32, shape (n, features)
    embedding : float32, shape (n, dim), unit norm
    """

    table: pl.DataFrame
    labels: tuple[str, ...]
    gold: NDArray[np.bool_]
    features: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.gold)

    @cached_property
    def study_ids(self) -> NDArray[np.str_]:
        """Study of each record: str, shape (n,)."""
        return self.table["study_id"].to_numpy().astype(np.str_)

    @cached_property
    def subject_ids(self) -> NDArray[np.str_]:
        """Patient of each record: str, shape (n,)."""
        return self.table["subject_id"].to_numpy().astype(np.str_)

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """Official fold of each record: int64, shape (n,)."""
        return self.table["strat_fold"].to_numpy().astype(np.int64)

    @cached_property
    def days(self) -> NDArray[np.float64]:
        """When it was recorded, in days since 1970, NaN if unknown: float64, shape (n,)."""
        return self.table["acquired_at"].dt.timestamp("ms").cast(pl.Float64).to_numpy() / (1000 * SECONDS_PER_DAY)

    @cached_property
    def vitals(self) -> NDArray[np.float32]:
        """What :class:`mmecg.prediction.vitals_head.VitalsHead` reads: float32, shape (n, channels)."""
        columns = self.table.select("age_years", "sex", "height_cm", "weight_kg")
        return vitals_channels([Vitals(**row) for row in columns.iter_rows(named=True)])

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> PredictionData:
        """Return some of the records."""
        at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return PredictionData(self.table[at], self.labels, self.gold[at], self.features[at], self.embedding[at])


def read_prediction_data(
    folder: Path, bundle: Bundle, folds: Collection[int], *, progress: Progress, cache: Path | None = None
) -> PredictionData:
    """Read and encode the records of some folds; records that cannot be read are left out.

    Parameters
    ----------
    folder : Path
        In PTB-XL layout.
    bundle : Bundle
    folds : collection of int
    progress : callable
    cache : Path, optional
        Folder in which the encodings are kept, by fingerprint and folds.

    Raises
    ------
    InvalidInputError
        No record can be read, or a patient is inside and outside the folds.
    """
    table = select_folds(read_ptb_xl_table(folder), folds)
    statements = read_scp_statements(folder)
    name = f"{bundle.fingerprint[:12]}-{'-'.join(map(str, sorted(folds)))}.npz"
    kept = cache / name if cache is not None else None
    if kept is not None and kept.is_file():
        with np.load(kept) as found:
            study_ids, features, embedding = found["study_ids"], found["features"], found["embedding"]
    else:
        read = read_cohort(
            folder, table, statements, {"bundle": bundle.encoder}, subsets={}, progress=progress, what="records"
        )
        encoded = read.encoded["bundle"]
        study_ids, features, embedding = read.study_ids, encoded.features, encoded.embedding
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, study_ids=study_ids, features=features, embedding=embedding)
    place = {study: row for row, study in enumerate(table["study_id"].to_list())}
    rows = [place[study] for study in study_ids.tolist()]
    return prediction_data(table[rows], statements, features, embedding)


def prediction_data(
    table: pl.DataFrame, statements: pl.DataFrame, features: NDArray[np.float32], embedding: NDArray[np.float32]
) -> PredictionData:
    """Join rows of a table with their encodings."""
    names = statements["label"].to_list()
    gold = np.concatenate([label_matrix(table, names), superclass_matrix(table, statements)], axis=1)
    labels = (*names, *(SUPERCLASS_PREFIX + name for name in SUPERCLASSES))
    return PredictionData(table, labels, gold, features, embedding)


def priors_of(data: PredictionData) -> list[list[int]]:
    """Return for each record the rows of the same patient's earlier records, oldest first.

    Earlier means strictly before in time: records of the same moment, or without a time, are nobody's priors.
    """
    by_subject: dict[str, list[int]] = {}
    for row in np.argsort(data.days, kind="stable").tolist():  # NaN last
        if np.isfinite(data.days[row]):
            by_subject.setdefault(str(data.subject_ids[row]), []).append(row)
    earlier: list[list[int]] = [[] for _ in range(len(data))]
    for rows in by_subject.values():
        for row in rows:
            earlier[row] = [other for other in rows if data.days[other] < data.days[row]]
    return earlier


def history_of(
    data: PredictionData,
    earlier: Sequence[Sequence[int]],
    *,
    rows: NDArray[np.integer] | None = None,
    owners: NDArray[np.integer] | None = None,
    limit: int = 16,
    labels: bool = True,
    embeddings: bool = True,
) -> list[list[Prior]]:
    """Return the earlier studies of records, latest first, as a predictor would find them in a corpus.

    Parameters
    ----------
    data : PredictionData
    earlier : sequence of sequence of int, length of ``data``
        Of :func:`priors_of`.
    rows : int, shape (n,), optional
        Records whose histories are wanted; default all.
    owners : int, shape (n,), optional
        For a control: the records whose histories these get instead of their own, with the time gaps that they have
        there.
    limit : int
        Latest studies that are taken.
    labels, embeddings : bool
        Whether the labels, and the embeddings, of earlier studies are known.
    """
    wanted = np.arange(len(data)) if rows is None else rows
    unknown = np.full(data.gold.shape[1], np.nan, np.float32)
    return [
        [
            Prior(
                study_id=str(data.study_ids[row]),
                days_before=float(data.days[owner] - data.days[row]),
                source="labels" if labels else "ecg",
                known=data.gold[row].astype(np.float32) if labels else unknown,
                embedding=data.embedding[row] if embeddings else None,
            )
            for row in list(earlier[owner])[::-1][:limit]
        ]
        for owner in (wanted if owners is None else owners).tolist()
    ]
