"""mmecg.v1 messages to and from domain objects: ``render_*`` builds a message, ``parse_*`` checks and reads one.

Client and server share this module, so a message means the same at both ends. Times without a zone are carried as UTC
and come back without a zone. ``field`` of an error is the path of the message field.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, cast

import numpy as np
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet
from mmecg_pb.v1 import ecg_pb2, query_pb2, study_pb2
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError, QueryError, SignalError, VitalsError
from mmecg.report import Report, check_text
from mmecg.search import Filter
from mmecg.study import ClinicalNote, Study, check_id, without_zone
from mmecg.vitals import VITAL_DEFINITIONS, Sex, Vitals

EcgEncoding = Literal["int16", "float32"]

INT16_MICROVOLTS_PER_COUNT = 1.0
"""Scale of an ECG that the client packs; the rounding error is at most half a microvolt, below any device's noise."""

MAX_ATTRIBUTES = 64

_SEX_TO_PROTO: dict[Sex, study_pb2.Sex.ValueType] = {"female": study_pb2.SEX_FEMALE, "male": study_pb2.SEX_MALE}
_SEX_FROM_PROTO: dict[int, Sex] = {int(number): sex for sex, number in _SEX_TO_PROTO.items()}
_FILTER_SETS = ("subject_ids", "study_ids", "sites", "devices")
_FILTER_LISTS = (
    "exclude_subject_ids",
    "exclude_study_ids",
    "labels_any",
    "labels_all",
    "labels_none",
    "exclude_quality",
)


def render_ecg(ecg: Ecg, *, encoding: EcgEncoding = "int16") -> ecg_pb2.Ecg:
    """Pack the leads that exist.

    Parameters
    ----------
    ecg : Ecg
    encoding : {"int16", "float32"}
        ``"int16"`` packs counts of 1 µV (half the bytes); a signal beyond ±32.767 mV is sent as float32 all the same.
    """
    signal = ecg.signal[ecg.lead_mask]
    message = ecg_pb2.Ecg(leads=ecg.leads, sampling_rate_hz=ecg.sampling_rate_hz)
    counts = np.rint(signal * np.float32(1000.0 / INT16_MICROVOLTS_PER_COUNT)) if encoding == "int16" else None
    # Counts that are all zero would turn a tiny signal into a refused one.
    if counts is not None and 0 < np.abs(counts).max() <= 32767:
        message.packed_int16.counts = counts.astype("<i2").tobytes()
        message.packed_int16.microvolts_per_count = INT16_MICROVOLTS_PER_COUNT
    else:
        message.float32_millivolts = signal.astype("<f4", copy=False).tobytes()
    return message


def parse_ecg(message: ecg_pb2.Ecg) -> Ecg:
    """Decode and check a recording.

    Raises
    ------
    SignalError
        No samples, bytes that are no whole number of samples and leads, or what :meth:`Ecg.from_array` refuses.
    """
    check_known(message, "ecg")
    kind = message.WhichOneof("samples")
    if kind == "wfdb":
        return _parse_wfdb(message)
    if kind == "packed_int16":
        scale = message.packed_int16.microvolts_per_count
        if not (np.isfinite(scale) and scale > 0):
            raise SignalError(
                f"microvolts_per_count is {scale:g}, expected a positive number; give the size of one count",
                field="ecg.packed_int16.microvolts_per_count",
            )
        counts = _matrix(message.packed_int16.counts, "<i2", len(message.leads))
        # In float32, and divided: counts of whole microvolts come back as the nearest float32 of their millivolts.
        with np.errstate(all="ignore"):
            signal: NDArray[np.generic] = np.divide(counts, np.float32(1000.0 / scale), dtype=np.float32)
    elif kind == "float32_millivolts":
        signal = _matrix(message.float32_millivolts, "<f4", len(message.leads))
    else:
        raise SignalError(
            "ecg has no samples, expected packed_int16, float32_millivolts or wfdb; set one of them",
            field="ecg.samples",
        )
    return Ecg.from_array(signal, sampling_rate_hz=message.sampling_rate_hz, leads=list(message.leads) or None)


def render_vitals(vitals: Vitals) -> study_pb2.Vitals:
    """Set the fields that were measured."""
    message = study_pb2.Vitals(sex=_render_sex(vitals.sex))
    for vital in VITAL_DEFINITIONS:
        value = getattr(vitals, vital.name)
        if value is not None:
            setattr(message, vital.name, value)
    return message


def parse_vitals(message: study_pb2.Vitals) -> Vitals:
    """Read and check vital signs; a field that is not set is missing, a field that is NaN is refused.

    Raises
    ------
    VitalsError
        See :class:`Vitals`; also for a sex or a field that is unknown.
    """
    if len(UnknownFieldSet(message)):
        raise VitalsError("vitals has a field that this version does not know; update mmecg", field="vitals")
    if message.sex not in (study_pb2.SEX_UNSPECIFIED, *_SEX_FROM_PROTO):
        raise VitalsError(f"sex is {message.sex}, expected SEX_FEMALE, SEX_MALE or nothing", field="vitals.sex")
    numbers = {field.name: value for field, value in message.ListFields() if field.name != "sex"}
    return Vitals(sex=_SEX_FROM_PROTO.get(message.sex), **numbers)


