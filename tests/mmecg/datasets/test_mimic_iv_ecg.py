from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from mmecg.cli.inputs import open_studies
from mmecg.datasets.mimic_iv_ecg import read_mimic_iv_ecg, read_mimic_iv_ecg_table
from mmecg.datasets.mimic_iv_ed import ED_VITALS, note_of_row, read_mimic_iv_ed, vitals_of_row
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS
from mmecg.quality import assess_quality

ORDER = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
REPORTS = ",".join(f"report_{number}" for number in range(18))
MEASURED = "rr_interval,p_onset,p_end,qrs_onset,qrs_end,t_end,p_axis,qrs_axis,t_axis"


@pytest.fixture
def folder(tmp_path: Path, wrsamp: Callable[..., None]) -> Path:
    records, machine = [], []
    for number, (rr, first) in enumerate([("800", "Sinus rhythm"), ("29999", "Atrial fibrillation"), ("0", "")]):
        study = 40000000 + number
        path = f"files/p1000/p10000032/s{study}/{study}"
        records.append(f"10000032,{study},{study},2180-07-2{number} 08:44:00,{path}")
        lines = [first, "Normal ECG" if number == 0 else "", *[""] * 16]
        machine.append(
            f"10000032,{study},6848296,2180-07-2{number} 08:44:00,{','.join(lines)},{rr},40,{'29999,' * 6}60"
        )
        if number < 2:
            target = (tmp_path / path).parent
            target.mkdir(parents=True)
            signal = synthetic_ecg(sampling_rate_hz=500.0, seed=number).signal
            wrsamp(
                str(study),
                fs=500,
                units=["mV"] * 12,
                sig_name=list(ORDER),
                d_signal=np.rint(signal[[LEADS.index(lead) for lead in ORDER]].T * 200).astype(np.int64),
                fmt=["16"] * 12,
                adc_gain=[200.0] * 12,
                baseline=[0] * 12,
                write_dir=str(target),
            )
    (tmp_path / "record_list.csv").write_text(
        "\n".join(["subject_id,study_id,file_name,ecg_time,path", *records]) + "\n"
    )
    header = f"subject_id,study_id,cart_id,ecg_time,{REPORTS},{MEASURED}"
    (tmp_path / "machine_measurements.csv").write_text("\n".join([header, *machine]) + "\n")
    (tmp_path / "patients.csv").write_text("subject_id,gender,anchor_age,anchor_year\n10000032,F,52,2179\n")
    ed = tmp_path / "ed"
    ed.mkdir()
    vitals = "temperature,heartrate,resprate,o2sat,sbp,dbp"
    (ed / "edstays.csv").write_text(
        "subject_id,stay_id,intime\n10000032,1,2180-07-20 07:00:00\n10000032,2,2180-07-21 10:00:00\n"
    )
    (ed / "triage.csv").write_text(
        f"subject_id,stay_id,{vitals},chiefcomplaint\n10000032,1,98.6,90,18,97,120,80,Chest pain\n"
        "10000032,2,36.5,110,uncertain,970,80,120,Palpitations\n"
    )
    (ed / "vitalsign.csv").write_text(
        f"subject_id,stay_id,charttime,{vitals}\n10000032,1,2180-07-20 08:30:00,,88,,99,,\n"
    )
    return tmp_path


def test_table(folder: Path) -> None:
    table = read_mimic_iv_ecg_table(folder, patients=folder / "patients.csv")
    assert table["report_raw"].to_list() == ["Sinus rhythm\nNormal ECG", "Atrial fibrillation", None]
    assert table["heart_rate_bpm"].to_list() == [75.0, None, None]
    assert table["qrs_onset"].to_list() == [None, None, None]
    assert table["t_axis"].to_list() == [60.0, 60.0, 60.0]
    assert table["age_years"].to_list() == [53.0, 53.0, 53.0]
    assert table["sex"].to_list() == ["female"] * 3


def test_studies_with_their_lead_order(folder: Path) -> None:
    studies = read_mimic_iv_ecg(folder)
    first, second = list(studies)
    assert first.ecg is not None
    expected = np.rint(synthetic_ecg(sampling_rate_hz=500.0, seed=0).signal * 200) / 200
    np.testing.assert_allclose(first.ecg.signal, expected, atol=1e-6)
    assert not {"lead_swap", "einthoven_mismatch"} & {finding.kind for finding in assess_quality(first.ecg)}
    assert first.report is not None
    assert first.report.text == "Sinus rhythm Normal ECG"
    assert first.vitals.heart_rate_bpm == 75.0
    assert second.vitals.is_empty()
    assert "rr_interval" not in second.attributes
    assert studies.report.failures.height == 1


