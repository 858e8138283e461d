"""Contract: domain to proto and back is the identity for every message, and decoding refuses or succeeds."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmecg_pb.v1 import ecg_pb2, query_pb2, study_pb2

from mmecg.client.messages import (
    parse_ecg,
    parse_embedding,
    parse_filter,
    parse_study,
    parse_vitals,
    render_ecg,
    render_embedding,
    render_filter,
    render_study,
    render_time,
    render_vitals,
)
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError, QueryError, SignalError
from mmecg.quality import QUALITY_KINDS
from mmecg.report import Report
from mmecg.search import Filter
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=80)
TIMES = st.none() | st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1))
SETS = st.frozensets(IDS, max_size=4)
SEXES = st.sampled_from([None, "female", "male"])


@st.composite
def ecgs(draw) -> Ecg:
    leads = draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=12, unique=True))
    rate = draw(st.floats(50, 500))
    samples = int(np.ceil(rate)) + draw(st.integers(0, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.01, 1.0, 4.0]))
    return Ecg.from_array(rng.standard_normal((len(leads), samples)) * scale, sampling_rate_hz=rate, leads=leads)


@st.composite
def vitals(draw) -> Vitals:
    chosen = draw(st.sets(st.sampled_from(VITAL_DEFINITIONS)))
    values = {vital.name: draw(st.floats(vital.low, vital.high)) for vital in chosen}
    if values.get("diastolic_bp_mmhg", 0) >= values.get("systolic_bp_mmhg", 1000):
        values.pop("diastolic_bp_mmhg")
    return Vitals(sex=draw(SEXES), **values)


NOTES = st.builds(ClinicalNote, TEXTS, TEXTS.filter(bool), TIMES)
STUDIES = st.builds(
    Study,
    study_id=IDS,
    subject_id=IDS,
    acquired_at=TIMES,
    ecg=st.none() | ecgs(),
    report=st.none() | st.builds(Report, TEXTS, TEXTS),
    notes=st.lists(NOTES, max_size=3).map(tuple),
    vitals=vitals(),
    labels=st.dictionaries(IDS, st.floats(0, 100), max_size=3),
    site=st.none() | TEXTS,
    device=st.none() | TEXTS,
    attributes=st.dictionaries(IDS, TEXTS, max_size=3),
)


@st.composite
def filters(draw) -> Filter:
    low, high = sorted((draw(st.floats(0, 120)), draw(st.floats(0, 120))))
    start, end = draw(TIMES), draw(TIMES)
    if start is not None and end is not None and start > end:
        start, end = end, start
    return Filter(
        subject_ids=draw(st.none() | SETS),
        exclude_subject_ids=draw(SETS),
        study_ids=draw(st.none() | SETS),
        exclude_study_ids=draw(SETS),
        acquired_from=start,
        acquired_before=end,
        age_min_years=draw(st.sampled_from([None, low])),
        age_max_years=draw(st.sampled_from([None, high])),
        sex=draw(SEXES),
        sites=draw(st.none() | SETS),
        devices=draw(st.none() | SETS),
        labels_any=draw(SETS),
        labels_all=draw(SETS),
        labels_none=draw(SETS),
        text_contains=draw(st.none() | TEXTS),
        exclude_quality=draw(st.frozensets(st.sampled_from(QUALITY_KINDS))),
    )


def assert_same_ecg(got: Ecg | None, expected: Ecg | None, tolerance: float) -> None:
    if expected is None:
        assert got is None
        return
    assert got.leads == expected.leads
    assert got.sampling_rate_hz == expected.sampling_rate_hz
    assert np.abs(got.signal - expected.signal).max() <= tolerance


@SETTINGS
@given(ecg=ecgs())
def test_ecg_as_float32_is_exact_and_as_int16_within_half_a_microvolt(ecg):
    wire = render_ecg(ecg, encoding="float32").SerializeToString()
    assert_same_ecg(parse_ecg(ecg_pb2.Ecg.FromString(wire)), ecg, 0.0)
    wire = render_ecg(ecg).SerializeToString()
    assert_same_ecg(parse_ecg(ecg_pb2.Ecg.FromString(wire)), ecg, 0.0005 + 1e-5)


def test_ecg_of_whole_microvolts_is_exact_as_int16_at_half_the_bytes():
    counts = np.random.default_rng(0).integers(-3000, 3000, (12, 5000))
    ecg = Ecg.from_array(counts / 1000, sampling_rate_hz=500)
    message = render_ecg(ecg)
    assert len(message.packed_int16.counts) == 120_000
    np.testing.assert_array_equal(parse_ecg(message).signal, ecg.signal)


def test_ecg_beyond_the_int16_range_is_sent_as_float32():
    signal = np.sin(np.arange(1000) / 9)[None].repeat(12, 0)
    signal[0, :3] = 40.0
    ecg = Ecg.from_array(signal, sampling_rate_hz=100)
    message = render_ecg(ecg)
    assert message.WhichOneof("samples") == "float32_millivolts"
    np.testing.assert_array_equal(parse_ecg(message).signal, ecg.signal)


def test_leads_are_placed_by_name_on_the_wire():
    rng = np.random.default_rng(1)
    signal = rng.standard_normal((12, 500)).astype("<f4")
    order = rng.permutation(12)
    straight = ecg_pb2.Ecg(leads=LEADS, sampling_rate_hz=100, float32_millivolts=signal.tobytes())
    permuted = ecg_pb2.Ecg(
        leads=[LEADS[i] for i in order], sampling_rate_hz=100, float32_millivolts=signal[order].tobytes()
    )
    np.testing.assert_array_equal(parse_ecg(straight).signal, parse_ecg(permuted).signal)


@SETTINGS
@given(item=vitals())
def test_vitals(item):
    assert parse_vitals(study_pb2.Vitals.FromString(render_vitals(item).SerializeToString())) == item


@SETTINGS
@given(study=STUDIES)
def test_study(study):
    got = parse_study(study_pb2.Study.FromString(render_study(study, encoding="float32").SerializeToString()))
    assert_same_ecg(got.ecg, study.ecg, 0.0)
    for name in ("study_id", "subject_id", "acquired_at", "report", "notes", "vitals", "labels", "site", "device"):
        assert getattr(got, name) == getattr(study, name), name
    assert got.attributes == study.attributes


@SETTINGS
@given(where=filters())
def test_filter(where):
    assert parse_filter(query_pb2.Filter.FromString(render_filter(where).SerializeToString())) == where


def test_every_field_of_filter_and_vitals_has_a_proto_field():
    from dataclasses import fields

    assert {field.name for field in fields(Filter)} == set(query_pb2.Filter.DESCRIPTOR.fields_by_name)
    assert {field.name for field in fields(Vitals)} == set(study_pb2.Vitals.DESCRIPTOR.fields_by_name)


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_embedding(seed):
    vector = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    message = query_pb2.Embedding.FromString(render_embedding(vector, "f" * 64).SerializeToString())
    np.testing.assert_array_equal(parse_embedding(message), vector)
    assert message.fingerprint == "f" * 64
    packed = query_pb2.Embedding(float32_values=vector.astype("<f4").tobytes())
    np.testing.assert_array_equal(parse_embedding(packed), vector)


@pytest.mark.parametrize("message", [
    query_pb2.Embedding(float32_values=b"abc"), query_pb2.Embedding(float32_values=bytes(8), values=[0.0, 0.0])
])  # fmt: skip
def test_an_embedding_as_bytes_is_whole_and_given_once(message):
    with pytest.raises(QueryError, match="bytes of values"):
        parse_embedding(message)


def test_a_zoned_time_is_carried_as_utc():
    there = datetime(2020, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert render_time(there).ToDatetime() == datetime(2020, 1, 1, 10)
    assert render_time(there.astimezone(UTC)) == render_time(there)


def test_report_without_clean_text_is_cleaned():
    message = study_pb2.Study(study_id="s", subject_id="p", report=study_pb2.Report(raw="Sinus\n rhythm"))
    assert parse_study(message).report == Report("Sinus\n rhythm", "Sinus rhythm")


@st.composite
def ecg_messages(draw, mutation: str) -> ecg_pb2.Ecg:
    """A recording as it should be, but for one mutation."""
    leads = draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=12, unique=True))
    rate = draw(st.sampled_from([100.0, 250.0, 500.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = rng.integers(-2000, 2000, (len(leads), int(rate) + draw(st.integers(0, 50))))
    packed = draw(st.booleans())
    content = counts.astype("<i2").tobytes() if packed else (counts / 1000).astype("<f4").tobytes()
    scale = draw(st.sampled_from([0.5, 1.0, 4.88]))
    if mutation == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif mutation == "samples":
        noise = draw(st.binary(min_size=1, max_size=16))
        at = draw(st.integers(0, len(content) - len(noise)))
        content = content[:at] + noise + content[at + len(noise) :]
    elif mutation == "leads":
        at = draw(st.integers(0, len(leads) - 1))
        leads[at : at + draw(st.integers(0, 2))] = draw(st.lists(st.sampled_from([*LEADS, "avf", "X", ""]), max_size=2))
    elif mutation == "rate":
        rate = draw(st.floats())
    elif mutation == "scale":
        scale = draw(st.floats())
    message = ecg_pb2.Ecg(leads=leads, sampling_rate_hz=rate)
    if packed:
        message.packed_int16.counts, message.packed_int16.microvolts_per_count = content, scale
    else:
        message.float32_millivolts = content
    return message


@pytest.mark.parametrize("mutation", ["none", "cut", "samples", "leads", "rate", "scale"])
def test_decoding_of_a_mutated_recording_refuses_or_succeeds(mutation):
    @SETTINGS
    @given(message=ecg_messages(mutation))
    def check(message):
        try:
            ecg = parse_ecg(message)
        except SignalError as refusal:
            ecg, field = None, refusal.field
        if ecg is None:
            assert mutation != "none"
            assert field.startswith("ecg")
        else:
            assert np.isfinite(ecg.signal).all()
            assert ecg.signal.any()

    check()


BROKEN_FILTERS = {
    "none": lambda message: None,
    "sex": lambda message: setattr(message, "sex", 7),
    "age": lambda message: setattr(message, "age_min_years", float("nan")),
    "ages": lambda message: message.MergeFrom(query_pb2.Filter(age_min_years=9, age_max_years=1)),
    "time": lambda message: message.acquired_from.FromNanoseconds(2**62) or setattr(message.acquired_from, "nanos", -1),
    "text": lambda message: setattr(message, "text_contains", "a\x00b"),
    "field": lambda message: message.MergeFromString(b"\xfa\x06\x03abc"),
}


@pytest.mark.parametrize("mutation", BROKEN_FILTERS)
def test_decoding_of_a_mutated_filter(mutation):
    @SETTINGS
    @given(where=filters())
    def check(where):
        message = render_filter(where)
        BROKEN_FILTERS[mutation](message)
        if mutation == "none":
            assert parse_filter(message) == where
        else:
            with pytest.raises(InvalidInputError):
                parse_filter(message)

    check()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(where=filters(), study=STUDIES, data=st.data())
def test_decoding_of_mutated_bytes_refuses_or_succeeds(where, study, data):
    from google.protobuf.message import DecodeError

    for message, parse in ((render_filter(where), parse_filter), (render_study(study), parse_study)):
        content = bytearray(message.SerializeToString() or b"\x00")
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        try:
            parse(type(message).FromString(bytes(content)))
        except (DecodeError, InvalidInputError):
            continue


@pytest.mark.parametrize("name", ["float32", "int16"])
def test_missing_leads_are_not_sent(name):
    ecg = Ecg.from_array(np.random.default_rng(2).standard_normal((2, 300)), sampling_rate_hz=100, leads=("V2", "I"))
    message = render_ecg(ecg, encoding=name)
    assert list(message.leads) == ["I", "V2"]
    assert parse_ecg(message).leads == ("I", "V2")
