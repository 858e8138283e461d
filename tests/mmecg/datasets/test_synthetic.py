from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import find_peaks

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS


def r_peaks(lead: np.ndarray, rate: float) -> np.ndarray:
    return find_peaks(lead, height=0.5 * lead.max(), distance=round(0.25 * rate))[0] / rate


@pytest.mark.parametrize("rate", [100.0, 500.0])
@pytest.mark.parametrize("heart_rate", [45.0, 70.0, 140.0])
def test_heart_rate(rate: float, heart_rate: float) -> None:
    ecg = synthetic_ecg(heart_rate_bpm=heart_rate, duration_s=30.0, sampling_rate_hz=rate)
    assert ecg.duration_s == 30.0
    assert 60 / np.diff(r_peaks(ecg.signal[1], rate)).mean() == pytest.approx(heart_rate, rel=0.06)


def test_fibrillation_is_irregular() -> None:
    spread = {}
    for rhythm in ("sinus", "atrial_fibrillation"):
        ecg = synthetic_ecg(rhythm=rhythm, duration_s=60.0)  # type: ignore[arg-type]
        intervals = np.diff(r_peaks(ecg.signal[1], 100.0))
        spread[rhythm] = intervals.std() / intervals.mean()
    assert spread["sinus"] < 0.06
    assert spread["atrial_fibrillation"] > 0.12


def test_laws_of_the_limb_leads() -> None:
    i, ii, iii, avr, avl, avf = synthetic_ecg().signal[:6]
    np.testing.assert_allclose(i + iii, ii, atol=1e-6)
    np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-6)


def test_seed_and_amplitude() -> None:
    np.testing.assert_array_equal(synthetic_ecg(seed=1).signal, synthetic_ecg(seed=1).signal)
    assert not np.array_equal(synthetic_ecg(seed=1).signal, synthetic_ecg(seed=2).signal)
    small, large = (synthetic_ecg(amplitude=factor, noise_mv=0, wander_mv=0).signal for factor in (1.0, 2.0))
    np.testing.assert_allclose(2 * small, large, atol=1e-5)
    assert 0.8 < small[1].max() < 1.6
    assert small[LEADS.index("V1")].min() < -0.5
    assert small[LEADS.index("aVR")].max() < 0.5
