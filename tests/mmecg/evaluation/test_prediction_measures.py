"""Measurements beside the marks of LUDB, and beside marks of our own making."""

from pathlib import Path

import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.datasets.wfdb_annotations import Wave
from mmecg.ecg import LEADS
from mmecg.errors import InvalidInputError
from mmecg.evaluation.prediction_measures import Marked, measures, read_marked

LUDB = Path(__file__).parents[4] / "shared" / "data" / "ludb"


def test_marks_of_one_beat_in_many_leads_are_one_beat() -> None:
    ecg = synthetic_ecg(sampling_rate_hz=500, heart_rate_bpm=60, seed=0)
    waves = {
        lead: tuple(
            wave
            for beat in (500, 1000, 1600)
            for wave in (Wave("QRS", beat - 25, beat + at, beat + 25), Wave("T", beat + 100, beat + 140, beat + 180))
        )
        for at, lead in enumerate(LEADS)
    }
    one = Marked("1", ecg, waves)
    assert one.beats_s == pytest.approx([1.011, 2.011, 3.211], abs=1e-3)
    assert one.values["heart_rate_bpm", ""] == pytest.approx(60 / 1.1)
    assert one.values["qrs_duration_ms", ""] == 100
    assert one.values["qt_ms", ""] == 410
    few = {lead: each if at < 5 else () for at, (lead, each) in enumerate(waves.items())}
    assert len(Marked("1", ecg, few).beats_s) == 0, "fewer than half of the leads"


@pytest.mark.skipif(not LUDB.is_dir(), reason="LUDB is not beside the repository")
def test_measurements_are_near_the_marks_of_ludb() -> None:
    part = measures(LUDB, resamples=50, seed=0)
    rows = {row.key.removeprefix("measure/"): row for row in part.rows}
    assert rows["heart_rate_bpm_error"].value < 1
    assert rows["heart_rate_within_5"].value > 0.97
    assert min(rows["beats_sensitivity"].value, rows["beats_ppv"].value) > 0.99
    assert rows["beats_sensitivity"].extra["beats"] == 903
    for name in ("heart_rate_bpm", "qrs_duration_ms", "qt_ms", "st_level_mv", "t_amplitude_mv"):
        row = rows[f"{name}_error"]
        assert row.low <= row.value <= row.high
        assert row.value < 0.8 * row.baselines["prevalence"], name
    assert rows["beats_ppv"].baselines["prevalence"] < 0.5
    assert part.tables["measures"].height == 100


def test_a_folder_without_ludb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no ludb\.csv"):
        read_marked(tmp_path)
    (tmp_path / "ludb.csv").write_text("ID,Sex\n1,F\n")
    with pytest.raises(InvalidInputError, match="no record of"):
        read_marked(tmp_path)
