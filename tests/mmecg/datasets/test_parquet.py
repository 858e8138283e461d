from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmecg.datasets import parquet
from mmecg.datasets.parquet import (
    SCHEMA,
    ParquetStudies,
    count_studies,
    decode_counts,
    encode_counts,
    read_studies,
    write_studies,
)
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.errors import ArtifactError, InvalidInputError, SignalError
from mmecg.report import Report
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals


def full_study(number: int = 0) -> Study:
    signal = np.rint(synthetic_ecg(seed=number).signal * 1000) / 1000
    return Study(
        study_id=f"study-{number}",
        subject_id="subject",
        acquired_at=datetime(1990, 1, 2, 3, 4, 5),
        ecg=Ecg.from_array(signal, sampling_rate_hz=100),
        report=Report("Sinusrhythmus  Edit: NORM", "sinusrhythmus"),
        notes=(ClinicalNote("chest pain", "triage", datetime(1990, 1, 2)), ClinicalNote("later")),
        vitals=Vitals(age_years=50, sex="female", temperature_c=36.6),
        labels={"NORM": 100.0, "SR": 0.0},
        site="1",
        device="AT-6",
        attributes={"strat_fold": "9"},
    )


def assert_same(got: Study, expected: Study, *, atol: float = 0.0) -> None:
    assert replace(got, ecg=None) == replace(expected, ecg=None)
    if expected.ecg is None:
        assert got.ecg is None
        return
    assert got.ecg is not None
    assert got.ecg.sampling_rate_hz == expected.ecg.sampling_rate_hz
    np.testing.assert_array_equal(got.ecg.lead_mask, expected.ecg.lead_mask)
    np.testing.assert_allclose(got.ecg.signal, expected.ecg.signal, rtol=0, atol=atol)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "studies.parquet"
    bare = Study(study_id="bare", subject_id="other")
    limb = replace(full_study(2), ecg=full_study(2).ecg.select_leads(["II", "V5"]))  # type: ignore[union-attr]
    studies = [full_study(), bare, limb]
    assert write_studies(iter(studies), path) == 3
    assert count_studies(path) == 3
    for got, expected in zip(read_studies(path), studies, strict=True):
        assert_same(got, expected)
    assert [study.ecg for study in read_studies(path, with_signal=False)] == [None] * 3
    assert dict(pl.read_parquet_schema(path)) == SCHEMA


def test_signal_off_the_grid_is_rounded_finely(tmp_path: Path) -> None:
    study = replace(full_study(), ecg=synthetic_ecg(seed=5))
    write_studies([study], tmp_path / "a.parquet")
    largest = float(np.abs(study.ecg.signal).max())  # type: ignore[union-attr]
    assert_same(next(read_studies(tmp_path / "a.parquet")), study, atol=largest / 32767)


@pytest.mark.parametrize("gain", [40.0, 200.0, 807.0, 1000.0])
def test_whole_gains_are_exact(tmp_path: Path, gain: float) -> None:
    signal = (np.rint(synthetic_ecg().signal * gain) / gain).astype(np.float32)
    study = replace(full_study(), ecg=Ecg.from_array(signal, sampling_rate_hz=100))
    write_studies([study], tmp_path / "a.parquet")
    assert_same(next(read_studies(tmp_path / "a.parquet")), study)


def test_many_batches_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_STUDIES", 3)
    studies = [Study(study_id=str(number), subject_id="s") for number in range(10)]
    write_studies(studies, tmp_path / "a.parquet")
    assert [study.study_id for study in read_studies(tmp_path / "a.parquet")] == [str(number) for number in range(10)]


def test_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_studies([full_study()], path)
    before = path.read_bytes()

    def broken() -> Iterator[Study]:
        yield full_study()
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write_studies(broken(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_foreign_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"study_id": ["a"], "subject_id": ["b"], "report_raw": ["Sinus  rhythm"]}).write_parquet(path)
    (study,) = read_studies(path)
    assert study.report == Report("Sinus  rhythm", "Sinus rhythm")
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(ArtifactError, match="no column study_id"):
        list(read_studies(path))
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(read_studies(path))
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(read_studies(tmp_path / "missing.parquet"))


LONG = "word " * 20_000
NOTE = {"text": "chest pain", "kind": "triage", "written_at": None}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("study_id", None, "study_id is missing"),
        ("subject_id", None, "subject_id is missing"),
        ("age_years", 500.0, "age_years is outside"),
        ("report_text", LONG, "has 100000 characters"),
        ("report_raw", LONG, "has 100000 characters"),
        ("notes", [NOTE | {"text": LONG}], "has 100000 characters"),
        ("notes", [NOTE | {"text": None}], "a note has no text"),
        ("notes", [None], "a note has no text"),
        ("site", "a\x00b", "control"),
        ("device", LONG, "has 100000 characters"),
        ("labels", [{"label": "SR", "likelihood": None}], "labels has an entry without"),
        ("labels", [{"label": None, "likelihood": 1.0}], "labels has an entry without"),
        ("labels", [{"label": "SR", "likelihood": float("nan")}], "not 0 to 100"),
        ("attributes", [{"name": "fold", "value": None}], "attributes has an entry without"),
        ("counts_per_mv", [None] * 12, "gain that is not above zero"),
        ("counts_per_mv", [0.0] * 12, "gain that is not above zero"),
        ("leads", [None] * 12, "lead without name"),
        ("samples", None, "lacks its leads"),
    ],
)
def test_a_row_that_is_no_study_is_skipped_alone(tmp_path: Path, column: str, value: object, reason: str) -> None:
    path = tmp_path / "a.parquet"
    write_studies([full_study(number) for number in range(3)], path)
    rows = pl.read_parquet(path).to_dicts()
    rows[1][column] = value
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
    studies = ParquetStudies(path)
    assert len(studies) == 3
    assert [study.study_id for study in studies] == ["study-0", "study-2"]
    assert studies.report.read == 2
    ((record, why),) = studies.report.failures.rows()
    assert record == ("row 2" if column == "study_id" else "study-1")
    assert reason in why
    assert "word" not in why.replace("words", "")
    with pytest.raises(InvalidInputError):
        list(read_studies(path))


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_studies([full_study(number) for number in range(3)], path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(read_studies(path))


@given(arrays(np.int16, st.tuples(st.integers(1, 4), st.integers(1, 50))))
def test_counts_round_trip(counts: np.ndarray) -> None:
    leads, samples = counts.shape
    np.testing.assert_array_equal(decode_counts(encode_counts(counts), leads=leads, samples=samples), counts)


def test_counts_of_another_length() -> None:
    with pytest.raises(SignalError, match="expected 8"):
        decode_counts(b"123", leads=2, samples=2)


@pytest.mark.data
def test_real_records_are_compact(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    from mmecg.datasets.ptb_xl import read_ptb_xl

    studies = list(read_ptb_xl(shared_data("ptbxl_500hz")))
    assert len(studies) >= 20
    write_studies(studies, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 15_000 * len(studies)
    for got, expected in zip(read_studies(tmp_path / "a.parquet"), studies, strict=True):
        assert_same(got, expected)
