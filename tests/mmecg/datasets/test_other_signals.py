"""Signals that are no ECG: what they promise."""

import numpy as np
import pytest

from mmecg.datasets.other_signals import OTHER_SIGNALS, RMS_MV, band_noise, coloured_noise, other_signal


@pytest.mark.parametrize("kind", OTHER_SIGNALS)
@pytest.mark.parametrize("rate", [50.0, 100.0, 500.0])
def test_every_signal_at_every_rate(kind, rate):
    rng = np.random.default_rng(0)
    courses = OTHER_SIGNALS[kind](9, round(10 * rate), rate, rng)
    np.testing.assert_allclose(courses.std(axis=1), 1, rtol=1e-6)
    for _ in range(5):
        ecg = other_signal(kind, duration_s=10, sampling_rate_hz=rate, rng=rng)
        assert ecg.signal.shape == (12, round(10 * rate))
        assert RMS_MV[0] * 0.99 <= np.sqrt(np.mean(ecg.signal**2)) <= RMS_MV[1] * 1.01


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_slope_of_coloured_noise(exponent):
    noise = coloured_noise(200, 4096, exponent, np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(axis=0)[1:]
    slope = np.polyfit(np.log(np.arange(1, len(power) + 1)), np.log(power), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_band_noise_stays_in_its_band():
    noise = band_noise(3, 1000, 100.0, (8.0, 13.0), np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(noise, axis=1)))
    frequency = np.fft.rfftfreq(1000, 0.01)
    assert power[:, (frequency < 8) | (frequency > 13)].sum() < 1e-12 * power.sum()


def test_one_seed_one_signal():
    first, again = (
        other_signal("pulse", duration_s=5, sampling_rate_hz=100, rng=np.random.default_rng(7)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.signal, again.signal)
