from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg, fit_length, lead_index, resample
from mmecg.errors import SignalError

SIGNAL = synthetic_ecg(seed=3).signal


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)))
def test_permuted_leads_give_the_same_ecg(order: list[int]) -> None:
    got = Ecg.from_array(SIGNAL[order], sampling_rate_hz=100, leads=[LEADS[index] for index in order])
    np.testing.assert_array_equal(got.signal, SIGNAL)
    assert got.leads == LEADS


@pytest.mark.parametrize("name", ["aVF", "AVF", " avf ", "Lead aVF", "ECG aVF", "lead_avf"])
def test_lead_names(name: str) -> None:
    assert lead_index(name) == 5


@pytest.mark.parametrize("name", ["", "V7", "MLII", "ECG", "X", "IV"])
def test_unknown_lead_names(name: str) -> None:
    with pytest.raises(SignalError, match="is unknown"):
        lead_index(name)


def test_missing_leads_are_masked_zeros() -> None:
    got = Ecg.from_array(SIGNAL[[10, 1]], sampling_rate_hz=100, leads=["v5", "ii"])
    assert got.leads == ("II", "V5")
    np.testing.assert_array_equal(got.signal[[1, 10]], SIGNAL[[1, 10]])
    assert not got.signal[~got.lead_mask].any()


def nan_signal() -> np.ndarray:
    signal = SIGNAL.copy()
    signal[7, 3] = np.nan
    return signal


