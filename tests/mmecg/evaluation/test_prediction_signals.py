"""Recordings made worse on purpose are worse in the way that they say."""

from __future__ import annotations

import numpy as np
import pytest

from mmecg.ecg import LEADS, Ecg
from mmecg.evaluation.prediction_signals import SWAPS, shifts, strangers, swapped, with_noise


@pytest.fixture(scope="module")
def ecg() -> Ecg:
    """Two limb leads and six chest leads that do not look alike; the others as the definitions have it."""
    rng = np.random.default_rng(0)
    i, ii = np.cumsum(rng.normal(0, 0.05, (2, 1000)), axis=1)
    chest = np.cumsum(rng.normal(0, 0.05, (6, 1000)), axis=1)
    return Ecg.from_array(np.stack([*limb(i, ii), *chest]), sampling_rate_hz=100)


def limb(i: np.ndarray, ii: np.ndarray) -> list[np.ndarray]:
    return [i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]


@pytest.mark.parametrize("kind", ["wander", "muscle", "powerline"])
@pytest.mark.parametrize("snr", [12, -6])
def test_noise_has_the_promised_power(ecg: Ecg, kind: str, snr: int) -> None:
    noisy = with_noise(ecg, kind, snr, np.random.default_rng(1))
    clean = ecg.resample(noisy.sampling_rate_hz).signal
    power = np.square(clean - np.median(clean, axis=1, keepdims=True)).mean(axis=1)
    added = np.square(noisy.signal - clean).mean(axis=1)
    assert 10 * np.log10(power / added) == pytest.approx(np.full(12, snr), abs=0.05)


@pytest.mark.parametrize(("name", "pair"), [("RA_LA", "RA LA"), ("RA_LL", "RA LL"), ("LA_LL", "LA LL")])
def test_swapped_limb_electrodes_follow_from_the_definitions(ecg: Ecg, name: str, pair: str) -> None:
    i, ii = ecg.signal[0].astype(float), ecg.signal[1].astype(float)
    potential = {"RA": np.zeros(1000), "LA": i, "LL": ii}
    one, other = pair.split()
    potential[one], potential[other] = potential[other], potential[one]
    expected = limb(potential["LA"] - potential["RA"], potential["LL"] - potential["RA"])
    found = swapped(ecg, name)
    assert found.signal[:6] == pytest.approx(np.stack(expected), abs=1e-5)
    assert (found.signal[6:] == ecg.signal[6:]).all()


def test_every_swap_undoes_itself(ecg: Ecg) -> None:
    for name in SWAPS:
        assert (swapped(swapped(ecg, name), name).signal == ecg.signal).all()


def test_every_shift_gives_a_valid_recording(ecg: Ecg) -> None:
    found = {name: change(ecg, np.random.default_rng(0)) for name, change in shifts().items()}
    assert len(found) == 15 + 5 + 5 + 3 + 1
    assert found["leads/limb"].leads == LEADS[:6]
    assert found["rate/50Hz"].signal.shape == (12, 500)
    assert found["length/5s"].duration_s == 5
    assert all(np.isfinite(one.signal).all() for one in found.values())
    assert (found["muscle/6dB"].signal != found["muscle/0dB"].signal).any()


def test_strangers_are_no_ecgs_and_come_from_the_seed(ecg: Ecg) -> None:
    found, again = strangers([ecg, ecg], 8, seed=1), strangers([ecg, ecg], 8, seed=1)
    assert {kind: len(items) for kind, items in found.items()} == {
        "noise": 8, "limb_swap": 2, "inverted": 2, "other_signal": 8,
    }  # fmt: skip
    assert (found["inverted"][0].signal == -ecg.signal).all()
    for kind, items in found.items():
        for one, two in zip(items, again[kind], strict=True):
            assert (one.signal == two.signal).all()
            assert one.signal.std() > 0
