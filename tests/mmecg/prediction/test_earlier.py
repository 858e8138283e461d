"""The subject's earlier studies: strictly before, bounded, joined with the caller's, robust to deletions."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.errors import QueryError
from mmecg.prediction.earlier import find_earlier
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.query import PredictionQuery, time_flags, vitals_contradict
from mmecg.prediction.result import PredictionOptions
from mmecg.study import Study
from mmecg.vitals import Vitals

DIM = 8
START = datetime(2000, 1, 1)
LABELS = ("AFIB", "SR")


def study(number: int, **changes: object) -> Study:
    values: dict = {
        "study_id": f"s{number}",
        "subject_id": "anna",
        "acquired_at": START + timedelta(days=number),
        "labels": {"AFIB": 100.0} if number % 2 else {"SR": 0.0},
        "vitals": Vitals(age_years=50, sex="female"),
    }
    return Study(**(values | changes))


def vector(number: int) -> np.ndarray:
    return np.eye(DIM, dtype=np.float32)[number % DIM]


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with Corpus.create(tmp_path / "corpus", "f" * 64, dim=DIM) as made:
        made.upsert([study(i) for i in range(30)], [{"ecg": vector(i)} if i % 3 else {} for i in range(30)])
        made.upsert([study(99, subject_id="bert")], [{"ecg": vector(0)}])
        yield made


def query(**changes: object) -> PredictionQuery:
    values: dict = {"study": study(20), "options": PredictionOptions(max_history=4)}
    return PredictionQuery(**(values | changes))


def ids(found) -> list[str]:
    return [one.study_id for one in found.studies]


def test_the_latest_strictly_earlier_studies(corpus: Corpus) -> None:
    found = find_earlier(query(), corpus)
    assert ids(found) == ["s19", "s18", "s17", "s16"]
    assert (found.found, found.flags) == (20, ("history_truncated",))
    assert found.embeddings[1] is None, "it has no ECG"
    np.testing.assert_array_equal(found.embeddings[0], vector(19))
    priors = found.priors(KnownLabels(LABELS), START + timedelta(days=20))
    assert [prior.days_before for prior in priors] == [1, 2, 3, 4]
    assert [prior.known.tolist() for prior in priors[:2]] == [[1, 0], [0, 1]]


def test_as_of_moves_the_border_back_never_forward(corpus: Corpus) -> None:
    assert ids(find_earlier(query(as_of=START + timedelta(days=5)), corpus)) == ["s4", "s3", "s2", "s1"]
    after = find_earlier(query(as_of=START + timedelta(days=22)), corpus)
    assert ids(after) == ["s19", "s18", "s17", "s16"], "what was recorded after the study is no history of it"
    zoned = (START + timedelta(days=5)).replace(tzinfo=UTC)
    assert ids(find_earlier(query(as_of=zoned), corpus))[0] == "s4"


@pytest.mark.parametrize("days", [0, 1e-9, 30])
def test_a_study_of_the_same_time_or_later_never_enters(corpus: Corpus, days: float) -> None:
    late = study(50, acquired_at=START + timedelta(days=20 + days), ecg=synthetic_ecg())
    before = find_earlier(query(), corpus)
    given = find_earlier(query(extra_history=[late]), corpus)
    corpus.upsert([late], [{"ecg": vector(1)}])
    stored = find_earlier(query(), corpus)
    assert (given.refused, stored.refused) == (1, 0)
    for found, more in ((given, ("later_history",)), (stored, ())):
        assert (ids(found), found.found, found.flags, found.ecgs) == (ids(before), 20, (*before.flags, *more), ())


def test_studies_of_the_caller_join_and_only_those_used_are_encoded(corpus: Corpus) -> None:
    added = [study(i + 100, acquired_at=START + timedelta(days=19.5, hours=i), ecg=synthetic_ecg()) for i in range(3)]
    old = study(200, acquired_at=START - timedelta(days=1), ecg=synthetic_ecg())
    untimed = study(201, acquired_at=None, ecg=synthetic_ecg())
    found = find_earlier(query(extra_history=[*added, old, untimed]), corpus)
    assert ids(found) == ["s102", "s101", "s100", "s19"]
    assert found.found == 24
    assert (found.flags, found.refused) == (("history_truncated", "undated_history"), 1)
    assert len(found.ecgs) == 3
    filled = found.with_embeddings([vector(5), vector(6), vector(7)])
    np.testing.assert_array_equal(filled.embeddings[0], vector(5))
    np.testing.assert_array_equal(filled.embeddings[3], vector(19))


def test_a_study_of_the_caller_takes_the_place_of_the_corpus_one(corpus: Corpus) -> None:
    found = find_earlier(query(extra_history=[replace(study(19), labels={"SR": 100.0})]), corpus)
    assert ids(found) == ["s19", "s18", "s17", "s16"]
    assert found.found == 20
    assert found.studies[0].labels == {"SR": 100.0}


def test_history_of_ten_thousand_is_bounded_work(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [study(i, study_id=f"m{i}", subject_id="long", vitals=Vitals()) for i in range(10_000)]
    corpus.upsert(many, [{}] * len(many))
    asked: list[int] = []
    get = corpus.get
    monkeypatch.setattr(corpus, "get", lambda wanted, **options: asked.append(len(wanted)) or get(wanted, **options))
    found = find_earlier(query(subject_id="long", study=study(9_000, study_id="m9000", subject_id="long")), corpus)
    assert ids(found) == ["m8999", "m8998", "m8997", "m8996"]
    assert (found.found, found.flags, asked) == (9_000, ("history_truncated",), [4])


def test_a_study_deleted_meanwhile_is_left_out(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = corpus.rows

    def delete_then_ask(wanted):
        if "s19" in wanted and len(wanted) > 1:
            corpus.delete("s19")
        return rows(wanted)

    monkeypatch.setattr(corpus, "rows", delete_then_ask)
    found = find_earlier(query(), corpus)
    assert found.embeddings[0] is None
    np.testing.assert_array_equal(found.embeddings[2], vector(17))


def test_flags(corpus: Corpus) -> None:
    bare = synthetic_ecg()
    assert find_earlier(query(study=bare), corpus).flags == ("no_subject",)
    assert find_earlier(query(study=study(20, subject_id="nobody")), corpus).flags == ("unknown_subject",)
    assert find_earlier(query(study=study(0)), corpus).flags == ("no_history",)
    assert find_earlier(query(), None).flags == ("no_history",)
    assert find_earlier(query(study=study(20, acquired_at=None)), corpus).studies == ()
    assert find_earlier(query(options=PredictionOptions(use_history=False)), corpus).studies == ()
    assert find_earlier(query(as_of=datetime(1900, 1, 1)), corpus).flags == ("no_history", "before_birth")
    assert find_earlier(query(as_of=datetime(1960, 1, 1)), corpus).flags == ("no_history",)


def test_studies_of_the_caller_that_are_left_out_are_counted(corpus: Corpus) -> None:
    late, untimed = study(300, acquired_at=START + timedelta(days=99)), study(301, acquired_at=None)
    found = find_earlier(query(extra_history=[late, untimed, untimed, study(20)]), corpus)
    assert found.refused == 2, "the study itself, and one that is sent twice, are not counted"
    assert set(found.flags) == {"history_truncated", "undated_history", "later_history"}
    assert find_earlier(query(study=study(20, acquired_at=None), extra_history=[late, untimed]), corpus).refused == 2


def test_a_study_of_somebody_else_is_refused(corpus: Corpus) -> None:
    with pytest.raises(QueryError, match="another subject") as caught:
        find_earlier(query(extra_history=[study(1, subject_id="bert")]), corpus)
    assert caught.value.field == "extra_history"
    assert "bert" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"as_of": datetime.now(UTC) + timedelta(days=2)}, ["as_of_in_future"]),
        ({"as_of": datetime(1940, 1, 1)}, ["before_birth"]),
        ({"as_of": datetime(1951, 1, 1)}, []),
        ({"study": study(1, acquired_at=None)}, ["no_as_of"]),
        ({"study": Ecg.from_array(np.ones((12, 200)), sampling_rate_hz=100)}, ["no_as_of"]),
    ],
)
def test_flags_of_the_time(changes: dict, flags: list[str]) -> None:
    assert time_flags(query(**changes)) == flags


@pytest.mark.parametrize(
    ("now", "contradict"),
    [
        (Vitals(), False),
        (Vitals(age_years=60, sex="female"), False),
        (Vitals(age_years=55, sex="female"), True),
        (Vitals(age_years=60, sex="male"), True),
        (Vitals(height_cm=180, weight_kg=80), False),
        (Vitals(height_cm=60, weight_kg=80), True),
    ],
)
def test_vitals_that_contradict(now: Vitals, contradict: bool) -> None:
    earlier = [study(0), study(1, vitals=Vitals())]
    assert vitals_contradict(now, START + timedelta(days=3652), earlier) is contradict


def test_vitals_hold_when_the_study_was_acquired_and_not_at_as_of(corpus: Corpus) -> None:
    asked = query(as_of=START + timedelta(days=365 * 30))
    earlier = find_earlier(asked, corpus).studies
    assert earlier
    assert not vitals_contradict(asked.known_vitals, asked.aged_at, earlier)
    assert query(study=Ecg.from_array(np.ones((12, 200)), sampling_rate_hz=100), as_of=START).aged_at == START


def test_a_study_is_not_predicted_as_that_of_another_subject() -> None:
    with pytest.raises(QueryError, match="not the subject of the study") as caught:
        query(subject_id="bert")
    assert caught.value.field == "subject_id"
    assert "anna" not in str(caught.value)
