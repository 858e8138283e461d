from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmecg.embedding import normalise
from mmecg.errors import QueryError
from mmecg.exact_index import ExactIndex
from mmecg.search import MAX_TOP_K, METADATA_SCHEMA, Filter, check_rows, check_top_k, check_vectors

MOMENT = datetime(2020, 5, 1, 12)
RECORDS = [
    {
        "row": row,
        "study_id": f"s{row}",
        "subject_id": f"p{row // 3}",
        "acquired_at": None if row % 7 == 0 else MOMENT + timedelta(days=row),
        "age_years": None if row % 5 == 0 else float(row),
        "sex": [None, "female", "male"][row % 3],
        "site": [None, "north", "south"][row % 3],
        "device": ["cart", None][row % 2],
        "labels": ["AFIB", "LVH", "NORM"][: row % 4],
        "text": ["sinus rhythm", "vorhofflimmern (a.b)", ""][row % 3],
        "quality": ["noise"] if row % 4 == 0 else [],
    }
    for row in range(60)
]
TABLE = pl.DataFrame(RECORDS, schema=METADATA_SCHEMA)


@pytest.mark.parametrize(("name", "value"), [("exclude_quality", frozenset({"nois"})), ("labels_any", "AFIB")])
def test_a_filter_that_would_let_the_wrong_studies_pass_is_refused(name, value):
    with pytest.raises(QueryError, match=f"filter {name}") as caught:
        Filter(**{name: value})
    assert caught.value.field == f"filter.{name}"


def passes(record: dict, f: Filter) -> bool:
    """The filter's words, one by one."""

    def one_of(name: str, allowed: frozenset[str] | None) -> bool:
        return allowed is None or record[name] in allowed

    at, age, labels = record["acquired_at"], record["age_years"], set(record["labels"])
    return (
        one_of("subject_id", f.subject_ids)
        and one_of("study_id", f.study_ids)
        and one_of("site", f.sites)
        and one_of("device", f.devices)
        and record["subject_id"] not in f.exclude_subject_ids
        and record["study_id"] not in f.exclude_study_ids
        and (f.acquired_from is None or (at is not None and at >= f.acquired_from))
        and (f.acquired_before is None or (at is not None and at < f.acquired_before))
        and (f.age_min_years is None or (age is not None and age >= f.age_min_years))
        and (f.age_max_years is None or (age is not None and age <= f.age_max_years))
        and (f.sex is None or record["sex"] == f.sex)
        and (not f.labels_any or bool(labels & f.labels_any))
        and labels >= f.labels_all
        and not labels & f.labels_none
        and (f.text_contains is None or f.text_contains.lower() in record["text"])
        and not set(record["quality"]) & f.exclude_quality
    )


def sets(*values: str) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(values))


TIMES = st.none() | st.integers(0, 60).map(lambda days: MOMENT + timedelta(days=days))
AGES = st.none() | st.integers(0, 60).map(float)
LABELS = sets("AFIB", "LVH", "NORM", "other")
STRATEGIES = {
    "subject_ids": st.none() | sets("p0", "p1", "p7", "p19", "nobody"),
    "exclude_subject_ids": sets("p0", "p1", "p7"),
    "study_ids": st.none() | sets("s1", "s2", "s33", "s59"),
    "exclude_study_ids": sets("s1", "s2", "s30"),
    "acquired_from": TIMES,
    "acquired_before": TIMES,
    "age_min_years": AGES,
    "age_max_years": AGES,
    "sex": st.sampled_from([None, "female", "male"]),
    "sites": st.none() | sets("north", "south", "west"),
    "devices": st.none() | sets("cart", "holter"),
    "labels_any": LABELS,
    "labels_all": LABELS,
    "labels_none": LABELS,
    "text_contains": st.sampled_from([None, "sinus", "SINUS", "(a.b)", "a.*b", ""]),
    "exclude_quality": sets("noise", "flat"),
}


