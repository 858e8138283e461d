"""The comparison of a recording with the earlier one, as a message and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from mmecg_pb.v1 import prediction_service_pb2 as pb

from mmecg.errors import InvalidInputError
from mmecg.prediction.measured import Comparison, LeadChange, MeasuredChange, Part

Name = TypeVar("Name", bound=str)

_PARTS: dict[int, Part] = {pb.BEAT_PART_QRS: "qrs", pb.BEAT_PART_ST_T: "st_t"}
_CHANGES: dict[int, Literal["increased", "decreased", "unchanged"]] = {
    pb.MEASURED_CHANGE_KIND_INCREASED: "increased",
    pb.MEASURED_CHANGE_KIND_DECREASED: "decreased",
    pb.MEASURED_CHANGE_KIND_UNCHANGED: "unchanged",
}


def render_comparison(comparison: Comparison) -> pb.Comparison:
    """Render a comparison."""
    return pb.Comparison(
        prior_study_id=comparison.prior_study_id,
        days_before=comparison.days_before,
        leads=[
            pb.LeadChange(lead=one.lead, part=number_of(_PARTS, one.part), difference_mv=one.difference_mv)
            for one in comparison.leads
        ],
        measured=[
            pb.MeasuredChange(
                name=one.name, now=one.now, before=one.before, change=number_of(_CHANGES, one.change), limit=one.limit
            )
            for one in comparison.measured
        ],
        serial=comparison.serial,
    )


def parse_comparison(message: pb.Comparison) -> Comparison:
    """Read a comparison.

    Raises
    ------
    InvalidInputError
        A part of a beat or a kind of change that this version does not know.
    """
    return Comparison(
        prior_study_id=message.prior_study_id,
        days_before=message.days_before,
        leads=tuple(
            LeadChange(lead=one.lead, part=name_of(_PARTS, one.part, "part"), difference_mv=one.difference_mv)
            for one in message.leads
        ),
        measured=tuple(
            MeasuredChange(
                name=one.name,
                now=one.now,
                before=one.before,
                change=name_of(_CHANGES, one.change, "change"),
                limit=one.limit,
            )
            for one in message.measured
        ),
        serial=tuple(message.serial),
    )


def number_of(names: Mapping[int, Name], name: str) -> Any:
    """Return the number of an enum value by its name."""
    return next(number for number, known in names.items() if known == name)


def name_of(names: Mapping[int, Name], number: int, field: str) -> Name:
    """Return the name of an enum value by its number. Raises ``InvalidInputError`` for an unknown one."""
    if number not in names:
        raise InvalidInputError(f"{field} is {number}, which this version does not know; update mmecg", field=field)
    return names[number]
