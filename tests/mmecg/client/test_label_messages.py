"""Label mining messages: what goes in comes out, and byte offsets point at the same words as code point offsets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmecg_pb.v1 import label_mining_service_pb2 as pb

from mmecg.client.label_messages import parse_mined_report, render_mined_report
from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import (
    LabelAssertion,
    MinedLabel,
    MinedReport,
    Resolution,
    SerialResolution,
    Status,
)

WORDS = st.text(max_size=8)
PROBABILITY = st.none() | st.floats(0, 1)
OPEN = st.none() | st.booleans()
SERIAL = st.builds(
    SerialResolution, st.sampled_from(Resolution), WORDS, OPEN, OPEN, OPEN, WORDS, st.none() | st.floats(0, 1e5)
)


@st.composite
def mined_texts(draw):
    text = draw(st.text(max_size=60))
    offsets = st.integers(0, len(text))

    def span():
        return sorted((draw(offsets), draw(offsets)))

    assertions = []
    for _ in range(draw(st.integers(0, 4))):
        cue = draw(WORDS)
        cue_span = span() if cue and draw(st.booleans()) else (-1, -1)
        assertions.append(
            LabelAssertion(
                draw(WORDS),
                draw(st.sampled_from(Status)),
                *span(),
                draw(WORDS),
                cue=cue,
                cue_start=cue_span[0],
                cue_end=cue_span[1],
                qualifiers=tuple(draw(st.lists(st.tuples(WORDS, WORDS), max_size=2))),
                age_status=draw(st.none() | st.sampled_from(Status)),
                cause_status=draw(st.none() | st.sampled_from(Status)),
                language=draw(st.sampled_from(("de", "en", "sv"))),
                needs_prior=draw(st.booleans()),
                alternatives=tuple(draw(st.lists(WORDS, max_size=2))),
                probability=draw(PROBABILITY),
                change=draw(WORDS),
                serial=draw(st.none() | SERIAL),
            )
        )
    label = st.builds(MinedLabel, WORDS, WORDS, st.none() | st.booleans(), PROBABILITY)
    labels = draw(st.lists(label, max_size=3))
    return text, MinedReport(tuple(assertions), tuple(labels), tuple(draw(st.lists(WORDS, max_size=2))))


@given(mined_texts())
def test_a_mined_report_comes_back_as_it_was_sent(case):
    text, report = case
    assert parse_mined_report(render_mined_report(report, text)) == report


@given(mined_texts())
def test_byte_offsets_name_the_same_words(case):
    text, report = case
    data = text.encode()
    for assertion, message in zip(report.assertions, render_mined_report(report, text).assertions, strict=True):
        evidence = message.evidence
        assert data[evidence.start_byte : evidence.end_byte].decode() == text[assertion.start : assertion.end]


def test_every_status_has_a_number_of_its_own():
    names = {name.removeprefix("ASSERTION_STATUS_") for name in pb.AssertionStatus.DESCRIPTOR.values_by_name}
    assert names == {"UNSPECIFIED", *(status.name for status in Status)}


def test_every_verdict_has_a_number_of_its_own():
    names = {name.removeprefix("SERIAL_VERDICT_") for name in pb.SerialVerdict.DESCRIPTOR.values_by_name}
    assert names == {"UNSPECIFIED", *(verdict.name for verdict in Resolution)}


@pytest.mark.parametrize("number", [0, 77])
def test_an_unknown_status_is_refused(number):
    message = pb.MineLabelsResponse(assertions=[pb.LabelAssertion(finding="AFIB")])
    message.assertions[0].status = number
    with pytest.raises(InvalidInputError, match="status"):
        parse_mined_report(message)


@pytest.mark.parametrize("number", [0, 77])
def test_an_unknown_verdict_is_refused(number):
    message = pb.MineLabelsResponse(assertions=[pb.LabelAssertion(finding="AFIB", status=pb.ASSERTION_STATUS_SERIAL)])
    message.assertions[0].serial.verdict = number
    with pytest.raises(InvalidInputError, match="verdict"):
        parse_mined_report(message)
