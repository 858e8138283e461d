"""Serial findings by measurement: each limit in both directions, and the whole ECG."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS
from mmecg.labels.change import load_serial_table
from mmecg.prediction.earlier import Earlier
from mmecg.prediction.history import Prior
from mmecg.prediction.measure import Reading, read_beats
from mmecg.prediction.measured import Measurement
from mmecg.prediction.result import LabelChange
from mmecg.prediction.serial import ANSWERED, DIFFERENCES, FACTORS, compare, latest_recording, measured_changes

PLAIN = {"heart_rate_bpm": 70.0, "rr_irregularity": 0.02, "qrs_duration_ms": 95.0, "qt_ms": 390.0}
BEAT = read_beats(synthetic_ecg(seed=1, wander_mv=0)).beat
NOBODY = Prior(study_id="p", days_before=9.0, source="labels", known=np.zeros(1, np.float32))


def reading(qrs: float = 1.0, st: float = 0.0, t: float = 0.3, **changes: float) -> Reading:
    found = [Measurement(name=name, value=value, low=0, high=0) for name, value in (PLAIN | changes).items()]
    for name, value in (("qrs_amplitude_mv", qrs), ("st_level_mv", st), ("t_amplitude_mv", t)):
        found += [Measurement(name=name, lead=lead, value=value, low=0, high=0) for lead in LEADS]
    assert BEAT is not None
    signal = BEAT.signal.copy()
    signal[:, BEAT.st_t.start :] = st or t
    return Reading(tuple(found), np.ones(12, np.bool_), replace(BEAT, signal=signal))


def label(name: str, change: str, prior: str = "p") -> LabelChange:
    return LabelChange(
        label=name, change=change, prior_study_id=prior, days_before=9.0, source="labels", probability=0.9
    )


def said(now: Reading, before: Reading, *changes: LabelChange, prior: Prior = NOBODY) -> set[str]:
    found = compare(now, before, prior, changes)
    assert found is not None
    assert (found.prior_study_id, found.days_before) == ("p", 9.0)
    return set(found.serial)


def test_every_answer_is_a_serial_finding_of_the_vocabulary() -> None:
    assert load_serial_table().findings.keys() >= ANSWERED


def test_an_ecg_beside_itself_has_not_changed() -> None:
    assert said(reading(), reading()) == {"SERIAL_NO_CHANGE"}
    unlabelled = Prior(study_id="p", days_before=9.0, source="ecg", known=np.zeros(1, np.float32))
    assert said(reading(), reading(), prior=unlabelled) == set(), "labels of then are not known"
    some = compare(reading(), reading(), NOBODY, (), complete=False)
    assert some is not None
    assert some.serial == (), "not all labels were asked for"


@pytest.mark.parametrize("name", ["heart_rate_bpm", "qrs_duration_ms"])
def test_a_measurement_has_changed_beyond_its_limit(name: str) -> None:
    for step, change in ((0.95, "unchanged"), (1.05, "increased"), (-1.05, "decreased")):
        now = reading(**{name: PLAIN[name] + step * DIFFERENCES[name]})
        found = {one.name: one for one in measured_changes(now, reading())}
        assert found[name].change == change
        assert found[name].limit == DIFFERENCES[name]


def test_amplitudes_change_by_a_factor() -> None:
    for power, change in ((0.95, "unchanged"), (1.05, "increased"), (-1.05, "decreased")):
        now = reading(qrs=FACTORS["qrs_amplitude_mv"] ** power, t=0.3 * FACTORS["t_amplitude_mv"] ** power)
        found = {one.name: one.change for one in measured_changes(now, reading())}
        assert {found["qrs_amplitude_mv"], found["t_amplitude_mv"]} == {change}
        finding = {f"SERIAL_T_AMPLITUDE_{change.upper()}"} & ANSWERED
        assert said(now, reading()) >= finding


def test_what_one_of_them_lacks_is_not_compared() -> None:
    assert "qrs_duration_ms" not in {one.name for one in measured_changes(reading(qrs_duration_ms=math.nan), reading())}


def test_st_changes_without_a_label_are_non_specific() -> None:
    assert "SERIAL_ST_CHANGE" in said(reading(st=-0.3), reading())
    assert "SERIAL_ST_CHANGE" not in said(reading(st=-0.07), reading()), "within the limit"
    assert "SERIAL_ST_CHANGE" not in said(reading(st=-0.3), reading(st=-0.21)), "ST-T is not marked"


@pytest.mark.parametrize(
    ("name", "stem", "values"),
    [
        ("STD_", "SERIAL_ST_DEPRESSION", {"st": -0.4}),
        ("STE_", "SERIAL_ST_ELEVATION", {"st": 0.4}),
        ("INVT", "SERIAL_T_INVERSION", {"t": -0.8}),
    ],
)
def test_what_persists_is_more_or_less(name: str, stem: str, values: dict[str, float]) -> None:
    mild = {key: value / 8 for key, value in values.items()}
    persists = label(name, "persists")
    more, less = (said(reading(**a), reading(**b), persists) for a, b in ((values, mild), (mild, values)))
    assert f"{stem}_MORE" in more
    assert f"{stem}_LESS" in less
    assert not {f"{stem}_MORE", f"{stem}_LESS"} & said(reading(**values), reading(**values), persists)
    elsewhere = said(reading(**values), reading(**mild), label(name, "persists", "another"))
    assert not {f"{stem}_MORE", f"{stem}_LESS"} & elsewhere, "beside another study than the recording"


def test_the_whole_ecg() -> None:
    assert "SERIAL_CHANGE" in said(reading(), reading(), label("AFIB", "new"))
    assert said(reading(), reading(), label("AFIB", "new", "another")) == {"SERIAL_NO_CHANGE"}
    assert "SERIAL_CHANGE" in said(reading(qrs=2.0), reading())
    assert said(reading(heart_rate_bpm=120.0), reading()) == set(), "rate alone"


def test_no_beats_no_comparison() -> None:
    nothing = read_beats(synthetic_ecg(seed=1), unreadable=LEADS)
    assert compare(nothing, reading(), NOBODY, ()) is None
    assert latest_recording([NOBODY], Earlier(), None) is None, "it has no ECG"
