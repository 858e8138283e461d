"""What is measured in a recording, and beside the earlier one: values only, as in :mod:`mmecg.prediction.result`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["qrs", "st_t"]
"""Of a beat."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number about the subject or the recording.

    ``age_years`` is regressed; its interval is conformal, at the promised level. All others are measured in the
    recording (:func:`mmecg.prediction.measure.measure`); the middle 80 % of its beats lie between ``low`` and ``high``.

    Attributes
    ----------
    name : str
        What, with its unit: ``"heart_rate_bpm"``.
    value : float
        NaN if it cannot be measured.
    low, high : float
        NaN where there is no interval.
    lead : str
        Where it was measured; empty if in all leads together.
    reason : str
        Why it cannot be measured; empty otherwise.
    """

    name: str
    value: float
    low: float
    high: float
    lead: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LeadChange:
    """A lead whose median beat differs from the earlier one in QRS or in ST-T.

    Attributes
    ----------
    lead : str
    part : {"qrs", "st_t"}
    difference_mv : float
        Root mean square.
    """

    lead: str
    part: Part
    difference_mv: float


@dataclass(frozen=True, kw_only=True)
class MeasuredChange:
    """A measurement beside that of an earlier ECG.

    Attributes
    ----------
    name : str
        ``"heart_rate_bpm"``, ``"qrs_duration_ms"``; ``"qrs_amplitude_mv"`` and ``"t_amplitude_mv"`` are of all leads
        together, their root mean square.
    now, before : float
    change : {"increased", "decreased", "unchanged"}
        Unchanged within ``limit``.
    limit : float
        Beyond which it has changed: a difference, for amplitudes a factor.
    """

    name: str
    now: float
    before: float
    change: Literal["increased", "decreased", "unchanged"]
    limit: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The recording beside the subject's latest earlier one.

    Attributes
    ----------
    prior_study_id : str
    days_before : float
    leads : tuple of LeadChange
        Greatest difference first.
    measured : tuple of MeasuredChange
        What could be measured in both.
    serial : tuple of str
        Serial findings of the vocabulary that hold between the two, by measurements or by labels.
    """

    prior_study_id: str
    days_before: float
    leads: tuple[LeadChange, ...]
    measured: tuple[MeasuredChange, ...]
    serial: tuple[str, ...]