def render_study(study: Study, *, encoding: EcgEncoding = "int16") -> study_pb2.Study:
    """Render a study with all that it has."""
    message = study_pb2.Study(
        study_id=study.study_id,
        subject_id=study.subject_id,
        acquired_at=render_time(study.acquired_at),
        notes=[_render_note(note) for note in study.notes],
        label_likelihoods_percent=study.labels,
        site=study.site,
        device=study.device,
        attributes=study.attributes,
    )
    if study.ecg is not None:
        message.ecg.CopyFrom(render_ecg(study.ecg, encoding=encoding))
    if study.report is not None:
        message.report.CopyFrom(study_pb2.Report(raw=study.report.raw, text=study.report.text))
    if not study.vitals.is_empty():
        message.vitals.CopyFrom(render_vitals(study.vitals))
    return message


def parse_study(message: study_pb2.Study) -> Study:
    """Read and check a study.

    Raises
    ------
    InvalidInputError
        An id, the ECG, a text, a vital sign, a label's likelihood or a field that cannot be used.
    """
    check_known(message, "study")
    check_id(message.study_id, "study_id")
    check_id(message.subject_id, "subject_id")
    _check_labels(message.label_likelihoods_percent)
    if len(message.attributes) > MAX_ATTRIBUTES:
        raise InvalidInputError(
            f"study has {len(message.attributes)} attributes, expected at most {MAX_ATTRIBUTES}", field="attributes"
        )
    for value in message.attributes.values():
        check_text(value, field="attributes")
    return Study(
        study_id=message.study_id,
        subject_id=message.subject_id,
        acquired_at=parse_time(message, "acquired_at"),
        ecg=parse_ecg(message.ecg) if message.HasField("ecg") else None,
        report=_parse_report(message.report) if message.HasField("report") else None,
        notes=tuple(_parse_note(note) for note in message.notes),
        vitals=parse_vitals(message.vitals),
        labels=dict(message.label_likelihoods_percent),
        site=message.site if message.HasField("site") else None,
        device=message.device if message.HasField("device") else None,
        attributes=dict(message.attributes),
    )


def render_filter(where: Filter) -> query_pb2.Filter:
    """Render the conditions that are given."""
    message = query_pb2.Filter(
        acquired_from=render_time(where.acquired_from),
        acquired_before=render_time(where.acquired_before),
        age_min_years=where.age_min_years,
        age_max_years=where.age_max_years,
        sex=_render_sex(where.sex),
        text_contains=where.text_contains,
    )
    for name in _FILTER_LISTS:
        getattr(message, name).extend(sorted(getattr(where, name)))
    for name in _FILTER_SETS:
        values = getattr(where, name)
        if values is not None:
            getattr(message, name).CopyFrom(query_pb2.StringSet(values=sorted(values)))
    return message


def parse_filter(message: query_pb2.Filter) -> Filter:
    """Read and check a filter.

    Raises
    ------
    QueryError
        A field that this version does not know (ignoring it would let too much pass), an unknown sex, an age that is
        not finite or a lower bound above its upper one.
    """
    check_known(message, "filter")
    if message.sex not in (study_pb2.SEX_UNSPECIFIED, *_SEX_FROM_PROTO):
        raise QueryError(f"filter.sex is {message.sex}, expected SEX_FEMALE or SEX_MALE", field="filter.sex")
    youngest, oldest = _age(message, "age_min_years"), _age(message, "age_max_years")
    if youngest is not None and oldest is not None and youngest > oldest:
        raise QueryError("filter.age_min_years is above filter.age_max_years; swap them", field="filter.age_min_years")
    start, end = parse_time(message, "acquired_from", "filter."), parse_time(message, "acquired_before", "filter.")
    if start is not None and end is not None and start > end:
        raise QueryError(
            "filter.acquired_from is later than filter.acquired_before; swap them", field="filter.acquired_from"
        )
    sets = {
        name: frozenset(getattr(message, name).values) if message.HasField(name) else None  # type: ignore[arg-type]
        for name in _FILTER_SETS
    }
    lists = {name: frozenset(getattr(message, name)) for name in _FILTER_LISTS}
    return Filter(
        acquired_from=start,
        acquired_before=end,
        age_min_years=youngest,
        age_max_years=oldest,
        sex=_SEX_FROM_PROTO.get(message.sex),
        text_contains=check_text(message.text_contains, field="filter.text_contains")
        if message.HasField("text_contains")
        else None,
        **sets,  # type: ignore[arg-type]
        **lists,
    )