@pytest.mark.parametrize(
    ("name", "cell", "bad", "reason"),
    [
        ("record_list", "10000032,40000000", ",40000000", "subject_id is missing"),
        ("machine_measurements", "Sinus rhythm", "rhythm " * 4300, "characters, expected at most"),
        ("machine_measurements", "Sinus rhythm", "Sinus\x01rhythm", "control"),
    ],
)
def test_a_row_that_is_no_study_is_skipped_alone(folder: Path, name: str, cell: str, bad: str, reason: str) -> None:
    table = folder / f"{name}.csv"
    table.write_text(table.read_text().replace(cell, bad))
    studies = read_mimic_iv_ecg(folder)
    assert [study.study_id for study in studies] == ["40000001"]
    assert studies.report.read == 1
    (record, why), _ = studies.report.failures.rows()
    assert record == "40000000"
    assert reason in why
    assert "rhythm" not in why


def test_cells_that_cannot_be_read_are_missing(folder: Path) -> None:
    for name, cell, bad in (("record_list", "2180-07-20 08:44:00", "then"), ("patients", ",52,", ",old,")):
        table = folder / f"{name}.csv"
        table.write_text(table.read_text().replace(cell, bad))
    first, _ = read_mimic_iv_ecg(folder, patients=folder / "patients.csv")
    assert first.acquired_at is None
    assert first.vitals.age_years is None
    assert first.vitals.sex == "female"


def test_a_study_measured_twice_is_one_study(folder: Path) -> None:
    table = folder / "machine_measurements.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows, rows[0].replace("Sinus", "Other")]) + "\n")
    assert read_mimic_iv_ecg_table(folder)["report_raw"][0] == "Sinus rhythm\nNormal ECG"
    assert [study.study_id for study in read_mimic_iv_ecg(folder)] == ["40000000", "40000001"]


def test_packed_tables_are_recognised(folder: Path) -> None:
    for name in ("record_list", "machine_measurements"):
        table = folder / f"{name}.csv"
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    assert {study.subject_id for study in open_studies(folder)} == {"10000032"}


def test_emergency_vitals_and_notes(folder: Path) -> None:
    emergency = read_mimic_iv_ed(folder / "ed")
    first, second = list(read_mimic_iv_ecg(folder, patients=folder / "patients.csv", emergency=emergency))
    assert first.vitals.spo2_percent == 99.0  # the nearest measurement, 14 minutes before
    assert first.vitals.heart_rate_bpm == 75.0  # the ECG's own
    assert [note.text for note in first.notes_before_ecg()] == ["Chest pain"]
    assert second.vitals.heart_rate_bpm == 110.0
    assert [note.text for note in second.notes_after_ecg()] == ["Palpitations"]
    assert second.notes_before_ecg() == ()
    assert second.attributes["implausible"] == "temperature_c,spo2_percent,systolic_bp_mmhg,diastolic_bp_mmhg"


def test_emergency_units_and_ranges(folder: Path) -> None:
    rows = read_mimic_iv_ed(folder / "ed").to_dicts()
    assert [row["source"] for row in rows] == ["triage", "vitalsign", "triage"]
    assert rows[0]["temperature_c"] == pytest.approx(37.0)
    assert rows[0]["measured_at"] == datetime(2180, 7, 20, 7)
    assert rows[2]["temperature_c"] is None
    assert rows[2]["respiratory_rate_bpm"] is None
    assert vitals_of_row(rows[0]).systolic_bp_mmhg == 120.0
    assert note_of_row(rows[1]) is None


@pytest.mark.data
def test_emergency_demo_tables(shared_data: Callable[[str], Path]) -> None:
    table = read_mimic_iv_ed(shared_data("mimic_iv_demo") / "ed")
    assert table.height > 1000
    assert {"triage", "vitalsign"} == set(table["source"])
    assert 36 < table["temperature_c"].median() < 37.5
    for row in table.iter_rows(named=True):
        vitals = vitals_of_row(row)
        assert all(getattr(vitals, name) == row[name] for name in ED_VITALS)
