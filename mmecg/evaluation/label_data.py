"""The records that label mining is fitted and tested on: what their reports say, their gold, their ECG channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import label_matrix
from mmecg.embedding import Encoder
from mmecg.errors import ReportError
from mmecg.evaluation.cohort import Encoded, Progress, read_cohort
from mmecg.labels.assertion import LabelAssertion, main_language
from mmecg.labels.evidence import mentioned
from mmecg.labels.mining import LabelMiner

LABELS_20: tuple[str, ...] = (
    "SR", "NORM", "ABQRS", "IMI", "ASMI", "LVH", "NDT", "LAFB", "AFIB", "ISC_", "PVC", "IRBBB", "STD_", "VCLVH",
    "STACH", "1AVB", "IVCD", "SARRH", "NST_", "ISCAL",
)  # fmt: skip
"""The 20 most frequent statements of PTB-XL."""

LABELS_56: tuple[str, ...] = (
    *LABELS_20, "SBRAD", "QWAVE", "CRBBB", "CLBBB", "ILMI", "LOWT", "LAO/LAE", "NT_", "PAC", "AMI", "LPR", "PACE",
    "INVT", "ALMI", "ISCIN", "INJAS", "LMI", "LVOLT", "DIG", "ISCIL", "LPFB", "ISCAS", "SVARR", "INJAL", "ISCLA", "RVH",
    "LNGQT", "ANEUR", "RAO/RAE", "EL", "BIGU", "WPW", "ILBBB", "AFLT", "HVOLT", "IPLMI",
)  # fmt: skip
"""The 56 most frequent; the rarest has 46 positives in folds 1-9."""


@dataclass(frozen=True)
class LabelData:
    """Records with reports and gold.

    Attributes
    ----------
    table : polars.DataFrame
        Rows of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`.
    reports : tuple of tuple of LabelAssertion, length n
        What the miner found in each raw report; nothing in one that it refuses.
    labels : tuple of str
    gold : bool, shape (n, labels)
        Statements that the record lists, whatever their likelihood.
    """

    table: pl.DataFrame
    reports: tuple[tuple[LabelAssertion, ...], ...]
    labels: tuple[str, ...]
    gold: NDArray[np.bool_]

    @cached_property
    def subject_ids(self) -> NDArray[np.str_]:
        """Patient of each record."""
        return self.table["subject_id"].to_numpy().astype(np.str_)

    @cached_property
    def languages(self) -> NDArray[np.str_]:
        """Language that most assertions of the report are in; empty where nothing was found."""
        return np.array([main_language(report) for report in self.reports], np.str_)

    @cached_property
    def mentioned(self) -> NDArray[np.bool_]:
        """Which labels the report mentions without denying them: bool, shape (n, labels)."""
        return mentioned(self.reports, self.labels)

    def columns(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Return where the labels stand in :attr:`labels`."""
        place = {label: index for index, label in enumerate(self.labels)}
        return np.array([place[label] for label in labels], np.int64)

    def take(self, rows: NDArray[np.int64]) -> LabelData:
        """Return some of the records."""
        return LabelData(self.table[rows], tuple(self.reports[row] for row in rows), self.labels, self.gold[rows])


def read_label_data(table: pl.DataFrame, labels: Sequence[str], miner: LabelMiner) -> LabelData:
    """Mine the reports of a table; equal reports are mined once."""
    texts = table["report_raw"].fill_null("").to_list()
    mined = {text: _mine(miner, text) for text in dict.fromkeys(texts)}
    reports = tuple(mined[text] for text in texts)
    return LabelData(table, reports, tuple(labels), label_matrix(table, labels))


def encode_data(
    folder: Path,
    data: LabelData,
    statements: pl.DataFrame,
    encoders: Mapping[str, Encoder],
    *,
    progress: Progress,
    what: str,
) -> tuple[NDArray[np.int64], Mapping[str, Encoded], pl.DataFrame]:
    """Read and encode the signals of the records.

    Returns
    -------
    rows : int64, shape (read,)
        Which records could be read.
    encoded : mapping of str to Encoded
        By name of the encoder.
    skipped : polars.DataFrame
        Columns ``record`` and ``reason``.

    Raises
    ------
    InvalidInputError
        No signal can be read.
    """
    cohort = read_cohort(folder, data.table, statements, encoders, subsets={}, progress=progress, what=what)
    place = {study: row for row, study in enumerate(data.table["study_id"].to_list())}
    rows = np.array([place[study] for study in cohort.study_ids.tolist()], np.int64)
    return rows, cohort.encoded, cohort.skipped


def _mine(miner: LabelMiner, text: str) -> tuple[LabelAssertion, ...]:
    try:
        return tuple(miner.mine(text))
    except ReportError:
        return ()
