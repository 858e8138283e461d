"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc
import numpy as np
from google.protobuf.message import Message
from mmecg_pb.v1 import (
    corpus_service_pb2,
    corpus_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    info_service_pb2,
    info_service_pb2_grpc,
    label_mining_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from numpy.typing import NDArray

from mmecg.client import prediction_requests, requests
from mmecg.client.batches import Batches
from mmecg.client.channel import ChannelOptions, check_size, checked, credentials
from mmecg.client.corpus_requests import EmbeddedStudy, UpsertStream, WriteNames, update_request
from mmecg.client.label_messages import parse_mined_report
from mmecg.client.messages import parse_study, render_ecg, render_filter, render_vitals
from mmecg.client.mine_stream import MineStream
from mmecg.client.prediction_messages import parse_prediction, parse_saliency, render_prediction_query
from mmecg.client.prediction_requests import ExplainArguments, PredictArguments, Source
from mmecg.client.requests import EcgLike, Outcome, SearchArguments, SearchOptions, ServerInfo, as_ecg
from mmecg.client.retry import pause_for
from mmecg.client.status import parse_rpc_error
from mmecg.client.window import Window
from mmecg.labels.assertion import MinedReport
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import Prediction, Saliency
from mmecg.retriever import Query
from mmecg.search import CorpusStats, Filter, SearchResult
from mmecg.study import Study
from mmecg.vitals import Vitals

T = TypeVar("T")


class Client:
    """A connection to a server, safe to use from many threads. Raises the errors of :mod:`mmecg.errors`.

    Calls that meet a moment's trouble (NotReadyError, OverloadedError) are tried again with growing pauses until the
    timeout, which raises ``TimeoutError``. A write that is sent again has its effect once.

    Parameters
    ----------
    address : str
        ``host:port``.
    options : ChannelOptions, optional
        Timeout, retries, message size, TLS and token.

    Examples
    --------
    >>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     result = client.search(ecg="records/00001", top_k=5)
    """

    def __init__(self, address: str = "127.0.0.1:50051", options: ChannelOptions | None = None) -> None:
        self._options = options or ChannelOptions()
        self._names = WriteNames()
        tls = credentials(address, self._options)
        arguments = self._options.arguments()
        self._channel = (
            grpc.secure_channel(address, tls, arguments) if tls else grpc.insecure_channel(address, arguments)
        )
        self._embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._search = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._corpus = corpus_service_pb2_grpc.CorpusServiceStub(self._channel)
        self._labels = label_mining_service_pb2_grpc.LabelMiningServiceStub(self._channel)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._info = info_service_pb2_grpc.InfoServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls fail."""
        self._channel.close()

    def info(self) -> ServerInfo:
        """Return the server's version, fingerprint and limits."""
        return requests.parse_info(self._call(self._info.GetServerInfo, info_service_pb2.GetServerInfoRequest()))

    def embed_ecg(
        self,
        ecgs: Sequence[EcgLike],
        *,
        leads: Sequence[str] | None = None,
        sampling_rate_hz: float | None = None,
        unit: str = "mV",
    ) -> NDArray[np.float32]:
        """Embed recordings in one call; see :func:`as_ecg` for what a recording may be.

        Returns
        -------
        float32, shape (batch, dim), unit norm
        """
        messages = [render_ecg(as_ecg(ecg, leads=leads, sampling_rate_hz=sampling_rate_hz, unit=unit)) for ecg in ecgs]
        response = self._call(self._embedding.EmbedEcg, embedding_service_pb2.EmbedEcgRequest(ecgs=messages))
        return requests.parse_embeddings(response.embeddings)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts in one call: float32, shape (batch, dim), unit norm."""
        response = self._call(self._embedding.EmbedText, embedding_service_pb2.EmbedTextRequest(texts=texts))
        return requests.parse_embeddings(response.embeddings)

    def embed_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        """Embed vital signs in one call: float32, shape (batch, dim), unit norm."""
        request = embedding_service_pb2.EmbedVitalsRequest(vitals=[render_vitals(item) for item in vitals])
        return requests.parse_embeddings(self._call(self._embedding.EmbedVitals, request).embeddings)

    def embed(self, query: Query) -> NDArray[np.float32]:
        """Embed a mix: float32, shape (dim,), unit norm."""
        request = embedding_service_pb2.EmbedRequest(query=requests.render_query(query))
        return np.asarray(self._call(self._embedding.Embed, request).embedding.values, np.float32)

    def embed_many(self, queries: Iterable[Query]) -> Iterator[Outcome[NDArray[np.float32]]]:
        """Embed in bulk over one stream; outcomes come in the order of the queries."""
        items = (embedding_service_pb2.EmbedStreamRequest(query=requests.render_query(query)) for query in queries)
        return self._stream(self._embedding.EmbedStream, items, requests.parse_embed_outcome)

    def search(self, **arguments: Unpack[SearchArguments]) -> SearchResult:
        """Find the studies most similar to any mix of ECG, text, vitals, study and embedding.

        Parameters
        ----------
        **arguments
            What to look for: those of :class:`mmecg.retriever.Query`, where ``ecg`` may be anything that
            :func:`as_ecg` takes, with ``leads``, ``sampling_rate_hz`` and ``unit`` beside an array. How:
            those of :meth:`mmecg.retriever.Retriever.search`. An unknown name is a ``TypeError``.
        """
        request = requests.search_request(requests.query_of(arguments), arguments)
        return requests.parse_search(self._call(self._search.Search, request))

    def search_many(
        self, queries: Iterable[Query], **options: Unpack[SearchOptions]
    ) -> Iterator[Outcome[SearchResult]]:
        """Search in bulk over one stream; outcomes come in the order of the queries."""
        requests.check_options(options)
        items = (
            search_service_pb2.SearchStreamRequest(request=requests.search_request(query, options)) for query in queries
        )
        return self._stream(self._search.SearchStream, items, requests.parse_search_outcome)

    def upsert(self, studies: Iterable[Study | EmbeddedStudy]) -> Iterator[Outcome[int]]:
        """Store studies in bulk over one stream; outcomes (commit sequence numbers) come in the order of the studies.

        Nothing is sent until the outcomes are read: iterate over them. Studies that come within a few milliseconds
        share a message.
        """
        stream = UpsertStream(self._names)
        batches = Batches(map(stream.item, studies), max_bytes=self._options.max_batch_bytes)
        messages = map(stream.render, batches)
        for outcomes in self._stream(self._corpus.UpsertStudies, messages, stream.parse):
            yield from outcomes

    def mine_labels(
        self, text: str | None = None, *, study_id: str | None = None, language: str = "", vocabulary: str = ""
    ) -> MinedReport:
        """Mine the labels of a report, or of the report of a study in the corpus.

        Parameters
        ----------
        text : str, optional
            As it was written; offsets in the answer refer to it.
        study_id : str, optional
        language : {"", "de", "en", "sv"}
            Empty: found out, sentence by sentence.
        vocabulary : {"", "scp", "snomed", "ecgfounder", "ecg_fm"}
            Code system of the labels; empty: the findings' own identifiers.
        """
        request = requests.mine_request(text, study_id, language, vocabulary)
        return parse_mined_report(self._call(self._labels.MineLabels, request))

    def mine_labels_many(
        self, texts: Iterable[str], *, language: str = "", vocabulary: str = ""
    ) -> Iterator[Outcome[MinedReport]]:
        """Mine reports in bulk over one stream; outcomes come in the order of the texts."""
        stream = MineStream(language, vocabulary)
        return self._stream(self._labels.MineLabelsStream, map(stream.render, texts), stream.parse)

    def predict(self, study: Source | None = None, **arguments: Unpack[PredictArguments]) -> Prediction:
        """Predict a study from its ECG, the subject's earlier studies, and similar studies of others.

        Parameters
        ----------
        study : Study, or anything that :func:`as_ecg` takes, optional
            With ``leads``, ``sampling_rate_hz`` and ``unit`` beside an array.
        **arguments
            ``study_id`` of a study of the corpus instead; ``subject_id``, ``as_of``, ``extra_history``, ``vitals`` and
            ``options`` as in :class:`mmecg.prediction.query.PredictionQuery`. An unknown name is a ``TypeError``.
        """
        request = prediction_requests.predict_request(study, arguments)
        return parse_prediction(self._call(self._prediction.Predict, request))

    def predict_many(self, queries: Iterable[PredictionQuery]) -> Iterator[Outcome[Prediction]]:
        """Predict in bulk over one stream; outcomes come in the order of the queries."""
        items = (prediction_service_pb2.PredictStreamRequest(request=render_prediction_query(one)) for one in queries)
        return self._stream(self._prediction.PredictStream, items, prediction_requests.parse_predict_outcome)

    def explain(self, study: Source | None = None, *, label: str, **arguments: Unpack[ExplainArguments]) -> Saliency:
        """Say which moments of which leads speak for a label.

        Parameters
        ----------
        study : Study, or anything that :func:`as_ecg` takes, optional
            As for :meth:`predict`.
        label : str
        **arguments
            ``study_id`` of a study of the corpus instead; ``method``, ``"integrated_gradients"`` (default) or
            ``"occlusion"``; ``values_per_s`` of each lead (25). An unknown name is a ``TypeError``.
        """
        request = prediction_requests.explain_request(study, label, arguments)
        return parse_saliency(self._call(self._prediction.ExplainPrediction, request))

    def get_study(self, study_id: str, *, with_signal: bool = True) -> Study:
        """Return a study. Raises ``StudyNotFoundError``."""
        return (self.get_tagged_study(study_id, with_signal=with_signal))[0]

    def get_tagged_study(self, study_id: str, *, with_signal: bool = True) -> tuple[Study, str]:
        """Return a study and its etag, which changes with it. Raises ``StudyNotFoundError``."""
        request = corpus_service_pb2.GetStudyRequest(study_id=study_id, read_mask=requests.signal_mask(with_signal))
        response = self._call(self._corpus.GetStudy, request)
        return parse_study(response.study), response.etag

    def update_study(self, study: Study, fields: Collection[str], *, etag: str = "") -> int:
        """Change some fields of a study (a report comes after the ECG); return the sequence number of the commit.

        Parameters
        ----------
        study : Study
            Its id, and the new values.
        fields : collection of str
            Attributes of :class:`Study` to take from it, all but the ids; what is None or empty there is removed.
        etag : str
            That of :meth:`get_tagged_study`: raises ``ConflictError`` if the study has changed since.
        """
        request = update_request(study, fields, etag, self._names.next())
        return int(self._call(self._corpus.UpdateStudy, request).sequence)

    def count_studies(self, where: Filter | None = None) -> int:
        """Return how many studies pass a filter."""
        condition = None if where is None else render_filter(where)
        request = corpus_service_pb2.CountStudiesRequest(filter=condition)
        return int(self._call(self._corpus.CountStudies, request).studies)

    def list_studies(
        self, subject_id: str | None = None, *, page_size: int = 100, with_signal: bool = False
    ) -> Iterator[Study]:
        """Yield the studies of a subject, oldest first, or all, page by page. Raises ``SubjectNotFoundError``."""
        request = requests.list_request(subject_id, page_size, with_signal)
        while True:
            response = self._call(self._corpus.ListStudies, request)
            yield from map(parse_study, response.studies)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def delete_study(self, study_id: str) -> int:
        """Delete a study; return the sequence number of the commit. Raises ``StudyNotFoundError``."""
        request = corpus_service_pb2.DeleteStudyRequest(study_id=study_id, request_id=self._names.next())
        return int(self._call(self._corpus.DeleteStudy, request).sequence)

    def stats(self) -> CorpusStats:
        """Return what the corpus holds."""
        return requests.parse_stats(self._call(self._corpus.GetStats, corpus_service_pb2.GetStatsRequest()))

    def _call(self, method: Callable[..., T], request: Message) -> T:
        check_size(request, self._options)
        deadline = time.monotonic() + self._options.timeout_s
        bounds = self._options.retry.pauses(deadline)
        while True:
            try:
                return method(
                    request, timeout=max(deadline - time.monotonic(), 0.001), metadata=self._options.metadata()
                )
            except grpc.RpcError as rpc_error:
                error = parse_rpc_error(rpc_error)
            pause = pause_for(error, next(bounds, None), deadline)
            if pause is None:
                raise error
            time.sleep(pause)

    def _stream(
        self, method: Callable[..., Any], items: Iterator[Message], parse: Callable[[int, Any], T]
    ) -> Iterator[T]:
        window = Window(checked(items, self._options))
        bounds = self._options.retry.pauses(float("inf"))
        while True:
            answered = window.answered
            call = method(window.attempt(), metadata=self._options.metadata())
            try:
                for response in call:
                    yield parse(window.answer(), response)
                window.check()
                return
            except grpc.RpcError as rpc_error:
                window.check()
                error = parse_rpc_error(rpc_error)
            finally:
                call.cancel()
            if window.answered > answered:
                # It moved: what breaks it next is a new trouble.
                bounds = self._options.retry.pauses(float("inf"))
            pause = pause_for(error, next(bounds, None), float("inf"))
            if pause is None:
                raise error
            time.sleep(pause)
