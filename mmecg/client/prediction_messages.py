"""Prediction messages to and from domain objects, shared by client and server as ``messages.py`` is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from math import isnan
from typing import Any, Literal, TypeVar, cast

import numpy as np
from google.protobuf.message import Message
from mmecg_pb.v1 import prediction_service_pb2 as pb

from mmecg.client.comparison_messages import name_of, number_of, parse_comparison, render_comparison
from mmecg.client.messages import (
    check_known,
    parse_ecg,
    parse_study,
    parse_time,
    parse_vitals,
    render_ecg,
    render_study,
    render_time,
    render_vitals,
)
from mmecg.client.note_messages import parse_effects, parse_notes, render_effects, render_notes
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError, QueryError
from mmecg.prediction.measured import Measurement
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import (
    Decision,
    LabelChange,
    LabelPrediction,
    Method,
    NeighbourEvidence,
    Prediction,
    PredictionOptions,
    PriorEvidence,
    Saliency,
    Source,
    Uncertainty,
)
from mmecg.study import Study, check_id
from mmecg.vitals import Vitals

Name = TypeVar("Name", bound=str)

MAX_EXTRA_HISTORY = 64
"""Studies that a caller may add to the history of one prediction: each costs an encoding."""

_METHODS: dict[int, Method] = {
    pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS: "integrated_gradients",
    pb.EXPLANATION_METHOD_OCCLUSION: "occlusion",
}
_DECISIONS: dict[int, Decision] = {
    pb.DECISION_PRESENT: "present",
    pb.DECISION_ABSENT: "absent",
    pb.DECISION_UNDECIDED: "undecided",
    pb.DECISION_NOT_SUPPORTED: "not_supported",
}
_SOURCES: dict[int, Source] = {
    pb.EVIDENCE_SOURCE_LABELS: "labels",
    pb.EVIDENCE_SOURCE_REPORT: "report",
    pb.EVIDENCE_SOURCE_ECG: "ecg",
}
_CHANGES: dict[int, Literal["new", "gone", "persists"]] = {
    pb.CHANGE_KIND_NEW: "new",
    pb.CHANGE_KIND_GONE: "gone",
    pb.CHANGE_KIND_PERSISTS: "persists",
}
_OPTIONS = ("level", "abstain_share", "use_history", "use_cohort", "cohort_before_as_of", "max_history")
_MEASURED = ("value", "low", "high")
_NUMBERS = ("probability", "low", "high", "single", "spread")


def render_predict_request(
    source: Study | Ecg | str,
    *,
    subject_id: str | None = None,
    as_of: datetime | None = None,
    extra_history: Sequence[Study] = (),
    vitals: Vitals | None = None,
    note: str = "",
    options: PredictionOptions | None = None,
) -> pb.PredictRequest:
    """Render what is asked of a predictor.

    Parameters
    ----------
    source : Study, Ecg or str
        A string is the id of a study of the corpus.
    subject_id, as_of, extra_history, vitals, note, options
        See :class:`~mmecg.prediction.query.PredictionQuery`.

    Raises
    ------
    QueryError
        See :func:`render_options`.
    """
    message = pb.PredictRequest(
        subject_id=subject_id,
        as_of=render_time(as_of),
        extra_history=map(render_study, extra_history),
        vitals=None if vitals is None else render_vitals(vitals),
        note=note,
        options=None if options is None else render_options(options),
    )
    if isinstance(source, str):
        message.study_id = source
    elif isinstance(source, Ecg):
        message.ecg.CopyFrom(render_ecg(source))
    else:
        message.study.CopyFrom(render_study(source))
    return message


def render_prediction_query(query: PredictionQuery) -> pb.PredictRequest:
    """Render a query; see :func:`render_predict_request`."""
    return render_predict_request(
        query.study,
        subject_id=query.subject_id,
        as_of=query.as_of,
        extra_history=query.extra_history,
        vitals=query.vitals,
        note=query.note,
        options=query.options,
    )


def parse_prediction_query(message: pb.PredictRequest, find: Callable[[str], Study]) -> PredictionQuery:
    """Read and check what is asked of a predictor.

    Parameters
    ----------
    message : PredictRequest
    find : callable
        Returns the study of an id, with its ECG.

    Raises
    ------
    InvalidInputError
        Of the class that fits the part that cannot be used; a history of the caller's that is too long.
    NotFoundError
        What ``find`` raises.
    """
    check_known(message, "request")
    if len(message.extra_history) > MAX_EXTRA_HISTORY:
        raise QueryError(
            f"extra_history has {len(message.extra_history)} studies, expected at most {MAX_EXTRA_HISTORY}; "
            "send the latest, or store them in the corpus",
            field="extra_history",
        )
    return PredictionQuery(
        study=_parse_source(message, find),
        subject_id=check_id(message.subject_id, "subject_id") if message.HasField("subject_id") else None,
        as_of=parse_time(message, "as_of"),
        extra_history=tuple(map(parse_study, message.extra_history)),
        vitals=parse_vitals(message.vitals) if message.HasField("vitals") else None,
        note=message.note,
        options=parse_options(message.options),
    )


def render_options(options: PredictionOptions) -> pb.PredictionOptions:
    """Render the options.

    Raises
    ------
    QueryError
        Labels that are none, or one string: the message could not tell them from all, or from many.
    """
    labels = () if options.labels is None else options.labels
    if isinstance(labels, str) or (options.labels is not None and not labels):
        got = "one string" if isinstance(labels, str) else "none"
        raise QueryError(f"labels are {got}, expected a sequence of names, or None for all", field="options.labels")
    return pb.PredictionOptions(
        labels=labels, prevalence=options.prevalence, **{name: getattr(options, name) for name in _OPTIONS}
    )


def parse_options(message: pb.PredictionOptions) -> PredictionOptions:
    """Read and check the options; what is not set has its default.

    Raises
    ------
    QueryError
        An option out of range, or one that this version does not know.
    """
    check_known(message, "options")
    given: dict[str, Any] = {name: getattr(message, name) for name in _OPTIONS if message.HasField(name)}  # type: ignore[arg-type]
    return PredictionOptions(labels=tuple(message.labels) or None, prevalence=dict(message.prevalence), **given)


def render_prediction(prediction: Prediction) -> pb.PredictResponse:
    """Render an answer."""
    return pb.PredictResponse(
        labels=map(_render_label, prediction.labels),
        changes=map(_render_change, prediction.changes),
        priors=map(_render_prior, prediction.priors),
        neighbours=[
            pb.NeighbourEvidence(study_id=one.study_id, score=one.score, weight=one.weight, labels=one.labels)
            for one in prediction.neighbours
        ],
        measurements=map(_render_measurement, prediction.measurements),
        comparison=None if prediction.comparison is None else render_comparison(prediction.comparison),
        uncertainty=pb.Uncertainty(**asdict(prediction.uncertainty)),
        abstained=prediction.abstained,
        abstain_reasons=prediction.abstain_reasons,
        flags=prediction.flags,
        history_found=prediction.history_found,
        history_used=prediction.history_used,
        history_refused=prediction.history_refused,
        notes=None if prediction.notes is None else render_notes(prediction.notes),
        as_of=render_time(prediction.as_of),
        level=prediction.level,
        fingerprint=prediction.fingerprint,
    )


def parse_prediction(message: pb.PredictResponse) -> Prediction:
    """Read an answer; ``as_of`` comes without a zone, in UTC.

    Raises
    ------
    InvalidInputError
        A decision, a source or a kind of change that this version does not know.
    """
    sure = message.uncertainty
    return Prediction(
        labels=tuple(map(_parse_label, message.labels)),
        changes=tuple(map(_parse_change, message.changes)),
        priors=tuple(map(_parse_prior, message.priors)),
        neighbours=tuple(
            NeighbourEvidence(study_id=one.study_id, score=one.score, weight=one.weight, labels=tuple(one.labels))
            for one in message.neighbours
        ),
        measurements=tuple(map(_parse_measurement, message.measurements)),
        comparison=parse_comparison(message.comparison) if message.HasField("comparison") else None,
        uncertainty=Uncertainty(**{field.name: getattr(sure, field.name) for field in sure.DESCRIPTOR.fields}),
        abstained=message.abstained,
        abstain_reasons=tuple(message.abstain_reasons),
        flags=tuple(message.flags),
        history_found=message.history_found,
        history_used=message.history_used,
        history_refused=message.history_refused,
        notes=parse_notes(message.notes) if message.HasField("notes") else None,
        as_of=parse_time(message, "as_of"),
        level=message.level,
        fingerprint=message.fingerprint,
    )


def _render_measurement(one: Measurement) -> pb.Measurement:
    numbers = {name: value for name in _MEASURED if not isnan(value := getattr(one, name))}
    return pb.Measurement(name=one.name, lead=one.lead, reason=one.reason, **numbers)


def _parse_measurement(message: pb.Measurement) -> Measurement:
    numbers = {name: _number(message, name) for name in _MEASURED}
    return Measurement(name=message.name, lead=message.lead, reason=message.reason, **numbers)


def render_method(method: str) -> pb.ExplanationMethod.ValueType:
    """Render how to explain. Raises ``QueryError`` for a method that there is not."""
    if method not in _METHODS.values():
        raise QueryError(
            f"method is {str(method)[:30]!r}, expected one of {', '.join(_METHODS.values())}", field="method"
        )
    return cast("pb.ExplanationMethod.ValueType", number_of(_METHODS, method))


def parse_method(number: int) -> Method:
    """Read how to explain; unspecified means by integrated gradients. Raises ``QueryError`` for an unknown number."""
    return name_of(_METHODS, number or pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS, "method")


def render_saliency(saliency: Saliency, fingerprint: str) -> pb.ExplainPredictionResponse:
    """Render an explanation."""
    return pb.ExplainPredictionResponse(
        label=saliency.label,
        method=render_method(saliency.method),
        sampling_rate_hz=saliency.sampling_rate_hz,
        leads=[
            pb.LeadSaliency(lead=lead, values=values.tolist())
            for lead, values in zip(LEADS, saliency.values, strict=True)
        ],
        log_odds=saliency.logit,
        baseline_log_odds=saliency.baseline_logit,
        fingerprint=fingerprint,
    )


def parse_saliency(message: pb.ExplainPredictionResponse) -> Saliency:
    """Read an explanation; leads are placed by name.

    Raises
    ------
    InvalidInputError
        A method that this version does not know, or leads that are not the twelve at one length.
    """
    values = {one.lead: np.array(one.values, np.float32) for one in message.leads}
    if set(values) != set(LEADS) or len({len(row) for row in values.values()}) != 1:
        raise InvalidInputError(
            "the explanation lacks some of the 12 leads, or they differ in length; update mmecg", field="leads"
        )
    return Saliency(
        label=message.label,
        method=parse_method(message.method),
        values=np.stack([values[lead] for lead in LEADS]),
        sampling_rate_hz=message.sampling_rate_hz,
        logit=message.log_odds,
        baseline_logit=message.baseline_log_odds,
    )


def _parse_source(message: pb.PredictRequest, find: Callable[[str], Study]) -> Study | Ecg:
    source = message.WhichOneof("source")
    if source == "ecg":
        return parse_ecg(message.ecg)
    if source == "study":
        return parse_study(message.study)
    if source == "study_id":
        return find(check_id(message.study_id, "study_id"))
    raise QueryError("request has no source, expected ecg, study or study_id; set one of them", field="source")


def _render_label(one: LabelPrediction) -> pb.LabelPrediction:
    numbers = {name: value for name in _NUMBERS if not isnan(value := getattr(one, name))}
    return pb.LabelPrediction(
        label=one.label,
        conformal_set=one.conformal_set,
        decision=number_of(_DECISIONS, one.decision),
        reason=one.reason,
        **numbers,
    )


def _parse_label(message: pb.LabelPrediction) -> LabelPrediction:
    return LabelPrediction(
        label=message.label,
        conformal_set=tuple(message.conformal_set),
        decision=name_of(_DECISIONS, message.decision, "decision"),
        reason=message.reason,
        **{name: _number(message, name) for name in _NUMBERS},
    )


def _render_change(one: LabelChange) -> pb.LabelChange:
    return pb.LabelChange(
        label=one.label,
        change=number_of(_CHANGES, one.change),
        prior_study_id=one.prior_study_id,
        days_before=one.days_before,
        source=number_of(_SOURCES, one.source),
        probability=one.probability,
        serial=one.serial,
    )


def _parse_change(message: pb.LabelChange) -> LabelChange:
    return LabelChange(
        label=message.label,
        change=name_of(_CHANGES, message.change, "change"),
        prior_study_id=message.prior_study_id,
        days_before=message.days_before,
        source=name_of(_SOURCES, message.source, "source"),
        probability=message.probability,
        serial=tuple(message.serial),
    )


def _render_prior(one: PriorEvidence) -> pb.PriorEvidence:
    return pb.PriorEvidence(
        study_id=one.study_id,
        days_before=one.days_before,
        source=number_of(_SOURCES, one.source),
        similarity=None if isnan(one.similarity) else one.similarity,
        weight=one.weight,
        effects=render_effects(one.effects),
    )


def _parse_prior(message: pb.PriorEvidence) -> PriorEvidence:
    return PriorEvidence(
        study_id=message.study_id,
        days_before=message.days_before,
        source=name_of(_SOURCES, message.source, "source"),
        similarity=_number(message, "similarity"),
        weight=message.weight,
        effects=parse_effects(message.effects),
    )


def _number(message: Message, name: str) -> float:
    """Return a number; NaN if it is not set."""
    return float(getattr(message, name)) if message.HasField(name) else float("nan")
