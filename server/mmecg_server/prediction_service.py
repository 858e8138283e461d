"""The prediction service: an ECG in, calibrated probabilities with their evidence out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.rpc import status_pb2
from mmecg_pb.v1 import prediction_service_pb2, prediction_service_pb2_grpc

from mmecg.client.messages import check_known, parse_ecg
from mmecg.client.prediction_messages import (
    parse_method,
    parse_prediction_query,
    render_prediction,
    render_saliency,
)
from mmecg.ecg import Ecg
from mmecg.errors import OverloadedError, QueryError
from mmecg.prediction.asked import ALL, SUPERCLASS
from mmecg.prediction.query import PredictionQuery
from mmecg.search import CorpusStore
from mmecg.study import Study, check_id
from mmecg_server.call import current_call, stage
from mmecg_server.service import Backend
from mmecg_server.streaming import answer_stream

DEFAULT_VALUES_PER_S = 25.0
MAX_EXPLANATIONS = 4
"""Explanations that run or wait at once: further ones would take the places of predictions, and are refused."""


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Prediction that knows the patient; see ``prediction_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._room = threading.BoundedSemaphore(MAX_EXPLANATIONS)
        self._explaining = threading.Lock()

    def Predict(  # noqa: N802
        self, request: prediction_service_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> prediction_service_pb2.PredictResponse:
        """Predict one study."""
        predictor = self._backend.predictor
        query = self._parse(request)
        with stage("predict"):
            (prediction,) = predictor.predict_many([query])
        return render_prediction(prediction)

    def PredictStream(  # noqa: N802
        self,
        request_iterator: Iterator[prediction_service_pb2.PredictStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[prediction_service_pb2.PredictStreamResponse]:
        """Predict studies in bulk."""
        backend, predictor = self._backend, self._backend.predictor
        reader = backend.chunks(request_iterator)
        predict_many = stage("predict")(predictor.predict_many)
        for item, found in answer_stream(reader, backend.gate, lambda one: self._parse(one.request), predict_many):
            if isinstance(found, status_pb2.Status):
                yield prediction_service_pb2.PredictStreamResponse(item=item, status=found)
            else:
                yield prediction_service_pb2.PredictStreamResponse(item=item, response=render_prediction(found))

    def ExplainPrediction(  # noqa: N802
        self, request: prediction_service_pb2.ExplainPredictionRequest, context: grpc.ServicerContext
    ) -> prediction_service_pb2.ExplainPredictionResponse:
        """Say which moments of which leads speak for a label."""
        predictor = self._backend.predictor
        ecg = parse_explained(request, self._backend.retriever.corpus)
        with self._turn(), stage("predict"):
            saliency = predictor.explain(ecg, request.label, method=parse_method(request.method))
        rate = request.sampling_rate_hz if request.HasField("sampling_rate_hz") else DEFAULT_VALUES_PER_S
        return render_saliency(saliency.summed(rate), predictor.bundle.fingerprint)

    @stage("decode")
    def _parse(self, request: prediction_service_pb2.PredictRequest) -> PredictionQuery:
        corpus = self._backend.retriever.corpus
        return parse_prediction_query(request, lambda study_id: find_study(corpus, study_id))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Explain one at a time: it takes seconds, and predictions must not wait for many of them at once."""
        if not self._room.acquire(blocking=False):
            raise OverloadedError(
                f"{MAX_EXPLANATIONS} explanations run or wait, the most allowed; try again later", limit="explanations"
            )
        call = current_call()
        left = min(max(call.deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        held = self._explaining.acquire(timeout=left)
        try:
            call.check()
            yield
        finally:
            if held:
                self._explaining.release()
            self._room.release()


def add_prediction_service(server: grpc.Server, backend: Backend) -> None:
    """Register the service."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(backend), server)


def find_study(corpus: CorpusStore, study_id: str) -> Study:
    """Return a study of the corpus with its ECG. Raises ``StudyNotFoundError``."""
    return corpus.get([study_id], with_signal=True)[0]


@stage("decode")
def parse_explained(request: prediction_service_pb2.ExplainPredictionRequest, corpus: CorpusStore) -> Ecg:
    """Check a request for an explanation; return the recording that it is about.

    Raises
    ------
    InvalidInputError
        No source, a study without an ECG, no label or several, or a rate that cannot be.
    StudyNotFoundError
        The corpus has no such study.
    """
    check_known(request, "request")
    if request.label in ("", ALL, SUPERCLASS):
        raise QueryError(f"label is {request.label!r}, expected the name of one", field="label")
    if request.HasField("sampling_rate_hz") and not request.sampling_rate_hz >= 1:
        raise QueryError(
            f"sampling_rate_hz is {request.sampling_rate_hz:g}, expected at least 1", field="sampling_rate_hz"
        )
    source = request.WhichOneof("source")
    if source is None:
        raise QueryError("request has no source, expected ecg or study_id; set one of them", field="source")
    if source == "ecg":
        return parse_ecg(request.ecg)
    ecg = find_study(corpus, check_id(request.study_id, "study_id")).ecg
    if ecg is None:
        raise QueryError("study has no ECG, expected one to explain; send a recording", field="study_id")
    return ecg
