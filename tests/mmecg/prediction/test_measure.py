"""Measurements: exact on synthetic ECGs, indifferent to size and start, and refused where beats cannot be told."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.evaluation.prediction_signals import with_noise
from mmecg.prediction.measure import Reading, measure, read_beats

OF_ALL = ("heart_rate_bpm", "rr_irregularity", "qrs_duration_ms", "qt_ms")
OF_LEAD = ("qrs_amplitude_mv", "st_level_mv", "t_amplitude_mv")


def values(ecg: Ecg) -> Reading:
    return read_beats(ecg)


def with_signal(ecg: Ecg, signal: np.ndarray) -> Ecg:
    return Ecg.from_array(signal, sampling_rate_hz=ecg.sampling_rate_hz)


def even_ecg(rate: float, sampling_rate_hz: float = 100.0) -> Ecg:
    """Beats at exactly a rate: what falls between two samples is drawn there."""
    time = np.arange(round(10 * sampling_rate_hz)) / sampling_rate_hz
    signal = np.zeros((12, len(time)))
    for beat in np.arange(0.2, 11, 60 / rate):
        qrs = np.exp(-0.5 * ((time - beat) / 0.012) ** 2)
        t = 0.25 * np.exp(-0.5 * ((time - beat - 0.28 * math.sqrt(60 / rate)) / 0.045) ** 2)
        signal += np.linspace(0.5, 1.5, 12)[:, None] * (qrs + t)
    return Ecg.from_array(signal.astype(np.float32), sampling_rate_hz=sampling_rate_hz)


@given(rate=st.floats(35, 170), sampling_rate_hz=st.sampled_from([100.0, 250.0, 500.0]))
@settings(max_examples=25, deadline=None)
def test_rate_of_an_even_rhythm_is_exact(rate: float, sampling_rate_hz: float) -> None:
    found = values(even_ecg(rate, sampling_rate_hz)).values
    assert found["heart_rate_bpm", ""] == pytest.approx(rate, abs=1)
    assert found["rr_irregularity", ""] < 0.06


@given(factor=st.floats(0.3, 3), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_a_larger_signal_has_larger_amplitudes_and_the_same_times(factor: float, seed: int) -> None:
    ecg = synthetic_ecg(seed=seed)
    one, other = values(ecg).values, values(with_signal(ecg, ecg.signal * factor)).values
    assert one.keys() - {("qt_ms", "")} == other.keys() - {("qt_ms", "")}, "of a small T the end is not told"
    for key in one.keys() & other.keys():
        scale = factor if key[0] in OF_LEAD else 1
        assert other[key] == pytest.approx(scale * one[key], rel=1e-3, abs=1e-3), key


@given(start=st.integers(0, 150), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_a_later_start_has_the_same_rate(start: int, seed: int) -> None:
    ecg = synthetic_ecg(duration_s=12, seed=seed)
    one, other = (values(ecg.crop(at / 100, 10)).values["heart_rate_bpm", ""] for at in (0, start))
    assert other == pytest.approx(one, rel=0.03), "RR varies by 3 %: one beat enters, one leaves"


def test_what_is_measured_and_where() -> None:
    found = measure(synthetic_ecg(seed=1).select_leads(["I", "II", "V2"]))
    assert tuple(one.name for one in found if not one.lead) == OF_ALL
    assert [(one.lead, one.name) for one in found if one.lead] == [
        (lead, name) for lead in ("I", "II", "V2") for name in OF_LEAD
    ]
    assert all(one.low <= one.value <= one.high for one in found if one.name in ("heart_rate_bpm", "qrs_amplitude_mv"))
    assert {one.reason for one in found} == {""}


def test_amplitudes_are_those_that_were_drawn() -> None:
    found = values(even_ecg(60)).values
    for place, lead in enumerate(LEADS):
        size = np.linspace(0.5, 1.5, 12)[place]
        assert found["qrs_amplitude_mv", lead] == pytest.approx(size, rel=0.1)
        assert found["t_amplitude_mv", lead] == pytest.approx(0.25 * size, rel=0.05)
        assert found["st_level_mv", lead] == pytest.approx(0, abs=0.04)


def test_an_irregular_rhythm_is_irregular() -> None:
    sinus, fibrillation = (values(synthetic_ecg(rhythm=rhythm, seed=3)) for rhythm in ("sinus", "atrial_fibrillation"))
    assert fibrillation.values["rr_irregularity", ""] > 3 * sinus.values["rr_irregularity", ""]


@pytest.mark.parametrize("rate", [200, 230, 260])
def test_beats_too_fast_to_be_told_have_no_rate(rate: int) -> None:
    for seed in range(3):
        first, *_ = measure(synthetic_ecg(heart_rate_bpm=rate, seed=seed))
        assert math.isnan(first.value)
        assert first.reason


def test_noise_and_too_few_beats_have_a_reason() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = measure(Ecg.from_array(0.2 * rng.standard_normal((12, 1000)), sampling_rate_hz=100))
        assert len(found) == len(OF_ALL)
        assert all(math.isnan(one.value) and one.reason for one in found)
    short = measure(synthetic_ecg(duration_s=2, heart_rate_bpm=50, seed=2))
    assert "3 are needed" in short[0].reason
    drowned = with_noise(synthetic_ecg(seed=5), "muscle", -12.0, rng)
    assert measure(drowned)[0].reason


def test_leads_that_cannot_be_read_do_not_count() -> None:
    ecg = synthetic_ecg(seed=4)
    signal = ecg.signal.copy()
    signal[7] = 3 * np.random.default_rng(0).standard_normal(1000)
    noisy = with_signal(ecg, signal)
    found = read_beats(noisy, unreadable={"V2"})
    assert found.values["heart_rate_bpm", ""] == pytest.approx(values(ecg).values["heart_rate_bpm", ""], abs=1)
    assert ("qrs_amplitude_mv", "V2") not in found.values
    (reason,) = {one.reason for one in measure(ecg, unreadable=LEADS)}
    assert reason == "no lead can be read"
