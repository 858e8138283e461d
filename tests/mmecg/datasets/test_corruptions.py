"""Corruptions against numbers that can be worked out by hand."""

import numpy as np
import pytest

from mmecg.datasets.corruptions import (
    CORRUPTIONS,
    LEG_RESIDUAL_MV,
    NOISES,
    add_noise,
    electrode_potentials,
    invert,
    permute_electrodes,
    swap_electrodes,
)
from mmecg.datasets.other_signals import leads_of_electrodes
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, LIMB_LEADS, Ecg
from mmecg.errors import SignalError
from mmecg.quality import assess_quality

ALL = [(kind, name) for kind, changes in CORRUPTIONS.items() for name in changes]
BREAKS_EINTHOVEN = {("lead_mismatch", "one limb lead inverted")}


@pytest.fixture(scope="module")
def ecg() -> Ecg:
    return synthetic_ecg()


def lead(ecg, name):
    return ecg.signal[LEADS.index(name)]


def same(left, right):
    np.testing.assert_allclose(left, right, atol=1e-5)


def test_potentials_and_leads_are_inverse(ecg):
    here = electrode_potentials(ecg)
    same(leads_of_electrodes(here), ecg.signal)
    same(here[:3].sum(axis=0), 0)  # against Wilson's terminal the limbs cancel


def test_leads_of_electrodes_by_hand():
    ra, la, ll, chest = 1.0, 2.0, 6.0, np.arange(10.0, 16.0)
    leads = leads_of_electrodes(np.array([ra, la, ll, *chest])[:, None])[:, 0]
    assert leads.tolist() == [1, 5, 4, -3, -1.5, 4.5, *(chest - 3)]


# Lead after the exchange: what it was before, as in Batchvarov et al. 2007, table 1.
@pytest.mark.parametrize(
    ("electrodes", "expected"),
    [
        (("RA", "LA"), {"I": "-I", "II": "III", "III": "II", "aVR": "aVL", "aVL": "aVR", "aVF": "aVF"}),
        (("RA", "LL"), {"I": "-III", "II": "-II", "III": "-I", "aVR": "aVF", "aVL": "aVL", "aVF": "aVR"}),
        (("LA", "LL"), {"I": "II", "II": "I", "III": "-III", "aVR": "aVR", "aVL": "aVF", "aVF": "aVL"}),
    ],
)
def test_exchanged_limb_electrodes(ecg, electrodes, expected):
    swapped = swap_electrodes(ecg, *electrodes)
    for name, was in expected.items():
        same(lead(swapped, name), lead(ecg, was.lstrip("-")) * (-1 if was[0] == "-" else 1))
    same(swapped.signal[6:], ecg.signal[6:])  # Wilson's terminal is the mean of the same three


@pytest.mark.parametrize("electrodes", [("RA", "LA"), ("RA", "LL"), ("LA", "LL"), ("V1", "V6")])
def test_twice_exchanged_is_as_before(ecg, electrodes):
    same(swap_electrodes(swap_electrodes(ecg, *electrodes), *electrodes).signal, ecg.signal)


def test_an_arm_on_the_right_leg_flattens_the_lead_between_the_legs(ecg):
    for arm, flat, expected in (("RA", "II", -lead(ecg, "III")), ("LA", "III", lead(ecg, "II"))):
        swapped = swap_electrodes(ecg, arm, "RL")
        assert lead(swapped, flat).std() == pytest.approx(LEG_RESIDUAL_MV, rel=0.1)
        np.testing.assert_allclose(lead(swapped, "I"), expected, atol=5 * LEG_RESIDUAL_MV)
        moved = lead(swapped, "V1") - lead(ecg, "V1")  # as Wilson's terminal loses the arm and gains a leg
        np.testing.assert_allclose(moved, -lead(ecg, flat) / 3, atol=5 * LEG_RESIDUAL_MV)


