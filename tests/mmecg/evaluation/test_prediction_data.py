from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.bundle import load_bundle
from mmecg.evaluation.prediction_data import PredictionData, history_of, priors_of, read_prediction_data

START = datetime(1990, 1, 1)
DAYS = (10, 0, 5, 5, None, 0, 20.25)
SUBJECTS = ("a", "a", "a", "a", "a", "b", "b")


@pytest.fixture
def data() -> PredictionData:
    count = len(DAYS)
    table = pl.DataFrame(
        {
            "study_id": [str(row) for row in range(count)],
            "subject_id": SUBJECTS,
            "acquired_at": [None if day is None else START + timedelta(days=day) for day in DAYS],
            "strat_fold": [1] * count,
        }
    )
    gold = np.arange(count * 2).reshape(count, 2) % 3 == 0
    values = np.eye(count, 8, dtype=np.float32)
    return PredictionData(table, ("AFIB", "superclass/MI"), gold, values, values)


def test_earlier_is_strict_and_of_the_same_patient(data: PredictionData) -> None:
    assert priors_of(data) == [[1, 2, 3], [], [1], [1], [], [], [5]]


def test_a_later_study_or_another_patient_never_enters(data: PredictionData) -> None:
    for row, earlier in enumerate(priors_of(data)):
        for other in earlier:
            assert SUBJECTS[other] == SUBJECTS[row]
            assert data.days[other] < data.days[row]


def test_histories_are_latest_first(data: PredictionData) -> None:
    histories = history_of(data, priors_of(data))
    assert [prior.study_id for prior in histories[0]] == ["3", "2", "1"]
    assert [prior.days_before for prior in histories[0]] == [5, 5, 10]
    assert [prior.days_before for prior in histories[6]] == [20.25]
    np.testing.assert_array_equal(histories[6][0].known, data.gold[5].astype(np.float32))
    np.testing.assert_array_equal(histories[6][0].embedding, data.embedding[5])
    assert [len(history) for history in history_of(data, priors_of(data), limit=2)] == [2, 0, 1, 1, 0, 0, 1]


def test_what_is_known_can_be_hidden(data: PredictionData) -> None:
    earlier = priors_of(data)
    hidden = history_of(data, earlier, labels=False)[6][0]
    assert np.isnan(hidden.known).all()
    assert hidden.source == "ecg"
    assert hidden.embedding is not None
    assert history_of(data, earlier, embeddings=False)[6][0].embedding is None


def test_a_control_takes_the_history_of_another_with_its_gaps(data: PredictionData) -> None:
    got = history_of(data, priors_of(data), rows=np.array([6, 0]), owners=np.array([0, 6]))
    assert [prior.study_id for prior in got[0]] == ["3", "2", "1"]
    assert [prior.days_before for prior in got[0]] == [5, 5, 10]
    assert [prior.study_id for prior in got[1]] == ["5"]


def test_rows_can_be_taken(data: PredictionData) -> None:
    some = data.take(data.days - data.days[1] > 4)
    assert some.study_ids.tolist() == ["0", "2", "3", "6"]
    np.testing.assert_array_equal(some.gold, data.gold[[0, 2, 3, 6]])
    assert data.take(np.array([6, 1])).study_ids.tolist() == ["6", "1"]


def test_folds_are_read_and_encoded_once(toy_folder: Path, encoders: dict, tmp_path: Path) -> None:
    bundle = dataclasses.replace(load_bundle(), encoder=encoders["bundle"])
    seen: list[str] = []
    progress = lambda what, done, total: seen.append(what)  # noqa: E731
    read = read_prediction_data(toy_folder, bundle, [1, 2], progress=progress, cache=tmp_path)
    assert set(read.folds.tolist()) == {1, 2}
    assert read.labels[-5:] == tuple(f"superclass/{name}" for name in ("NORM", "MI", "STTC", "CD", "HYP"))
    np.testing.assert_array_equal(read.gold[:, read.labels.index("IMI")], read.gold[:, -4])
    assert seen
    seen.clear()
    again = read_prediction_data(toy_folder, bundle, [2, 1], progress=progress, cache=tmp_path)
    assert not seen
    np.testing.assert_array_equal(again.embedding, read.embedding)
    np.testing.assert_array_equal(again.features, read.features)
    assert again.study_ids.tolist() == read.study_ids.tolist()
