"""Splits by subject: no patient is ever on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError


def split_by_subject(
    subject_ids: Sequence[str], fractions: Mapping[str, float], *, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Split studies so that all studies of a subject fall on one side.

    A subject's side follows from a hash of seed and id alone: it does not change when other subjects come or go.

    Parameters
    ----------
    subject_ids : sequence of str
        Subject of each study.
    fractions : mapping of str to float
        Name of each split to its share of the subjects; positive, in sum 1.
    seed : int

    Returns
    -------
    dict of str to int64, shape (studies,)
        Positions of the studies of each split, ascending.

    Raises
    ------
    InvalidInputError
        The fractions are not positive or do not add up to 1.
    """
    shares = np.array(list(fractions.values()), np.float64)
    if not len(shares) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InvalidInputError("fractions are not positive numbers that add up to 1", field="fractions")
    points = {subject: _unit_hash(subject, seed) for subject in set(subject_ids)}
    side = np.searchsorted(np.cumsum(shares)[:-1], [points[subject] for subject in subject_ids], side="right")
    return {name: np.flatnonzero(side == index) for index, name in enumerate(fractions)}


def subject_groups(subject_ids: Sequence[str] | NDArray[np.generic], count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return a random group for each record, the same for all records of a subject; the groups have equal shares.

    Parameters
    ----------
    subject_ids : sequence of str, length n
    count : int
    seed : int

    Returns
    -------
    int64, shape (n,)
        From 0 to ``count - 1``.
    """
    subjects, subject_of = np.unique(np.asarray(subject_ids), return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(subjects))[subject_of] % count, np.int64)


def select_folds(table: pl.DataFrame, folds: Collection[int], *, column: str = "strat_fold") -> pl.DataFrame:
    """Return the rows of the given folds, and check that their subjects are in no other fold of the table.

    Parameters
    ----------
    table : polars.DataFrame
        With ``subject_id`` and ``column``.
    folds : collection of int

    Raises
    ------
    InvalidInputError
        A subject is both inside and outside, or none of the folds is there.
    """
    inside = pl.col(column).is_in(sorted(folds))
    chosen, others = table.filter(inside), table.filter(~inside)
    if chosen.is_empty():
        raise InvalidInputError(
            f"no record is in fold {', '.join(map(str, sorted(folds)))}, expected some of "
            f"{', '.join(map(str, table[column].unique().sort().to_list()))}",
            field="folds",
        )
    shared = len(set(chosen["subject_id"]) & set(others["subject_id"]))
    if shared:
        raise InvalidInputError(
            f"{shared} subjects have records inside and outside the chosen folds; split by subject", field="folds"
        )
    return chosen


def _unit_hash(subject_id: str, seed: int) -> float:
    digest = hashlib.blake2b(subject_id.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") / 2**64
