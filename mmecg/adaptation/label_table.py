"""Labels of studies: 1 present, 0 absent, NaN unknown; with patient and fold, so that no patient is on two sides.

A table of one's own is CSV or Parquet with a column ``study_id`` and one column a label that holds 0, 1 (or false,
true) or nothing; ``subject_id``, ``fold`` and ``strat_fold`` are no labels. Folds are those of the table, else those of
the data, else the patients are cut into ten by a hash of their id. PTB-XL brings its own labels: 5 superclasses and 71
statements, by the rules of :mod:`mmecg.evaluation.labels`; a record without a superclass is unknown to all five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import read_ptb_xl_table, read_scp_statements
from mmecg.datasets.splits import split_by_subject
from mmecg.errors import InvalidInputError
from mmecg.evaluation.labels import label_tasks

NO_LABELS = ("study_id", "subject_id", "fold", "strat_fold")
"""Columns of a table that are no labels."""

OWN_GROUP = "labels"
"""Name of the group of the labels of a table of one's own."""

FOLDS = 10
_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Studies with their patient, fold and labels.

    Attributes
    ----------
    study_ids, subject_ids : tuple of str, length n
    folds : int64, shape (n,)
    labels : tuple of str
        In the order of the columns of ``values``; each once.
    values : float32, shape (n, labels)
        1, 0, or NaN where unknown.
    groups : mapping of str to tuple of int
        Name of a label group to its columns; figures are averaged within a group.
    """

    study_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    folds: NDArray[np.int64]
    labels: tuple[str, ...]
    values: NDArray[np.float32]
    groups: Mapping[str, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.study_ids)

    def take(self, rows: NDArray[np.int64]) -> LabelTable:
        """Return these rows, in this order."""
        studies, subjects = (tuple(names[row] for row in rows) for names in (self.study_ids, self.subject_ids))
        return LabelTable(studies, subjects, self.folds[rows], self.labels, self.values[rows], self.groups)

    def with_values(self, values: NDArray[np.float32]) -> LabelTable:
        """Return the same studies with other values, such as with some positives hidden."""
        return LabelTable(self.study_ids, self.subject_ids, self.folds, self.labels, values, self.groups)

    def with_labels(self, labels: Sequence[str]) -> LabelTable:
        """Return the table with some labels only; groups that lose all theirs are gone.

        Raises
        ------
        InvalidInputError
            A label is not there.
        """
        if unknown := [name for name in labels if name not in self.labels]:
            known = ", ".join(self.labels[:10])
            raise InvalidInputError(f"label {unknown[0]!r} is not in the table, expected some of {known}, …")
        columns = [self.labels.index(name) for name in labels]
        groups = {
            name: tuple(columns.index(item) for item in held if item in columns) for name, held in self.groups.items()
        }
        groups = {name: held for name, held in groups.items() if held}
        values = np.ascontiguousarray(self.values[:, columns])
        return LabelTable(self.study_ids, self.subject_ids, self.folds, tuple(labels), values, groups)


@dataclass(frozen=True)
class Split:
    """Rows to fit on, to choose on, and to evaluate on: int64 arrays, ascending; no patient is in two of them."""

    fit: NDArray[np.int64]
    choose: NDArray[np.int64]
    test: NDArray[np.int64]


def split_folds(table: LabelTable, fold: int, *, fraction: float = 1.0, seed: int = 0) -> Split:
    """Return the rows of a fold to evaluate, of the one before it to choose on, and of all before that to fit on.

    Later folds stay untouched. A fraction keeps that share of the *patients* to fit on, and a smaller fraction of the
    same seed is part of a larger one; the fold to choose on stays whole.

    Parameters
    ----------
    table : LabelTable
    fold : int
    fraction : float
        Above 0, at most 1.
    seed : int
        Of the fraction.

    Raises
    ------
    InvalidInputError
        One of the three parts has no study, a patient is in two of them, or the fraction is impossible.
    """
    if not 0 < fraction <= 1:
        raise InvalidInputError(f"fraction is {fraction}, expected above 0 and at most 1", field="fraction")
    parts = {
        "to fit on (before that)": table.folds < fold - 1,
        f"to choose on ({fold - 1})": table.folds == fold - 1,
        f"to evaluate ({fold})": table.folds == fold,
    }
    for name, mask in parts.items():
        if not mask.any():
            have = ", ".join(map(str, sorted(set(table.folds.tolist())))) or "none"
            raise InvalidInputError(f"no study is in a fold {name}; folds with studies: {have}", field="fold")
    subjects = np.asarray(table.subject_ids)
    fit, choose, test = (np.flatnonzero(mask) for mask in parts.values())
    sides = [set(subjects[rows].tolist()) for rows in (fit, choose, test)]
    if shared := len(sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]):
        raise InvalidInputError(f"{shared} subjects have studies in several folds; split by subject", field="fold")
    patients = sorted(sides[0])
    order = np.random.default_rng(seed).permutation(len(patients))
    kept = {patients[item] for item in order[: max(1, round(fraction * len(patients)))]}
    return Split(fit[[subject in kept for subject in subjects[fit].tolist()]], choose, test)


def ptb_xl_label_table(folder: str | Path) -> LabelTable:
    """Return the superclasses and statements of a PTB-XL folder, in the order of its table.

    Labels are named ``superclass/NORM``, ``all/AFIB``, …: NORM is a superclass and a statement.

    Raises
    ------
    InvalidInputError
        The folder is not in this layout.
    """
    records = read_ptb_xl_table(folder).drop_nulls(["study_id", "subject_id", "strat_fold"])
    names: list[str] = []
    columns, groups = [], {}
    for task in label_tasks(records, read_scp_statements(folder)).values():
        values = task.values.astype(np.float32)
        values[~task.included] = np.nan
        groups[task.name] = tuple(range(len(names), len(names) + len(task.labels)))
        names += [f"{task.name}/{label}" for label in task.labels]
        columns.append(values)
    studies, subjects = (tuple(records[name].to_list()) for name in ("study_id", "subject_id"))
    folds = records["strat_fold"].to_numpy().astype(np.int64)
    return LabelTable(studies, subjects, folds, tuple(names), np.concatenate(columns, axis=1), groups)


def read_label_table(path: str | Path, subjects: Mapping[str, str], folds: Mapping[str, int]) -> LabelTable:
    """Read a table of one's own: CSV or Parquet.

    Parameters
    ----------
    path : str or Path
    subjects, folds : mapping of study_id to subject_id and to fold
        What the data say of their studies. Studies of the table that are not in ``subjects`` are left out.

    Raises
    ------
    InvalidInputError
        The table cannot be read, has no ``study_id`` or no label, names a study twice, holds something else than 0, 1
        or nothing, or names no study of the data.
    """
    table = _read(Path(path))
    labels = [name for name in table.columns if name not in NO_LABELS]
    if "study_id" not in table.columns or not labels:
        raise InvalidInputError(
            f"label table has the columns {', '.join(table.columns[:8])}, expected study_id and one column a label",
            field="labels",
        )
    ids = table["study_id"].cast(pl.String)
    if ids.n_unique() < table.height:
        raise InvalidInputError("label table names a study twice, expected one row a study", field="labels")
    kept = np.flatnonzero([name in subjects for name in ids])
    if not len(kept):
        raise InvalidInputError(
            f"none of the {table.height} study_id of the label table is in the data; give the ids of the data",
            field="labels",
        )
    values = np.stack([_truth(table[name]) for name in labels], axis=1)[kept]
    studies = tuple(ids[int(row)] for row in kept)
    patients = tuple(subjects[name] for name in studies)
    found = _own_folds(table, kept)
    if found is None:
        hashed = hash_folds(patients)
        found = np.array([folds.get(name, other) for name, other in zip(studies, hashed, strict=True)], np.int64)
    return LabelTable(studies, patients, found, tuple(labels), values, {OWN_GROUP: tuple(range(len(labels)))})


def hash_folds(subject_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return a fold from 1 to 10 for each study, from a hash of its subject alone: int64, shape (n,)."""
    found = np.zeros(len(subject_ids), np.int64)
    sides = split_by_subject(subject_ids, {str(fold): 1 / FOLDS for fold in range(1, FOLDS + 1)})
    for fold, rows in sides.items():
        found[rows] = int(fold)
    return found


def _own_folds(table: pl.DataFrame, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    for name in ("fold", "strat_fold"):
        if name in table.columns:
            folds = table[name].cast(pl.Int64, strict=False)[rows.tolist()]
            if folds.null_count():
                raise InvalidInputError(f"column {name} of the label table is not a number for each study; fill it in")
            return np.asarray(folds.to_numpy(), np.int64)
    return None


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(
            f"label table {path.name} cannot be read ({type(error).__name__}), expected CSV or Parquet", field="labels"
        ) from None


def _truth(column: pl.Series) -> NDArray[np.float32]:
    """Return 0, 1 and NaN: float32, shape (n,)."""
    text = [None if cell is None else str(cell).strip().lower() for cell in column.to_list()]
    for cell in text:
        if cell and cell not in (*_TRUTH, "nan"):
            raise InvalidInputError(
                f"label {column.name[:60]!r} holds {cell[:20]!r}, expected 0, 1 or nothing; leave out other columns",
                field="labels",
            )
    return np.array([_TRUTH.get(cell or "", np.nan) for cell in text], np.float32)