def test_turning_three_times_is_as_before(ecg):
    turned = ecg
    for _ in range(3):
        turned = permute_electrodes(turned, {"RA": "LA", "LA": "LL", "LL": "RA"})
    same(turned.signal, ecg.signal)
    assert np.abs(permute_electrodes(ecg, {"RA": "LA", "LA": "LL", "LL": "RA"}).signal - ecg.signal).max() > 0.3


def test_exchanged_arms_are_found_by_the_rules_of_quality(ecg):
    assert [finding.kind for finding in assess_quality(swap_electrodes(ecg, "RA", "LA"))] == ["limb_reversal"]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=map("/".join, ALL))
def test_every_corruption_changes_the_recording_and_keeps_einthovens_law(ecg, kind, name):
    made = [CORRUPTIONS[kind][name](ecg, np.random.default_rng(seed)) for seed in range(8)]
    for one in made:
        assert one.signal.shape == ecg.signal.shape
        assert one.lead_mask.all()
        assert np.isfinite(one.signal).all()
        assert np.abs(one.signal - ecg.signal).max() > 0.1
    again = CORRUPTIONS[kind][name](ecg, np.random.default_rng(0))
    np.testing.assert_array_equal(again.signal, made[0].signal)
    lawful = [np.abs(lead(one, "II") - lead(one, "I") - lead(one, "III")).max() < 1e-4 for one in made]
    if (kind, name) in BREAKS_EINTHOVEN:
        assert not any(lawful)
    else:  # what is no ECG keeps it too, unless it was laid on the leads one by one
        assert any(lawful) if kind in ("noise", "not_ecg") else all(lawful)


def test_inverting_some_leads(ecg):
    made = invert(ecg, ["V1", "II"])
    same(lead(made, "V1"), -lead(ecg, "V1"))
    same(lead(made, "II"), -lead(ecg, "II"))
    same(lead(made, "I"), lead(ecg, "I"))
    same(invert(ecg).signal, -ecg.signal)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [24, 0, -6])
@pytest.mark.parametrize("leads", [LEADS, LIMB_LEADS, ("I",)])
def test_the_measured_signal_to_noise_ratio_is_the_one_asked_for(kind, snr_db, leads):
    ecg = synthetic_ecg(sampling_rate_hz=500).select_leads(leads)
    noisy = add_noise(ecg, kind, snr_db, np.random.default_rng(0))
    noise = (noisy.signal.astype(np.float64) - ecg.signal)[ecg.lead_mask]
    ratio = ecg.signal[ecg.lead_mask].astype(np.float64).var(axis=1).sum() / noise.var(axis=1).sum()
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.01)
    assert not noisy.signal[~ecg.lead_mask].any()


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("baseline_wander", 0.05, 0.5), ("powerline", 49.9, 50.1), ("muscle", 20, 150)]
)
def test_noise_lies_in_its_band_and_keeps_einthovens_law(kind, low, high):
    ecg = synthetic_ecg(duration_s=20, sampling_rate_hz=500)
    noise = add_noise(ecg, kind, 0, np.random.default_rng(1)).signal.astype(np.float64) - ecg.signal
    same(noise[1], noise[0] + noise[2])
    power = np.square(np.abs(np.fft.rfft(noise, axis=1)))
    frequency = np.fft.rfftfreq(noise.shape[1], 1 / 500)
    inside = (frequency >= low - 1) & (frequency <= high + 1)
    assert power[:, inside].sum() > 0.99 * power.sum()


def test_refusals(ecg):
    with pytest.raises(SignalError, match="unknown"):
        add_noise(ecg, "hiss", 6, np.random.default_rng(0))
    with pytest.raises(SignalError, match="constant"):
        add_noise(Ecg(np.ones((12, 500), np.float32), 100.0, np.ones(12, bool)), "white", 6, np.random.default_rng(0))
    with pytest.raises(SignalError, match="leads I and II"):
        swap_electrodes(ecg.select_leads(["I", "V1"]), "RA", "LA")
    with pytest.raises(SignalError, match="same electrodes"):
        permute_electrodes(ecg, {"RA": "LA"})
    with pytest.raises(SignalError, match="same electrodes"):
        swap_electrodes(ecg, "RA", "V7")
