from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.errors import InvalidInputError
from mmecg.study import ClinicalNote, History, Study, check_id

NOW = datetime(2000, 1, 1, 12)


@pytest.mark.parametrize("value", ["", " a", "a ", "a\nb", "x" * 129, "a\x00"])
def test_unusable_ids(value: str) -> None:
    with pytest.raises(InvalidInputError, match="printable") as caught:
        Study(study_id="a", subject_id=value)
    assert caught.value.field == "subject_id"
    with pytest.raises(InvalidInputError):
        check_id(value, "study_id")


@pytest.mark.parametrize("value", [None, 7, 1.5, b"a"])
def test_ids_that_are_no_text(value: object) -> None:
    with pytest.raises(InvalidInputError, match="expected text of 1 to 128") as caught:
        Study(study_id=value, subject_id="s")  # type: ignore[arg-type]
    assert caught.value.field == "study_id"


def test_times_with_and_without_a_zone_compare_as_utc() -> None:
    east = timezone(timedelta(hours=2))
    note = ClinicalNote("a", written_at=(NOW + timedelta(hours=2)).replace(tzinfo=east))
    assert note.is_known_before(NOW)
    assert not note.is_known_before(NOW - timedelta(seconds=1))
    assert ClinicalNote("a", written_at=NOW).is_known_before(NOW.replace(tzinfo=UTC))
    studies = [
        Study(study_id="late", subject_id="s", acquired_at=NOW.replace(tzinfo=UTC)),
        Study(study_id="second", subject_id="s", acquired_at=NOW - timedelta(hours=1)),
        Study(study_id="first", subject_id="s", acquired_at=NOW.replace(tzinfo=east)),
    ]
    history = History.build(studies, subject_id="s", as_of=NOW)
    assert [study.study_id for study in history.studies] == ["first", "second"]


def test_notes_are_marked_by_their_time() -> None:
    before, same, after, unknown = (
        ClinicalNote("a", written_at=NOW - timedelta(hours=1)),
        ClinicalNote("b", written_at=NOW),
        ClinicalNote("c", written_at=NOW + timedelta(seconds=1)),
        ClinicalNote("d"),
    )
    study = Study(study_id="1", subject_id="s", acquired_at=NOW, notes=(before, same, after, unknown))
    assert study.notes_before_ecg() == (before, same)
    assert study.notes_after_ecg() == (after, unknown)
    undated = Study(study_id="1", subject_id="s", notes=(before,))
    assert undated.notes_before_ecg() == ()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(-5, 5)), max_size=12))
def test_a_future_study_never_enters_a_history(items: list[tuple[str, int | None]]) -> None:
    studies = [
        Study(
            study_id=str(number),
            subject_id=subject,
            acquired_at=None if hours is None else NOW + timedelta(hours=hours),
        )
        for number, (subject, hours) in enumerate(items)
    ]
    history = History.build(studies, subject_id="a", as_of=NOW)
    times = [study.acquired_at for study in history.studies]
    assert all(time is not None and time < NOW for time in times)
    assert times == sorted(times)  # type: ignore[type-var]
    assert {study.subject_id for study in history.studies} <= {"a"}
    assert len(history.studies) == sum(subject == "a" and hours is not None and hours < 0 for subject, hours in items)