@pytest.mark.parametrize(
    ("signal", "arguments", "match"),
    [
        (SIGNAL * 1000, {}, "looks like microvolt"),
        (np.rint(SIGNAL * 1000).astype(np.int16), {}, "looks like microvolt"),
        (np.where(np.arange(12)[:, None] < 7, 0, SIGNAL * 1000), {}, "looks like microvolt"),
        (nan_signal(), {}, "NaN or infinite samples in V2"),
        (np.where(np.arange(1000) == 4, np.inf, SIGNAL), {}, "NaN or infinite"),
        (np.zeros((12, 1000)), {}, "every sample is zero"),
        (SIGNAL[:, :20], {}, r"lasts 0\.2 s"),
        (np.ones((1, 86400 * 50), np.int8), {"sampling_rate_hz": 50, "leads": ["I"]}, "lasts 86400 s"),
        (SIGNAL[:11], {}, "has 11 leads, expected 12"),
        (SIGNAL.T, {}, "has 1000 leads"),
        (SIGNAL.T, {"leads": LEADS}, "transpose"),
        (SIGNAL[0], {}, "has shape"),
        (SIGNAL[None], {}, "has shape"),
        (np.zeros((12, 0)), {}, "has shape"),
        ([[1, 2], [3]], {}, "rows differ in length"),
        (np.full((12, 1000), "a"), {}, "expected real numbers"),
        (SIGNAL + 1j, {}, "expected real numbers"),
        (SIGNAL[:2], {"leads": ["I", "i"]}, "named more than once"),
        (SIGNAL, {"sampling_rate_hz": 0}, "sampling rate"),
        (SIGNAL, {"sampling_rate_hz": float("nan")}, "sampling rate"),
        (SIGNAL, {"sampling_rate_hz": 1e9}, "sampling rate"),
        (SIGNAL, {"unit": "bpm"}, "unit 'bpm' is unknown"),
    ],
)
def test_unusable_signals(signal: object, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(SignalError, match=match) as caught:
        Ecg.from_array(signal, **{"sampling_rate_hz": 100, **arguments})  # type: ignore[arg-type]
    assert caught.value.field is not None
    assert caught.value.field.startswith("ecg.")


def test_units_are_converted() -> None:
    for unit, factor in (("uV", 1e3), ("µV", 1e3), ("V", 1e-3)):
        got = Ecg.from_array(SIGNAL * factor, sampling_rate_hz=100, unit=unit)
        np.testing.assert_allclose(got.signal, SIGNAL, atol=1e-6)


def test_one_lead_full_of_artefact_does_not_condemn_the_recording() -> None:
    signal = SIGNAL.copy()
    signal[11] *= 1000
    assert Ecg.from_array(signal, sampling_rate_hz=100).lead_mask.all()


def test_an_ecg_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        synthetic_ecg().signal[0, 0] = 1


def test_select_and_crop() -> None:
    ecg = synthetic_ecg(seed=3)
    limb = ecg.select_leads(["II", "aVR"])
    assert limb.leads == ("II", "aVR")
    assert not limb.signal[0].any()
    with pytest.raises(SignalError, match="was recorded"):
        limb.select_leads(["V1"])
    part = ecg.crop(2.0, 5.0)
    np.testing.assert_array_equal(part.signal, SIGNAL[:, 200:700])
    assert part.duration_s == 5.0
    for start, length, match in ((8.0, 5.0, "outside"), (-1.0, 5.0, "outside"), (0.0, 0.5, "lasts")):
        with pytest.raises(SignalError, match=match):
            ecg.crop(start, length)


@pytest.mark.parametrize("rate", [50.0, 125.0, 250.0, 257.0, 360.0, 500.0, 1000.0])
def test_resample_keeps_the_wave_and_the_offset(rate: float) -> None:
    time = np.arange(round(10 * rate)) / rate
    signal = (2.0 + np.sin(2 * np.pi * 5 * time)).astype(np.float32)[None]
    got = resample(signal, rate, 100.0)
    assert got.dtype == np.float32
    assert abs(got.shape[1] - 1000) <= 1
    expected = 2.0 + np.sin(2 * np.pi * 5 * np.arange(got.shape[1]) / 100)
    assert np.abs(got[0] - expected)[30:-30].max() < 0.02
    assert np.abs(got[0] - 2).max() < 1.6


@pytest.mark.parametrize("value", [9.2e18, -3e38])
def test_one_sample_that_nothing_can_measure_is_refused(value: float) -> None:
    signal = SIGNAL.copy()
    signal[3, 17] = value
    with pytest.raises(SignalError, match="expected at most 1e\\+09 mV"):
        Ecg.from_array(signal, sampling_rate_hz=500)


@pytest.mark.parametrize(("rate", "samples"), [(500, 5000), (500, 4999), (1000, 10_003), (200, 201), (500, 100_001)])
def test_resample_to_a_whole_fraction_is_resample_poly(rate: int, samples: int) -> None:
    rng = np.random.default_rng(samples)
    signal = (rng.standard_normal((3, samples)) + rng.standard_normal((3, 1)) * 3).astype(np.float32)
    expected = resample_poly(signal, 1, rate // 100, axis=-1, padtype="line")
    got = resample(signal, rate, 100)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(got[0], resample(signal[0], rate, 100))


def test_a_recording_is_resampled_once_for_all_who_ask() -> None:
    ecg = Ecg.from_array(np.random.default_rng(0).normal(size=(12, 5000)), sampling_rate_hz=500)
    there = ecg.resample(100)
    assert ecg.resample(100) is there
    assert ecg.resample(500) is ecg
    assert ecg.resample(250).signal.shape == (12, 2500)
    np.testing.assert_array_equal(ecg.resample(100).signal, there.signal)


def test_resample_removes_what_would_alias() -> None:
    time = np.arange(5000) / 500
    hum = np.sin(2 * np.pi * 120 * time).astype(np.float32)[None]
    assert np.abs(resample(hum, 500.0, 100.0))[:, 20:-20].max() < 0.05


@given(st.integers(1, 40), st.integers(1, 40))
def test_fit_length(have: int, want: int) -> None:
    signal = np.arange(1, have + 1, dtype=np.float32)[None]
    got = fit_length(signal, want)[0]
    assert len(got) == want
    if have >= want:
        assert got[0] - 1 == (have - want) // 2
        np.testing.assert_array_equal(np.diff(got), 1)
    else:
        np.testing.assert_array_equal(got[:have], signal[0])
        assert not got[have:].any()
