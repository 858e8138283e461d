from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import SignalError
from mmecg.quality import QUALITY_KINDS, assess_each, assess_quality, quality_kinds, quantiles

RATES = [100.0, 250.0, 500.0]


def changed(rate: float, change: Callable[[np.ndarray], None], **arguments: float) -> dict[str, tuple[str, ...]]:
    signal = synthetic_ecg(sampling_rate_hz=rate, seed=2, **arguments).signal.copy()  # type: ignore[arg-type]
    change(signal)
    ecg = Ecg.from_array(signal, sampling_rate_hz=rate)
    return {finding.kind: finding.leads for finding in assess_quality(ecg)}


def noise(rate: float, size: float) -> Callable[[np.ndarray], None]:
    def add(signal: np.ndarray) -> None:
        signal[7] += np.random.default_rng(0).normal(0, size, signal.shape[1])

    return add


@pytest.mark.parametrize("rate", RATES)
def test_a_clean_recording_has_no_findings(rate: float) -> None:
    assert changed(rate, lambda signal: None) == {}


@pytest.mark.parametrize("rate", RATES)
def test_each_finding_names_its_leads(rate: float) -> None:
    second = round(rate)

    def flat(signal: np.ndarray) -> None:
        signal[8, 3 * second : 7 * second] = 0.4

    def constant(signal: np.ndarray) -> None:
        signal[8] = 0.0

    def wander(signal: np.ndarray) -> None:
        signal[9] += np.sin(2 * np.pi * 0.2 * np.arange(signal.shape[1]) / rate)

    def clip(signal: np.ndarray) -> None:
        np.clip(signal[10], -10, 0.15, out=signal[10])
        signal[10] *= 5

    def swap(signal: np.ndarray) -> None:
        signal[[4, 5]] = signal[[5, 4]]

    def wrong_lead(signal: np.ndarray) -> None:
        signal[2] = -signal[2] + signal[6]

    def arms(signal: np.ndarray) -> None:
        signal[[0, 1, 2, 3, 4]] = np.stack([-signal[0], signal[2], signal[1], signal[4], signal[3]])

    assert changed(rate, flat) == {"flat": ("V3",)}
    assert changed(rate, constant) == {"flat": ("V3",)}
    assert changed(rate, wander) == {"baseline_wander": ("V4",)}
    assert changed(rate, clip)["saturated"] == ("V5",)
    assert changed(rate, noise(rate, 0.1 * (rate / 100) ** 0.5)) == {"noise": ("V2",)}
    assert changed(rate, swap)["lead_swap"] == ("aVL", "aVF")
    assert set(changed(rate, wrong_lead)["einthoven_mismatch"]) >= {"I", "II", "III"}
    assert changed(rate, arms) == {"limb_reversal": ("I", "aVR")}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("start_s", "end_s", "found"), [(2.01, 5.99, True), (7.99, 10, True), (0, 2, True), (3.3, 5.25, False)]
)
def test_flat_for_two_seconds_wherever_they_begin(rate: float, start_s: float, end_s: float, found: bool) -> None:
    def flat(signal: np.ndarray) -> None:
        signal[8, round(start_s * rate) : round(end_s * rate)] = 0.4

    assert ("flat" in changed(rate, flat)) is found


def test_missing_leads() -> None:
    ecg = synthetic_ecg().select_leads(["I", "V2"])
    (finding,) = assess_quality(ecg)
    assert finding.kind == "missing_lead"
    assert finding.leads == tuple(lead for lead in LEADS if lead not in ("I", "V2"))
    assert quality_kinds(ecg) == ["missing_lead"]


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(50, 120)), elements=st.floats(-14, 14, width=32)),
    st.sampled_from([50.0, 60.0, 89.5, 100.0]),
)
def test_it_never_raises(signal: np.ndarray, rate: float) -> None:
    try:
        ecg = Ecg.from_array(signal, sampling_rate_hz=rate, leads=LEADS[: len(signal)])
    except SignalError:
        return
    findings = assess_quality(ecg)
    assert [finding.kind for finding in findings] == sorted(
        {finding.kind for finding in findings}, key=QUALITY_KINDS.index
    )
    assert all(finding.leads and finding.detail for finding in findings)


@pytest.mark.parametrize("samples", [1, 2, 9, 50, 1000])
def test_quantiles_of_rows_are_those_of_numpy(samples: int) -> None:
    rows = np.random.default_rng(samples).normal(size=(3, samples)).astype(np.float32)
    shares = (0.05, 0.1, 0.5, 0.95)
    np.testing.assert_allclose(quantiles(rows, *shares), np.quantile(rows, shares, axis=1), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([(100.0, 10), (100.0, 7.3), (500.0, 4)])), max_size=14))
def test_many_recordings_get_the_findings_that_each_gets_alone(drawn: list[tuple[int, tuple[float, float]]]) -> None:
    ecgs = [damaged(kind, rate, duration, seed) for seed, (kind, (rate, duration)) in enumerate(drawn)]
    assert assess_each(ecgs) == [assess_quality(ecg) for ecg in ecgs]


def test_each_kind_is_found_among_many() -> None:
    ecgs = [damaged(kind, 100.0, 10, 0) for kind in range(8)] * 2
    found = assess_each(ecgs)
    assert found[:8] == found[8:]
    assert {finding.kind for findings in found for finding in findings} == set(QUALITY_KINDS)


def damaged(kind: int, rate: float, duration_s: float, seed: int) -> Ecg:
    ecg = synthetic_ecg(sampling_rate_hz=rate, duration_s=duration_s, seed=seed)
    signal, random = ecg.signal.copy(), np.random.default_rng(seed)
    if kind == 1:
        return ecg.select_leads(["I", "II", "III", "V2"])
    if kind == 2:
        signal[7, : round(3 * rate)] = 0.25
    elif kind == 3:
        signal[10] = 5 * np.clip(signal[10], -10, 0.15)
    elif kind == 4:
        signal[7] += random.normal(0, 0.2, signal.shape[1])
    elif kind == 5:
        signal[9] += np.sin(2 * np.pi * 0.2 * np.arange(signal.shape[1]) / rate)
    elif kind == 6:
        signal[[4, 5]] = signal[[5, 4]]
    elif kind == 7:
        signal[:5] = np.stack([-signal[0], signal[2], signal[1], signal[4], signal[3]])
    return Ecg.from_array(signal, sampling_rate_hz=rate)
