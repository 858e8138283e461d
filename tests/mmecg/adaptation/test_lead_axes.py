"""Leads at other angles: the standard ones come out where the hexaxial system has them."""

from __future__ import annotations

import numpy as np
import pytest

from mmecg.adaptation.lead_axes import (
    CHEST_ANGLES_DEG,
    FRONTAL_ANGLES_DEG,
    GOLDBERGER,
    SPREAD_DEG,
    frontal_lead,
    horizontal_lead,
    random_axis,
)
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, lead_index
from mmecg.errors import InvalidInputError, SignalError

ECG = synthetic_ecg(seed=3, duration_s=4)


def lead(name, ecg=ECG):
    return ecg.signal[lead_index(name)]


@pytest.mark.parametrize("given", [("I", "aVF"), ("I", "II"), LEADS])
@pytest.mark.parametrize("name", FRONTAL_ANGLES_DEG)
def test_the_six_limb_leads_lie_at_their_angles(given, name):
    scale = GOLDBERGER if name.startswith("aV") else 1.0
    derived = scale * frontal_lead(ECG.select_leads(given), FRONTAL_ANGLES_DEG[name])
    np.testing.assert_allclose(derived, lead(name), atol=2e-6)


def test_a_lead_turned_by_half_a_circle_is_its_mirror():
    np.testing.assert_allclose(frontal_lead(ECG, 40), -frontal_lead(ECG, 220), atol=1e-6)


@pytest.mark.parametrize("name", CHEST_ANGLES_DEG)
def test_chest_leads_lie_at_their_angles(name):
    np.testing.assert_allclose(horizontal_lead(ECG, CHEST_ANGLES_DEG[name]), lead(name), atol=1e-6)


def test_between_two_chest_leads_it_is_their_mean():
    np.testing.assert_allclose(horizontal_lead(ECG, (94 + 75) / 2), (lead("V2") + lead("V3")) / 2, atol=1e-6)
    apart = ECG.select_leads(["V1", "V6"])
    np.testing.assert_allclose(horizontal_lead(apart, 60), (lead("V1") + lead("V6")) / 2, atol=1e-6)


def test_what_cannot_be_derived_is_refused():
    with pytest.raises(SignalError, match="I beside II or aVF"):
        frontal_lead(ECG.select_leads(["II", "aVF"]), 10)
    with pytest.raises(SignalError, match="both sides of 100 degrees"):
        horizontal_lead(ECG.select_leads(["V3", "V6"]), 100)
    with pytest.raises(InvalidInputError, match="angle is 130"):
        horizontal_lead(ECG, 130)


def test_random_axes_turn_around_the_lead():
    rng = np.random.default_rng(0)
    drawn = [random_axis(ECG, "I", rng) for _ in range(300)]
    assert {item.leads for item in drawn} == {("I",)}
    # v(turn) = X cos + Y sin: the part along lead I is the cosine of the turn
    x, y = lead("I"), lead("aVF") / GOLDBERGER
    basis = np.stack([x, y], axis=1).astype(np.float64)
    parts = np.array([np.linalg.lstsq(basis, lead("I", item).astype(np.float64), rcond=None)[0] for item in drawn])
    turns = np.rad2deg(np.arctan2(parts[:, 1], parts[:, 0]))
    np.testing.assert_allclose(np.linalg.norm(parts, axis=1), 1, atol=1e-3)
    assert abs(turns.mean()) < 8
    assert 0.8 * SPREAD_DEG < turns.std() < 1.2 * SPREAD_DEG


def test_random_axes_of_other_leads_stay_of_their_kind():
    augmented = random_axis(ECG, "aVF", np.random.default_rng(1))
    chest = random_axis(ECG, "V2", np.random.default_rng(1))
    assert (augmented.leads, chest.leads) == (("aVF",), ("V2",))
    assert (
        lead("aVF", augmented).std() <= GOLDBERGER * np.sqrt(lead("I").var() + (lead("aVF") / GOLDBERGER).var()) + 1e-6
    )
    assert not np.array_equal(lead("V2", chest), lead("V2"))