def test_every_field_of_the_filter_is_exercised() -> None:
    assert set(STRATEGIES) == {item.name for item in fields(Filter)}


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(STRATEGIES)), st.just(None), max_size=4), st.data())
def test_filter_passes_what_its_words_say(chosen: dict, data: st.DataObject) -> None:
    where = Filter(**{name: data.draw(STRATEGIES[name], label=name) for name in chosen})
    rows = where.passing_rows(TABLE)
    expected = [record["row"] for record in RECORDS if passes(record, where)]
    assert (list(range(60)) if rows is None else rows.tolist()) == expected


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_condition_alone_removes_something(name: str) -> None:
    values = {"acquired_from": MOMENT + timedelta(days=9), "acquired_before": MOMENT + timedelta(days=9)}
    values |= {"age_min_years": 30.0, "age_max_years": 30.0, "sex": "male", "text_contains": "sinus"}
    by_prefix = {"label": "LVH", "exclude_q": "noise", "site": "north", "device": "cart"}
    word = next(
        (word for prefix, word in by_prefix.items() if name.startswith(prefix)), "s1" if "study" in name else "p1"
    )
    where = Filter(**{name: values.get(name, frozenset({word}))})
    rows = where.passing_rows(TABLE)
    assert rows is not None
    assert 0 < len(rows) < 60


def test_no_condition_is_none_and_zones_are_honoured() -> None:
    assert Filter().passing_rows(TABLE) is None
    berlin = timezone(timedelta(hours=2))
    at = (MOMENT + timedelta(days=20)).replace(tzinfo=UTC)
    one = Filter(acquired_from=at).passing_rows(TABLE)
    other = Filter(acquired_from=at.astimezone(berlin)).passing_rows(TABLE)
    assert one is not None
    assert other is not None
    assert one.tolist() == other.tolist()
    assert 20 in one
    assert 19 not in one


def vectors(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return normalise(np.random.default_rng(seed).standard_normal((count, dim)))


def test_exact_index_ranks_by_cosine_and_ties_by_row() -> None:
    index = ExactIndex(2, "f")
    index.upsert(np.array([7, 3, 5]), np.array([[1, 0], [0, 1], [1, 0]], np.float32))
    found = index.search(np.array([[1, 0]], np.float32), 5)
    assert found.rows.tolist() == [[5, 7, 3, -1, -1]]
    assert found.scores.tolist() == [[1, 1, 0, -np.inf, -np.inf]]
    assert (found.plan.engine, found.plan.exact, found.plan.rows_total, found.plan.rows_passing) == (
        "exact",
        True,
        3,
        3,
    )


def test_exact_index_replaces_removes_and_restricts() -> None:
    index, data = ExactIndex(8, "f"), vectors(20)
    index.upsert(np.arange(20), data)
    index.upsert(np.array([4, 4]), data[[5, 6]])
    assert len(index) == 20
    assert set(index.search(data[6:7], 2).rows[0]) == {4, 6}
    assert index.remove(np.array([4, 99])) == 1
    found = index.search(data[6:7], 3, rows=np.array([9, 4, 7, 9, 50]))
    assert sorted(found.rows[0].tolist()) == [-1, 7, 9]
    assert (found.plan.engine, found.plan.rows_passing) == ("exact_rows", 2)


@pytest.mark.parametrize("top_k", [0, -1, MAX_TOP_K + 1])
def test_top_k_out_of_range_is_refused(top_k: int) -> None:
    with pytest.raises(QueryError, match="top_k"):
        check_top_k(top_k)
    with pytest.raises(QueryError, match="top_k"):
        ExactIndex(8, "f").search(vectors(1), top_k)


@pytest.mark.parametrize(
    "bad", [np.ones((1, 8)), np.zeros((1, 8)), np.full((1, 8), np.nan), np.ones((1, 7)), np.ones(8), np.ones((1, 1, 8))]
)
def test_vectors_that_are_not_unit_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(QueryError):
        check_vectors(bad.astype(np.float32), 8)


def test_bad_rows_are_refused() -> None:
    for bad in (np.array([-1]), np.array([[1]])):
        with pytest.raises(QueryError):
            check_rows(bad)
    with pytest.raises(QueryError):
        ExactIndex(8, "f").upsert(np.array([1, 2]), vectors(3))
    assert check_rows(np.array([3, 1, 3])).tolist() == [1, 3]
