from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.datasets.ptb_xl import (
    SUPERCLASSES,
    label_matrix,
    read_ptb_xl,
    read_ptb_xl_signals,
    read_ptb_xl_table,
    read_scp_statements,
    superclass_matrix,
)
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.datasets.wfdb import read_wfdb
from mmecg.errors import InvalidInputError

HEADER = (
    "ecg_id,patient_id,age,sex,height,weight,site,device,recording_date,report,scp_codes,baseline_drift,static_noise,"
    "validated_by_human,strat_fold,filename_lr,filename_hr"
)
ROWS = [
    "1,15709.0,56.0,1,,63.0,0.0,CS-12   E,1984-11-09 09:17:34,sinusrhythmus mÖglich 4.46 unbestÄti,"
    "\"{'NORM': 100.0, 'SR': 0.0}\",, I-V1  ,True,1,records100/00000/00001_lr,",
    '2,13243.0,300.0,0,6.0,70.0,1.0,AT-6,1985-11-09 09:17:34,"sinus rhythm. Edit: LVH 100, (IMI 50)",'
    "\"{'IMI': 35.0, 'LVH': 100.0}\",,,False,2,records100/00000/00002_lr,",
    "3,13243.0,,0,180.0,,,,1985-11-10 09:17:34,,{},,,True,2,records100/00000/00003_lr,",
]
STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
IMI,inferior myocardial infarction,1.0,,,MI,IMI
LVH,left ventricular hypertrophy,1.0,,,HYP,LVH
SR,sinus rhythm,,,1.0,,
"""


@pytest.fixture
def folder(tmp_path: Path, wrsamp: Callable[..., None]) -> Path:
    (tmp_path / "ptbxl_database.csv").write_text("\n".join([HEADER, *ROWS]) + "\n", encoding="utf-8")
    (tmp_path / "scp_statements.csv").write_text(STATEMENTS, encoding="utf-8")
    records = tmp_path / "records100" / "00000"
    records.mkdir(parents=True)
    for number in (1, 2):
        ecg = synthetic_ecg(seed=number)
        wrsamp(
            f"0000{number}_lr",
            fs=100,
            units=["mV"] * 12,
            sig_name=["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"],
            d_signal=np.rint(ecg.signal.T * 1000).astype(np.int64),
            fmt=["16"] * 12,
            adc_gain=[1000.0] * 12,
            baseline=[0] * 12,
            write_dir=str(records),
        )
    return tmp_path


def test_table_policies(folder: Path) -> None:
    table = read_ptb_xl_table(folder)
    assert table["study_id"].to_list() == ["1", "2", "3"]
    assert table["subject_id"].to_list() == ["15709", "13243", "13243"]
    assert table["age_years"].to_list() == [56.0, 90.0, None]
    assert table["age_note"].to_list() == [None, "above 89", None]
    assert table["sex"].to_list() == ["female", "male", "male"]
    assert table["height_cm"].to_list() == [None, None, 180.0]
    assert table["implausible"].to_list() == [None, "height_cm", None]
    assert table["static_noise"].to_list() == ["I-V1", None, None]
    assert table["report_text"].to_list() == ["sinusrhythmus möglich", "sinus rhythm.", ""]
    assert table["device"][0] == "CS-12 E"


def test_labels(folder: Path) -> None:
    table, statements = read_ptb_xl_table(folder), read_scp_statements(folder)
    assert table["labels"][0].to_list() == [
        {"label": "NORM", "likelihood": 100.0},
        {"label": "SR", "likelihood": 0.0},
    ]
    np.testing.assert_array_equal(label_matrix(table, ["SR", "IMI"]), [[True, False], [False, True], [False, False]])
    by_class = dict(zip(SUPERCLASSES, superclass_matrix(table, statements).T.tolist(), strict=True))
    assert by_class["MI"] == [False, True, False]
    assert by_class["NORM"] == [True, False, False]
    assert by_class["CD"] == [False, False, False]


def test_studies_and_skipped_records(folder: Path) -> None:
    studies = read_ptb_xl(folder)
    first, second = list(studies)
    assert first.labels == {"NORM": 100.0, "SR": 0.0}
    assert first.vitals.weight_kg == 63.0
    assert first.vitals.height_cm is None
    assert first.attributes["strat_fold"] == "1"
    assert second.report is not None
    assert "IMI" in second.report.raw
    assert "imi" not in second.report.text
    assert studies.report.read == 2
    assert not studies.report.ok
    failure = studies.report.failures.row(0, named=True)
    assert failure["record"] == "records100/00000/00003_lr"
    assert "cannot be read" in failure["reason"]
    assert [study.study_id for study in read_ptb_xl(folder, folds=[1])] == ["1"]


def test_signals_equal_the_studies(folder: Path) -> None:
    table = read_ptb_xl_table(folder)
    loaded = read_ptb_xl_signals(folder, table)
    assert loaded.signals.dtype == np.int16
    assert loaded.table["study_id"].to_list() == ["1", "2"]
    for signal, study in zip(loaded.signals, read_ptb_xl(folder), strict=True):
        assert study.ecg is not None
        np.testing.assert_allclose(signal / 1000, study.ecg.signal, atol=1e-6)


BAD_CELLS = {
    "1,15709.0,56.0": ("1,15709.0,150", "age_years is outside"),
    "1,15709.0": ("1,", "subject_id is missing"),
    "sinusrhythmus mÖglich 4.46 unbestÄti": ("rhythm " * 4300, "characters, expected at most"),
    "sinusrhythmus": ("sinus\x01rhythmus", "control"),
    "{'NORM': 100.0, 'SR': 0.0}": ("[1, 2]", "scp_codes is not a mapping"),
    "'NORM': 100.0": ("'NORM': None", "scp_codes is not a mapping"),
    "'SR': 0.0": ("'SR': 1e999", "scp_codes is not a mapping"),
}


@pytest.mark.parametrize("cell", BAD_CELLS)
def test_a_row_that_is_no_study_is_skipped_alone(folder: Path, cell: str) -> None:
    bad, reason = BAD_CELLS[cell]
    table = folder / "ptbxl_database.csv"
    schema = read_ptb_xl_table(folder).schema
    table.write_text(table.read_text("utf-8").replace(cell, bad), "utf-8")
    assert read_ptb_xl_table(folder).schema == schema
    studies = read_ptb_xl(folder)
    assert [study.study_id for study in studies] == ["2"]
    loaded = read_ptb_xl_signals(folder, read_ptb_xl_table(folder))
    assert loaded.table["study_id"].to_list() == ["2"]
    assert len(loaded.signals) == 1
    for report in (studies.report, loaded.report):
        assert report.read == 1
        (record, why), _ = report.failures.rows()
        assert record == "1"
        assert reason in why
        assert "rhythm" not in why
    assert label_matrix(read_ptb_xl_table(folder), ["IMI"])[1]


@pytest.mark.parametrize(
    ("cell", "bad", "name"),
    [
        ("56.0,1", "old,1", "age_years"),
        ("56.0,1", "nan,1", "age_years"),
        ("63.0", "heavy", "weight_kg"),
        ("1984-11-09 09:17:34", "yesterday", "acquired_at"),
    ],
)
def test_cells_that_cannot_be_read_are_missing(folder: Path, cell: str, bad: str, name: str) -> None:
    table = folder / "ptbxl_database.csv"
    table.write_text(table.read_text("utf-8").replace(cell, bad, 1), "utf-8")
    assert read_ptb_xl_table(folder)[name][0] is None
    first, _ = read_ptb_xl(folder)
    assert first.study_id == "1"
    assert first.attributes["implausible"] == name


def test_wrong_folder_and_rate(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_ptb_xl_table(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="expected 100 or 500"):
        read_ptb_xl(folder, sampling_rate_hz=250)
    (folder / "ptbxl_database.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInputError, match="has no column ecg_id"):
        read_ptb_xl_table(folder)


def test_record_outside_the_folder_is_skipped(folder: Path) -> None:
    table = read_ptb_xl_table(folder).head(1).with_columns(pl.lit("../outside/1").alias("filename_lr"))
    loaded = read_ptb_xl_signals(folder, table)
    assert len(loaded.signals) == 0
    assert "outside the folder" in loaded.report.failures["reason"][0]


@pytest.mark.data
def test_no_gold_code_survives_cleaning(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("ptbxl")
    table, codes = read_ptb_xl_table(folder), set(read_scp_statements(folder)["label"])
    leaking = table.filter(pl.col("report_raw").str.contains("(?i)edit:"))
    assert leaking.height >= 400
    assert not table["report_text"].str.contains("edit:").any()
    for raw, text in leaking.select("report_raw", "report_text").iter_rows():
        before, tail = re.split("(?i)edit:", raw, maxsplit=1)
        written = set(re.findall(r"\w+", before.lower()))
        leaked = {code.lower() for code in codes if re.search(rf"\b{code}\b", tail)} & set(re.findall(r"\w+", text))
        # A reader may write "lvh" in the sentence itself; only what stands nowhere else is a leak.
        assert leaked <= written
    boilerplate = r"unbest[äa]|\b4\.4|trace only|unconfirmed"
    assert not table["report_text"].str.replace_all(r"unbest\.", "").str.contains(boilerplate).any()
    assert table["report_text"].str.contains("[ÄÖÜ]").sum() == 0


@pytest.mark.data
def test_500_hz_twins_resample_to_the_100_hz_record(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("ptbxl_500hz")
    table = read_ptb_xl_table(folder).head(8)
    for slow, fast in table.select("filename_lr", "filename_hr").iter_rows():
        low, high = read_wfdb(folder / slow), read_wfdb(folder / fast).resample(100)
        inner = slice(50, -50)
        error = np.sqrt(np.mean((low.signal - high.signal)[:, inner] ** 2))
        # PTB-XL's own 100 Hz version is a tenth of a sample (1 ms) early in every record, which alone makes 8 %.
        assert error < 0.15 * low.signal[:, inner].std()
