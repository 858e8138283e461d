"""Label mining messages to and from domain objects, shared by client and server as ``messages.py`` is."""

from __future__ import annotations

from collections.abc import Sequence

from mmecg_pb.v1 import label_mining_service_pb2 as pb

from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import (
    LabelAssertion,
    MinedLabel,
    MinedReport,
    Resolution,
    SerialResolution,
    Status,
)

_TO_PROTO: dict[Status, pb.AssertionStatus.ValueType] = {
    status: pb.AssertionStatus.Value(f"ASSERTION_STATUS_{status.name}") for status in Status
}
_FROM_PROTO: dict[int, Status] = {int(number): status for status, number in _TO_PROTO.items()}
_VERDICT_TO_PROTO: dict[Resolution, pb.SerialVerdict.ValueType] = {
    verdict: pb.SerialVerdict.Value(f"SERIAL_VERDICT_{verdict.name}") for verdict in Resolution
}
_VERDICT_FROM_PROTO: dict[int, Resolution] = {int(number): verdict for verdict, number in _VERDICT_TO_PROTO.items()}


def render_mined_report(report: MinedReport, text: str) -> pb.MineLabelsResponse:
    """Render what was mined.

    Parameters
    ----------
    report : MinedReport
    text : str
        The raw text that the offsets refer to.
    """
    offsets = _byte_offsets(text, report.assertions)
    return pb.MineLabelsResponse(
        assertions=[_render_assertion(assertion, offsets) for assertion in report.assertions],
        labels=[
            pb.MinedLabel(code=label.code, finding=label.finding, value=label.value, probability=label.probability)
            for label in report.labels
        ],
        flags=report.flags,
    )


def parse_mined_report(message: pb.MineLabelsResponse) -> MinedReport:
    """Read what was mined.

    Raises
    ------
    InvalidInputError
        A status or a verdict that this version does not know.
    """
    return MinedReport(
        assertions=tuple(map(_parse_assertion, message.assertions)),
        labels=tuple(
            MinedLabel(
                label.code,
                label.finding,
                label.value if label.HasField("value") else None,
                label.probability if label.HasField("probability") else None,
            )
            for label in message.labels
        ),
        flags=tuple(message.flags),
    )


def _render_assertion(assertion: LabelAssertion, offsets: dict[int, int]) -> pb.LabelAssertion:
    message = pb.LabelAssertion(
        finding=assertion.finding,
        status=_TO_PROTO[assertion.status],
        evidence=_span(assertion.start, assertion.end, offsets),
        rule=assertion.rule,
        qualifiers=[pb.Qualifier(kind=kind, value=value) for kind, value in assertion.qualifiers],
        age_status=_render_status(assertion.age_status),
        cause_status=_render_status(assertion.cause_status),
        language=assertion.language,
        needs_prior=assertion.needs_prior,
        alternatives=assertion.alternatives,
        probability=assertion.probability,
        change=assertion.change,
        serial=_render_serial(assertion.serial) if assertion.serial else None,
    )
    if assertion.cue:
        message.cue.rule = assertion.cue
        if assertion.cue_start >= 0:
            message.cue.evidence.CopyFrom(_span(assertion.cue_start, assertion.cue_end, offsets))
    return message


def _parse_assertion(message: pb.LabelAssertion) -> LabelAssertion:
    status = _parse_status(message.status, "status")
    if status is None:
        raise InvalidInputError("assertion has no status, expected one; update mmecg", field="status")
    has_cue_span = message.HasField("cue") and message.cue.HasField("evidence")
    return LabelAssertion(
        finding=message.finding,
        status=status,
        start=message.evidence.start_char,
        end=message.evidence.end_char,
        rule=message.rule,
        cue=message.cue.rule,
        cue_start=message.cue.evidence.start_char if has_cue_span else -1,
        cue_end=message.cue.evidence.end_char if has_cue_span else -1,
        qualifiers=tuple((qualifier.kind, qualifier.value) for qualifier in message.qualifiers),
        age_status=_parse_status(message.age_status, "age_status"),
        cause_status=_parse_status(message.cause_status, "cause_status"),
        language=message.language,
        needs_prior=message.needs_prior,
        alternatives=tuple(message.alternatives),
        probability=message.probability if message.HasField("probability") else None,
        change=message.change,
        serial=_parse_serial(message.serial) if message.HasField("serial") else None,
    )


def _render_serial(serial: SerialResolution) -> pb.SerialResolution:
    return pb.SerialResolution(
        verdict=_VERDICT_TO_PROTO[serial.resolution],
        reason=serial.reason,
        now=serial.now,
        before=serial.before,
        prior_value=serial.prior_value,
        prior_study_id=serial.prior_study_id,
        days_since_prior=serial.days_since_prior,
    )


def _parse_serial(message: pb.SerialResolution) -> SerialResolution:
    if message.verdict not in _VERDICT_FROM_PROTO:
        raise InvalidInputError(
            f"verdict is {message.verdict}, which this version does not know; update mmecg", field="verdict"
        )
    return SerialResolution(
        resolution=_VERDICT_FROM_PROTO[message.verdict],
        reason=message.reason,
        now=message.now if message.HasField("now") else None,
        before=message.before if message.HasField("before") else None,
        prior_value=message.prior_value if message.HasField("prior_value") else None,
        prior_study_id=message.prior_study_id,
        days_since_prior=message.days_since_prior if message.HasField("days_since_prior") else None,
    )


def _render_status(status: Status | None) -> pb.AssertionStatus.ValueType:
    return pb.ASSERTION_STATUS_UNSPECIFIED if status is None else _TO_PROTO[status]


def _parse_status(number: int, field: str) -> Status | None:
    if number == pb.ASSERTION_STATUS_UNSPECIFIED:
        return None
    if number not in _FROM_PROTO:
        raise InvalidInputError(f"{field} is {number}, which this version does not know; update mmecg", field=field)
    return _FROM_PROTO[number]


def _span(start: int, end: int, offsets: dict[int, int]) -> pb.TextSpan:
    return pb.TextSpan(start_char=start, end_char=end, start_byte=offsets[start], end_byte=offsets[end])


def _byte_offsets(text: str, assertions: Sequence[LabelAssertion]) -> dict[int, int]:
    """Return the UTF-8 offset of every code point offset that the assertions name, in one pass."""
    named = {
        offset
        for assertion in assertions
        for offset in (assertion.start, assertion.end, assertion.cue_start, assertion.cue_end)
        if offset >= 0
    }
    found, last, done = {}, 0, 0
    for offset in sorted(named):
        done += len(text[last:offset].encode())
        found[offset], last = done, offset
    return found
