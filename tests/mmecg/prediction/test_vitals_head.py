"""What vitals add: nothing where there are none, what was put in where they matter."""

import numpy as np
import pytest

from mmecg.evaluation.history_fitting import fit_vitals
from mmecg.prediction.vitals_head import CHANNELS, VitalsHead, vitals_channels
from mmecg.vitals import Vitals


def test_channels_are_zero_where_nothing_is_known() -> None:
    empty, other, full = vitals_channels(
        [
            Vitals(),
            Vitals(heart_rate_bpm=70, spo2_percent=98),
            Vitals(age_years=77, sex="female", height_cm=158, weight_kg=88),
        ]
    )
    assert not empty.any()
    assert not other.any(), "not seen in fitting"
    assert dict(zip(CHANNELS, full.tolist(), strict=True)) == pytest.approx(
        {
            "age_known": 1, "age": 1, "age_squared": 1, "sex_known": 1, "female": 0.5, "age_female": 0.5,
            "height_known": 1, "height": -1, "weight_known": 1, "weight": 1,
        }
    )  # fmt: skip
    assert np.abs(vitals_channels([Vitals(weight_kg=250, sex="male")])).max() == 4, "beyond, nothing is known"
    assert vitals_channels([]).shape == (0, len(CHANNELS))


def test_without_vitals_log_odds_stay_bit_by_bit() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 5))
    head = VitalsHead(*random.normal(size=(2, len(CHANNELS), 5)).astype(np.float32))
    found = head.apply(logits, vitals_channels([Vitals(), Vitals(age_years=30)]))
    assert (found[0] == logits[0]).all()
    assert (found[1] != logits[1]).all()


def test_fit_finds_what_age_and_sex_add() -> None:
    random = np.random.default_rng(1)
    people = [
        Vitals(age_years=float(age), sex="female" if female else "male")
        for age, female in zip(random.integers(20, 89, 6000), random.random(6000) < 0.5, strict=True)
    ]
    channels = vitals_channels(people)
    logits = random.normal(-1, 1, (6000, 2))
    truth = logits.copy()
    truth[:, 0] += 0.8 * channels[:, CHANNELS.index("age")] - 1.0 * channels[:, CHANNELS.index("female")]
    gold = random.random(truth.shape) < 1 / (1 + np.exp(-truth))
    weight = fit_vitals(logits, channels, gold)
    head = VitalsHead(weight, weight)
    assert head.weight[CHANNELS.index("age"), 0] == pytest.approx(0.8, abs=0.12)
    assert head.weight[CHANNELS.index("female"), 0] == pytest.approx(-1.0, abs=0.2)
    assert np.abs(head.apply(logits, channels)[:, 1] - logits[:, 1]).mean() < 0.12
