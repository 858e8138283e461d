from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from mmecg_index.passing import PassingRows

from mmecg.search import METADATA_SCHEMA, Filter


@pytest.fixture
def table() -> pl.DataFrame:
    rows = np.array([1, 4, 5, 9, 12])
    columns = {name: [None] * len(rows) for name in METADATA_SCHEMA} | {
        "row": rows,
        "sex": ["male", "female"] * 2 + ["male"],
    }
    return pl.DataFrame(columns, schema=METADATA_SCHEMA)


@pytest.mark.parametrize("where", [Filter(), Filter(sex="male"), Filter(sex="female", age_min_years=3.0)])
@pytest.mark.parametrize("excluded", [[], [5], [12, 1], [0, 4, 13, 99], [1, 4, 5, 9, 12]])
def test_rows_are_those_of_the_filter_without_the_excluded(
    table: pl.DataFrame, where: Filter, excluded: list[int]
) -> None:
    passing = where.passing_rows(table)
    expected = np.setdiff1d(table["row"].to_numpy() if passing is None else passing, excluded)
    for _ in range(2):
        assert PassingRows(table).of(where, np.array(excluded, np.int64)).tolist() == expected.tolist()


def test_a_filter_that_comes_again_is_not_read_again(table: pl.DataFrame) -> None:
    passing, nobody = PassingRows(table), np.empty(0, np.int64)
    first = passing.of(Filter(sex="male"), nobody)
    assert passing.of(Filter(sex="male"), np.array([5])).tolist() == [1, 12]
    assert passing.of(Filter(sex="male"), nobody) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 7
