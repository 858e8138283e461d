"""The records of an evaluation, and what an encoder makes of them.

Signals are read once and encoded in chunks; only features and embeddings are kept. A record that cannot be read is left
out with its reason, and the patients of the test fold never enter the records that probes and neighbours are fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import read_ptb_xl_signals, study_of_row
from mmecg.ecg import LIMB_LEADS, Ecg
from mmecg.embedding import Encoder
from mmecg.errors import InvalidInputError, SignalError
from mmecg.evaluation.labels import LabelTask, label_tasks
from mmecg.modeling.joint_encoder import JointEncoder
from mmecg.vitals import Vitals

LEAD_SUBSETS: dict[str, tuple[str, ...]] = {"I": ("I",), "limb": LIMB_LEADS}
"""Lead subsets of the rows ``lead_subset/*``."""

_CHUNK = 256
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass(frozen=True)
class Encoded:
    """What one encoder makes of the records.

    Attributes
    ----------
    features : float32, shape (n, features)
    embedding : float32, shape (n, dim), unit norm
    subsets : mapping of subset name to float32, shape (n, dim), unit norm
        Embeddings from some leads only; empty for training records.
    """

    features: NDArray[np.float32]
    embedding: NDArray[np.float32]
    subsets: Mapping[str, NDArray[np.float32]]

    def take(self, rows: NDArray[np.int64]) -> Encoded:
        """Return some of the records."""
        subsets = {name: values[rows] for name, values in self.subsets.items()}
        return Encoded(self.features[rows], self.embedding[rows], subsets)


@dataclass(frozen=True)
class Cohort:
    """Records that were read, without their signals.

    Attributes
    ----------
    study_ids, subject_ids : str, shape (n,)
    tasks : mapping of str to LabelTask
    texts : tuple of str, length n
        Clean reports; may be empty.
    vitals : tuple of Vitals, length n
        Age, sex, height, weight; may be empty.
    encoded : mapping of str to Encoded
        By name of the encoder: ``"bundle"`` and ``"random"``.
    skipped : polars.DataFrame
        Columns ``record`` and ``reason``.
    """

    study_ids: NDArray[np.str_]
    subject_ids: NDArray[np.str_]
    tasks: Mapping[str, LabelTask]
    texts: tuple[str, ...]
    vitals: tuple[Vitals, ...]
    encoded: Mapping[str, Encoded]
    skipped: pl.DataFrame

    def __len__(self) -> int:
        return len(self.subject_ids)


def without_subjects_of(table: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``table`` whose patient is not in ``other``: the guard against leaks across folds."""
    return table.filter(~pl.col("subject_id").is_in(other["subject_id"].unique().to_list()))


def read_cohort(
    folder: Path,
    table: pl.DataFrame,
    statements: pl.DataFrame,
    encoders: Mapping[str, Encoder],
    *,
    subsets: Mapping[str, Sequence[str]],
    progress: Progress,
    what: str,
) -> Cohort:
    """Read and encode the records of a table.

    Parameters
    ----------
    folder : Path
        In PTB-XL layout.
    table, statements : polars.DataFrame
        Of :mod:`mmecg.datasets.ptb_xl`; ``table`` has the records wanted.
    encoders : mapping of str to Encoder
    subsets : mapping of str to sequence of str
        Lead subsets to embed as well; may be empty.
    progress : callable
    what : str
        Name for the progress, such as ``"test records"``.

    Raises
    ------
    InvalidInputError
        No record can be read.
    """
    progress(f"reading {what}", 0, table.height)
    rate = sampling_rate_of(folder, table)
    read = read_ptb_xl_signals(folder, table, sampling_rate_hz=rate)
    kept: list[int] = []
    failures = read.report.failures.rows()
    parts: dict[str, list[Encoded]] = {name: [] for name in encoders}
    for start in range(0, len(read.signals), _CHUNK):
        ecgs, rows, refused = _as_ecgs(read.signals[start : start + _CHUNK], rate)
        failures += [(read.table["study_id"][start + row], reason) for row, reason in refused]
        kept += [start + row for row in rows]
        if ecgs:
            for name, encoder in encoders.items():
                parts[name].append(encode_ecgs(encoder, ecgs, subsets))
        progress(f"encoding {what}", min(start + _CHUNK, len(read.signals)), len(read.signals))
    if not kept:
        reason = failures[0][1] if failures else "the table has none"
        raise InvalidInputError(f"none of the {table.height} {what} can be read, expected some; first reason: {reason}")
    final = read.table[kept]
    return Cohort(
        study_ids=final["study_id"].to_numpy().astype(np.str_),
        subject_ids=final["subject_id"].to_numpy().astype(np.str_),
        tasks=label_tasks(final, statements),
        texts=tuple(final["report_text"].to_list()),
        vitals=tuple(study_of_row(row).vitals for row in final.iter_rows(named=True)),
        encoded={name: concatenate(found) for name, found in parts.items()},
        skipped=pl.DataFrame(failures, schema={"record": pl.String(), "reason": pl.String()}, orient="row"),
    )


def sampling_rate_of(folder: Path, table: pl.DataFrame) -> int:
    """Return 100 if the folder has a 100 Hz file of the table, else 500 if it has one of those.

    Raises
    ------
    InvalidInputError
        It has neither.
    """
    for rate, column in ((100, "filename_lr"), (500, "filename_hr")):
        names = table[column].drop_nulls().to_list() if column in table.columns else []
        if any((folder / f"{name}.hea").is_file() for name in names):
            return rate
    raise InvalidInputError(
        f"{folder} has no signal file of the {table.height} records wanted, expected records100/… or records500/… as "
        "filename_lr and filename_hr name them; unpack the signals beside ptbxl_database.csv"
    )


def _as_ecgs(signals: NDArray[np.int16], rate: int) -> tuple[list[Ecg], list[int], list[tuple[int, str]]]:
    ecgs: list[Ecg] = []
    rows: list[int] = []
    refused: list[tuple[int, str]] = []
    for row, signal in enumerate(signals):
        try:
            ecgs.append(Ecg.from_array(signal, sampling_rate_hz=rate, unit="uV"))
            rows.append(row)
        except SignalError as error:
            refused.append((row, str(error)))
    return ecgs, rows, refused


def encode_ecgs(encoder: Encoder, ecgs: Sequence[Ecg], subsets: Mapping[str, Sequence[str]]) -> Encoded:
    """Return features, embeddings, and embeddings from the lead subsets that are named."""
    features = encoder.ecg_features(ecgs)
    return Encoded(
        features,
        _embed(encoder, ecgs, features),
        {name: encoder.encode_ecg([ecg.select_leads(leads) for ecg in ecgs]) for name, leads in subsets.items()},
    )


def _embed(encoder: Encoder, ecgs: Sequence[Ecg], features: NDArray[np.float32]) -> NDArray[np.float32]:
    if not isinstance(encoder, JointEncoder):
        return encoder.encode_ecg(ecgs)
    return encoder.embed_features(features)  # the tower's features are at hand: only the projection is left


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Return the records of all parts, one part after the other; there is at least one."""
    return Encoded(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        {name: np.concatenate([part.subsets[name] for part in parts]) for name in parts[0].subsets},
    )
