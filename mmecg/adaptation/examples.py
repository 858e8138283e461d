"""Recordings beside their labels, in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.adaptation.label_table import LabelTable, hash_folds, ptb_xl_label_table, read_label_table
from mmecg.datasets.ptb_xl import PtbXlStudies, read_ptb_xl_table
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError
from mmecg.study import Study


@dataclass(frozen=True, eq=False)
class Examples:
    """Recordings beside their labels.

    Attributes
    ----------
    ecgs : tuple of Ecg, length n
    table : LabelTable
        Its rows are those of ``ecgs``.
    data : str
        Name of the data set, for the contamination card; "" if it has none.
    skipped : polars.DataFrame
        Columns ``record, reason``: what could not be read.
    """

    ecgs: tuple[Ecg, ...]
    table: LabelTable
    data: str = ""
    skipped: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.ecgs)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Return these rows, in this order."""
        return Examples(tuple(self.ecgs[row] for row in rows), self.table.take(rows), self.data, self.skipped)

    def with_table(self, table: LabelTable) -> Examples:
        """Return the same recordings with another table of as many rows."""
        return Examples(self.ecgs, table, self.data, self.skipped)


def ptb_xl_examples(
    folder: str | Path,
    *,
    labels: str | Path | None = None,
    folds: Collection[int] | None = None,
    sampling_rate_hz: int = 100,
) -> Examples:
    """Read a PTB-XL folder with its own labels, or with those of a table.

    Parameters
    ----------
    folder : str or Path
    labels : str or Path, optional
        See :func:`mmecg.adaptation.label_table.read_label_table`; folds and patients are PTB-XL's.
    folds : collection of int, optional
        Folds to read; default all.
    sampling_rate_hz : {100, 500}

    Raises
    ------
    InvalidInputError
        The folder or the table cannot be used.
    """
    records = read_ptb_xl_table(folder).drop_nulls(["study_id", "subject_id", "strat_fold"])
    if labels is None:
        table = ptb_xl_label_table(folder)
    else:
        subjects, folds_of = (
            dict(zip(records["study_id"], records[name], strict=True)) for name in ("subject_id", "strat_fold")
        )
        table = read_label_table(labels, subjects, folds_of)
    if folds is not None:
        table = table.take(np.flatnonzero(np.isin(table.folds, sorted(folds))))
    records = records.filter(pl.col("study_id").is_in(list(table.study_ids)))
    studies = PtbXlStudies(folder, records, sampling_rate_hz=sampling_rate_hz)
    ecgs = {study.study_id: study.ecg for study in studies if study.ecg is not None}
    return _beside(ecgs, table, "PTB-XL", studies.report.failures)


def study_examples(
    studies: Iterable[Study], labels: str | Path, *, skipped: Callable[[], pl.DataFrame] | None = None
) -> Examples:
    """Return the studies that a table of labels names; folds come from a hash of the subject.

    Parameters
    ----------
    studies : iterable of Study
    labels : str or Path
        See :func:`mmecg.adaptation.label_table.read_label_table`.
    skipped : callable, optional
        Returns, once all studies were read, what could not be: columns ``record, reason``.

    Raises
    ------
    InvalidInputError
        The table cannot be used.
    """
    ecgs: dict[str, Ecg] = {}
    subjects: dict[str, str] = {}
    for study in studies:
        if study.ecg is not None:
            ecgs[study.study_id], subjects[study.study_id] = study.ecg, study.subject_id
    folds = dict(zip(subjects, hash_folds(list(subjects.values())).tolist(), strict=True))
    return _beside(ecgs, read_label_table(labels, subjects, folds), "", skipped() if skipped else None)


def array_examples(
    signals: NDArray[np.int16], table: LabelTable, *, sampling_rate_hz: float = 100.0, data: str = "PTB-XL"
) -> Examples:
    """Return examples of signals that are in memory already.

    Parameters
    ----------
    signals : int16, shape (n, leads=12, samples), µV
        As :func:`mmecg.datasets.ptb_xl.read_ptb_xl_signals` reads them; rows as in ``table``.
    table : LabelTable
    sampling_rate_hz : float
    data : str
        Name of the data set.

    Raises
    ------
    InvalidInputError
        Their numbers differ.
    """
    if len(signals) != len(table):
        raise InvalidInputError(f"{len(signals)} signals and {len(table)} rows of labels, expected as many of each")
    everything = np.ones(len(LEADS), np.bool_)
    ecgs = (
        Ecg(signal.astype(np.float32) / np.float32(1000), sampling_rate_hz, everything.copy()) for signal in signals
    )
    return Examples(tuple(ecgs), table, data)


def _beside(ecgs: dict[str, Ecg], table: LabelTable, data: str, skipped: pl.DataFrame | None) -> Examples:
    rows = np.flatnonzero([name in ecgs for name in table.study_ids])
    kept = table.take(rows)
    return Examples(tuple(ecgs[name] for name in kept.study_ids), kept, data, skipped)


__all__ = ["Examples", "array_examples", "ptb_xl_examples", "study_examples"]
