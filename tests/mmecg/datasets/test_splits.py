from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.datasets.splits import select_folds, split_by_subject, subject_groups
from mmecg.errors import InvalidInputError

FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


@given(st.lists(st.sampled_from([f"p{number}" for number in range(30)]), max_size=80), st.integers(-5, 5))
def test_no_subject_is_in_two_splits(subjects: list[str], seed: int) -> None:
    splits = split_by_subject(subjects, FRACTIONS, seed=seed)
    sides = [{subjects[row] for row in rows} for rows in splits.values()]
    assert not any(a & b for number, a in enumerate(sides) for b in sides[number + 1 :])
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(len(subjects)))


def test_shares_seed_and_stability() -> None:
    subjects = [f"p{number}" for number in range(5000)]
    splits = split_by_subject(subjects, FRACTIONS, seed=1)
    for name, share in FRACTIONS.items():
        assert abs(len(splits[name]) / 5000 - share) < 0.03
    again, other = split_by_subject(subjects, FRACTIONS, seed=1), split_by_subject(subjects, FRACTIONS, seed=2)
    assert all(np.array_equal(splits[name], again[name]) for name in FRACTIONS)
    assert not np.array_equal(splits["test"], other["test"])
    fewer = split_by_subject(subjects[:100], FRACTIONS, seed=1)
    np.testing.assert_array_equal(fewer["test"], splits["test"][splits["test"] < 100])


def test_groups_never_split_a_subject() -> None:
    subjects = np.array([f"p{row % 40}" for row in range(200)])
    groups = subject_groups(subjects, 4)
    assert all(len(set(groups[subjects == name])) == 1 for name in set(subjects))
    assert np.bincount(groups).tolist() == [50] * 4


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}])
def test_unusable_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="add up to 1"):
        split_by_subject(["a"], fractions)


def test_folds() -> None:
    table = pl.DataFrame({"subject_id": ["a", "b", "c"], "strat_fold": [1, 2, 2]})
    assert select_folds(table, [2])["subject_id"].to_list() == ["b", "c"]
    with pytest.raises(InvalidInputError, match="expected some of 1, 2"):
        select_folds(table, [9])
    leaking = pl.DataFrame({"subject_id": ["a", "a"], "strat_fold": [1, 2]})
    with pytest.raises(InvalidInputError, match="1 subjects"):
        select_folds(leaking, [1])
