"""What a caller hands to a client to have it predicted or explained, as requests; and outcomes of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from mmecg_pb.v1 import prediction_service_pb2 as pb

from mmecg.client.messages import render_ecg
from mmecg.client.prediction_messages import parse_prediction, render_method, render_predict_request
from mmecg.client.requests import EcgLike, Outcome, as_ecg, check_names, error_of
from mmecg.ecg import Ecg
from mmecg.errors import QueryError
from mmecg.prediction.result import Method, Prediction, PredictionOptions
from mmecg.study import Study, check_id
from mmecg.vitals import Vitals

Source = Study | EcgLike
"""A study, or anything that :func:`mmecg.client.requests.as_ecg` takes."""


class SourceArguments(TypedDict, total=False):
    """What is predicted if it is not handed over, and how an array is to be read."""

    study_id: str | None
    leads: Sequence[str] | None
    sampling_rate_hz: float | None
    unit: str


class PredictArguments(SourceArguments, total=False):
    """What is predicted, and how; see :class:`mmecg.prediction.query.PredictionQuery`."""

    subject_id: str | None
    as_of: datetime | None
    extra_history: Sequence[Study]
    vitals: Vitals | None
    note: str
    options: PredictionOptions | None


class ExplainArguments(SourceArguments, total=False):
    """What is explained, and how; see :class:`mmecg.prediction.result.Saliency`."""

    method: Method
    values_per_s: float


_SOURCE = SourceArguments.__optional_keys__


def predict_request(source: Source | None, arguments: PredictArguments) -> pb.PredictRequest:
    """Render a request to predict a recording, a study, or a study of the corpus.

    Raises
    ------
    InvalidInputError
        Neither or both of a source and ``study_id``; a recording or an option that cannot be used.
    TypeError
        An argument is unknown.
    """
    check_names(arguments, PredictArguments.__optional_keys__ | _SOURCE, "predict")
    return render_predict_request(
        _read_source(source, arguments),
        subject_id=arguments.get("subject_id"),
        as_of=arguments.get("as_of"),
        extra_history=arguments.get("extra_history", ()),
        vitals=arguments.get("vitals"),
        note=arguments.get("note", ""),
        options=arguments.get("options"),
    )


def explain_request(source: Source | None, label: str, arguments: ExplainArguments) -> pb.ExplainPredictionRequest:
    """Render a request to explain a label of a recording, of a study, or of a study of the corpus.

    Raises
    ------
    InvalidInputError
        Neither or both of a source and ``study_id``, a study without an ECG, or an unknown method.
    TypeError
        An argument is unknown.
    """
    check_names(arguments, ExplainArguments.__optional_keys__ | _SOURCE, "explain")
    study = _read_source(source, arguments)
    message = pb.ExplainPredictionRequest(
        label=label,
        method=render_method(arguments.get("method", "integrated_gradients")),
        sampling_rate_hz=arguments.get("values_per_s"),
    )
    if isinstance(study, str):
        message.study_id = study
        return message
    ecg = study.ecg if isinstance(study, Study) else study
    if ecg is None:
        raise QueryError("study has no ECG, expected one to explain; give the recording", field="ecg")
    message.ecg.CopyFrom(render_ecg(ecg))
    return message


def parse_predict_outcome(item: int, response: pb.PredictStreamResponse) -> Outcome[Prediction]:
    """Return the outcome of one item of PredictStream."""
    error = error_of(response)
    return Outcome(item, None if error else parse_prediction(response.response), error)


def _read_source(source: Source | None, arguments: SourceArguments) -> Study | Ecg | str:
    """Return a study, a recording, or the id of a study."""
    study_id = arguments.get("study_id")
    if (source is None) == (study_id is None):
        raise QueryError("expected either a recording or study, or study_id; give one of them", field="source")
    if source is None:
        return check_id(study_id or "", "study_id")
    if isinstance(source, Study):
        return source
    return as_ecg(
        source,
        leads=arguments.get("leads"),
        sampling_rate_hz=arguments.get("sampling_rate_hz"),
        unit=arguments.get("unit", "mV"),
    )
