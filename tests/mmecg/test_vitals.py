from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.errors import VitalsError
from mmecg.vitals import SEX_LOINC, VITAL_DEFINITIONS, Vitals


@pytest.mark.parametrize("vital", VITAL_DEFINITIONS, ids=lambda vital: vital.name)
def test_ranges(vital: object) -> None:
    name, low, high = vital.name, vital.low, vital.high  # type: ignore[attr-defined]
    for value in (low, high):
        assert getattr(Vitals(**{name: value}), name) == value
    for value in (low - 1, high + 1, float("inf"), float("nan"), "abc", [1]):
        with pytest.raises(VitalsError) as caught:
            Vitals(**{name: value})  # type: ignore[arg-type]
        assert caught.value.field == f"vitals.{name}"
        assert str(high + 1) not in str(caught.value)


def test_loinc_codes_are_well_formed_and_unique() -> None:
    codes = [vital.loinc for vital in VITAL_DEFINITIONS] + [SEX_LOINC]
    assert len(set(codes)) == len(codes)
    for code in codes:
        digits, check = re.fullmatch(r"(\d{4,5})-(\d)", code).groups()  # type: ignore[union-attr]
        # Mod 10 check digit of LOINC (Luhn).
        doubled = "".join(str(int(digit) * (2 - place % 2)) for place, digit in enumerate(digits[::-1]))
        assert (10 - sum(map(int, doubled)) % 10) % 10 == int(check)


def test_missing_is_missing() -> None:
    assert Vitals().is_empty()
    assert Vitals.from_mapping({"age_years": None, "weight_kg": float("nan")}).is_empty()
    array = Vitals(height_cm=170, sex="female").to_array()
    assert array.dtype == np.float32
    assert array.shape == (10,)
    assert np.isnan(array[[0, 2, 3, 4, 5, 6, 7, 8]]).all()
    assert array[[1, 9]].tolist() == [170.0, 1.0]
    assert Vitals(sex="male").to_array()[9] == 0.0


def test_pressures_and_sex() -> None:
    with pytest.raises(VitalsError, match="not below systolic"):
        Vitals(systolic_bp_mmhg=80, diastolic_bp_mmhg=120)
    with pytest.raises(VitalsError, match="sex is unknown"):
        Vitals(sex="f")  # type: ignore[arg-type]
    with pytest.raises(VitalsError, match="'pulse' is unknown"):
        Vitals.from_mapping({"pulse": 70})


@given(st.dictionaries(st.sampled_from([vital.name for vital in VITAL_DEFINITIONS]), st.floats() | st.none()))
def test_any_mapping_is_accepted_or_refused(values: dict[str, float | None]) -> None:
    try:
        vitals = Vitals.from_mapping(values)
    except VitalsError:
        return
    for vital in VITAL_DEFINITIONS:
        value = getattr(vitals, vital.name)
        assert value is None or vital.low <= value <= vital.high
