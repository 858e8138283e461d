"""Vital signs and body measures: name, unit, LOINC code, plausible range. Missing is ``None``, never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import VitalsError

Sex = Literal["female", "male"]


@dataclass(frozen=True)
class VitalDefinition:
    """What one field of :class:`Vitals` means.

    Attributes
    ----------
    name : str
        Field name, unit included.
    unit : str
        UCUM unit.
    loinc : str
        LOINC code (loinc.org).
    low, high : float
        Plausible range, both ends allowed. It is meant to catch wrong units and typing errors, not illness: a value
        that a living adult or child has been recorded with lies inside.
    """

    name: str
    unit: str
    loinc: str
    low: float
    high: float


VITAL_DEFINITIONS: tuple[VitalDefinition, ...] = (
    VitalDefinition("age_years", "a", "30525-0", 0, 120),
    VitalDefinition("height_cm", "cm", "8302-2", 30, 250),
    VitalDefinition("weight_kg", "kg", "29463-7", 0.5, 400),
    VitalDefinition("heart_rate_bpm", "/min", "8867-4", 15, 350),
    VitalDefinition("systolic_bp_mmhg", "mm[Hg]", "8480-6", 30, 320),
    VitalDefinition("diastolic_bp_mmhg", "mm[Hg]", "8462-4", 10, 220),
    VitalDefinition("respiratory_rate_bpm", "/min", "9279-1", 3, 90),
    VitalDefinition("spo2_percent", "%", "59408-5", 30, 100),
    VitalDefinition("temperature_c", "Cel", "8310-5", 24, 45),
)
"""Numeric vitals in the order of :meth:`Vitals.to_array`. Sex (LOINC 76689-9, administrative) is a field of its own."""

SEX_LOINC = "76689-9"


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """Vital signs and body measures at the time of an ECG. ``None`` means not measured.

    Attributes
    ----------
    age_years, height_cm, weight_kg, heart_rate_bpm, systolic_bp_mmhg, diastolic_bp_mmhg, respiratory_rate_bpm, \
spo2_percent, temperature_c : float, optional
        See :data:`VITAL_DEFINITIONS` for units, LOINC codes and plausible ranges.
    sex : {"female", "male"}, optional

    Raises
    ------
    VitalsError
        A value is not a number or outside its plausible range, or diastolic is not below systolic pressure.
    """

    age_years: float | None = None
    sex: Sex | None = None
    height_cm: float | None = None
    weight_kg: float | None = None
    heart_rate_bpm: float | None = None
    systolic_bp_mmhg: float | None = None
    diastolic_bp_mmhg: float | None = None
    respiratory_rate_bpm: float | None = None
    spo2_percent: float | None = None
    temperature_c: float | None = None

    def __post_init__(self) -> None:
        for vital in VITAL_DEFINITIONS:
            value = getattr(self, vital.name)
            if value is not None:
                object.__setattr__(self, vital.name, _check(vital, value))
        if self.sex not in (None, "female", "male"):
            raise VitalsError("sex is unknown, expected 'female', 'male' or nothing", field="vitals.sex")
        systolic, diastolic = self.systolic_bp_mmhg, self.diastolic_bp_mmhg
        if systolic is not None and diastolic is not None and diastolic >= systolic:
            raise VitalsError(
                "diastolic pressure is not below systolic pressure; check the order of the two",
                field="vitals.diastolic_bp_mmhg",
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Vitals:
        """Build from a mapping of field names; ``None`` and NaN are missing.

        Raises
        ------
        VitalsError
            An unknown name, or any reason for which the constructor refuses.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise VitalsError(
                    f"vital {str(name)[:30]!r} is unknown, expected one of {', '.join(sorted(known))}", field="vitals"
                )
        return cls(**{name: value for name, value in values.items() if not _is_missing(value)})

    def to_array(self) -> NDArray[np.float32]:
        """Return the numeric vitals and sex as float32, shape (10,); NaN is missing, sex is 1 female, 0 male."""
        numbers = [getattr(self, vital.name) for vital in VITAL_DEFINITIONS]
        sex = None if self.sex is None else float(self.sex == "female")
        return np.array([np.nan if value is None else value for value in [*numbers, sex]], np.float32)

    def is_empty(self) -> bool:
        """Return True if nothing was measured."""
        return all(value is None for value in vars(self).values())


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check(vital: VitalDefinition, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise VitalsError(f"{vital.name} is not a number", field=f"vitals.{vital.name}") from None
    if not vital.low <= number <= vital.high:
        # The value itself stays out of the message: it is clinical data.
        raise VitalsError(
            f"{vital.name} is outside its plausible range of {vital.low:g} to {vital.high:g} {vital.unit}; "
            "check the unit, or leave it out if it was not measured",
            field=f"vitals.{vital.name}",
        )
    return number