def render_embedding(vector: NDArray[np.float32], fingerprint: str) -> query_pb2.Embedding:
    """Render a float32 vector of shape (dim,)."""
    return query_pb2.Embedding(values=vector.tolist(), fingerprint=fingerprint)


def parse_embedding(message: query_pb2.Embedding) -> NDArray[np.float32]:
    """Return the vector, float32, shape (dim,); dim and norm are not checked here.

    Raises
    ------
    QueryError
        It is given twice, or as bytes that are no whole number of values.
    """
    packed = message.float32_values
    if not packed:
        return np.asarray(message.values, np.float32)
    if message.values or len(packed) % 4:
        raise QueryError(
            f"embedding has {len(message.values)} values, and {len(packed)} bytes of values; "
            "send one of the two, of four bytes a value",
            field="embedding.float32_values",
        )
    return np.frombuffer(packed, "<f4").astype(np.float32)


def render_time(moment: datetime | None) -> Timestamp | None:
    """Render a time; one without a zone is taken as UTC."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(without_zone(moment))
    return message


def parse_time(message: Message, name: str, prefix: str = "") -> datetime | None:
    """Return the Timestamp field ``name`` of a message without a zone, in UTC; None if it is not set.

    Raises
    ------
    InvalidInputError
        Outside the years 1 to 9999, or nanoseconds outside a second.
    """
    if not message.HasField(name):
        return None
    try:
        return cast(datetime, getattr(message, name).ToDatetime())
    except (ValueError, OverflowError):
        raise InvalidInputError(
            f"{prefix}{name} is no time, expected the years 1 to 9999 and nanoseconds of 0 to 999,999,999",
            field=f"{prefix}{name}",
        ) from None


def check_known(message: Message, name: str) -> None:
    """Refuse a message with fields that this version does not know.

    Raises
    ------
    QueryError, SignalError or InvalidInputError
        By the kind of message.
    """
    if len(UnknownFieldSet(message)):
        kind = {"ecg": SignalError, "filter": QueryError, "query": QueryError}.get(name, InvalidInputError)
        raise kind(
            f"{name} has a field that this version does not know; see {message.DESCRIPTOR.full_name}, or update mmecg",
            field=name,
        )


def _parse_wfdb(message: ecg_pb2.Ecg) -> Ecg:
    from mmecg.datasets.wfdb import read_wfdb_bytes

    if message.leads or message.sampling_rate_hz:
        raise SignalError(
            "leads and sampling_rate_hz are given beside a WFDB record, whose header has them; leave them out",
            field="ecg.leads" if message.leads else "ecg.sampling_rate_hz",
        )
    return read_wfdb_bytes(message.wfdb.header, message.wfdb.signal)


def _matrix(content: bytes, dtype: str, n_leads: int) -> NDArray[np.generic]:
    """Return the samples as a matrix of shape (leads, samples); without names, as 12 leads."""
    rows, size = n_leads or len(LEADS), np.dtype(dtype).itemsize
    if not content or len(content) % (rows * size):
        raise SignalError(
            f"ecg has {len(content)} bytes of samples, expected a positive multiple of {rows * size} "
            f"({rows} leads of {size} bytes a sample); name each lead, and send all leads at the same length",
            field="ecg.samples",
        )
    return np.frombuffer(content, dtype).reshape(rows, -1)


def _render_sex(sex: Sex | None) -> study_pb2.Sex.ValueType:
    return study_pb2.SEX_UNSPECIFIED if sex is None else _SEX_TO_PROTO[sex]


def _render_note(note: ClinicalNote) -> study_pb2.ClinicalNote:
    return study_pb2.ClinicalNote(text=note.text, kind=note.kind, written_at=render_time(note.written_at))


def _parse_note(message: study_pb2.ClinicalNote) -> ClinicalNote:
    text = check_text(message.text, field="notes.text")
    kind = check_text(message.kind, field="notes.kind") or "note"
    return ClinicalNote(text, kind, parse_time(message, "written_at", "notes."))


def _parse_report(message: study_pb2.Report) -> Report:
    report = Report.from_text(message.raw)
    if not message.HasField("text"):
        return report
    return Report(report.raw, check_text(message.text, field="report.text"))


def _check_labels(labels: Mapping[str, float]) -> None:
    for label, likelihood in labels.items():
        check_id(label, "label")
        if not 0 <= likelihood <= 100:
            raise InvalidInputError(
                "the likelihood of a label is not a percentage, expected 0 to 100", field="label_likelihoods_percent"
            )


def _age(message: query_pb2.Filter, name: Literal["age_min_years", "age_max_years"]) -> float | None:
    if not message.HasField(name):
        return None
    value = float(getattr(message, name))
    if not np.isfinite(value):
        raise QueryError(f"filter.{name} is {value}, expected a finite number", field=f"filter.{name}")
    return value
