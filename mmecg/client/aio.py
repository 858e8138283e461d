"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
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
from mmecg.client.batches import gather
from mmecg.client.channel import ChannelOptions, check_size, credentials
from mmecg.client.corpus_requests import EmbeddedStudy, UpsertStream, WriteNames, update_request
from mmecg.client.label_messages import parse_mined_report
from mmecg.client.messages import parse_study, render_ecg, render_filter, render_vitals
from mmecg.client.mine_stream import MineStream
from mmecg.client.prediction_messages import parse_prediction, parse_saliency, render_prediction_query
from mmecg.client.prediction_requests import ExplainArguments, PredictArguments, Source
from mmecg.client.requests import EcgLike, Outcome, SearchArguments, SearchOptions, ServerInfo, as_ecg
from mmecg.client.retry import pause_for
from mmecg.client.status import parse_rpc_error
from mmecg.client.window import AsyncWindow, as_async
from mmecg.labels.assertion import MinedReport
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import Prediction, Saliency
from mmecg.retriever import Query
from mmecg.search import CorpusStats, Filter, SearchResult
from mmecg.study import Study
from mmecg.vitals import Vitals

T = TypeVar("T")
Item = TypeVar("Item")


class AsyncClient:
    """:class:`mmecg.client.Client` for asyncio: the same methods, awaited or iterated over with ``async for``.

    Make it inside a running event loop. Bulk calls take an async iterable or a plain one; a plain one that is no
    sequence is iterated over in a thread, so that it may be slow.

    Parameters
    ----------
    address : str
        ``host:port``.
    options : ChannelOptions, optional
        Timeout, retries, message size, TLS and token.
    """

    def __init__(self, address: str = "127.0.0.1:50051", options: ChannelOptions | None = None) -> None:
        self._options = options or ChannelOptions()
        self._names = WriteNames()
        tls = credentials(address, self._options)
        arguments = self._options.arguments()
        self._channel = (
            grpc.aio.secure_channel(address, tls, arguments) if tls else grpc.aio.insecure_channel(address, arguments)
        )
        self._embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._search = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._corpus = corpus_service_pb2_grpc.CorpusServiceStub(self._channel)
        self._labels = label_mining_service_pb2_grpc.LabelMiningServiceStub(self._channel)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._info = info_service_pb2_grpc.InfoServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls fail."""
        await self._channel.close(None)

    async def info(self) -> ServerInfo:
        """Return the server's version, fingerprint and limits."""
        return requests.parse_info(await self._call(self._info.GetServerInfo, info_service_pb2.GetServerInfoRequest()))

    async def embed_ecg(
        self,
        ecgs: Sequence[EcgLike],
        *,
        leads: Sequence[str] | None = None,
        sampling_rate_hz: float | None = None,
        unit: str = "mV",
    ) -> NDArray[np.float32]:
        """Embed recordings in one call: float32, shape (batch, dim), unit norm."""
        messages = [render_ecg(as_ecg(ecg, leads=leads, sampling_rate_hz=sampling_rate_hz, unit=unit)) for ecg in ecgs]
        response = await self._call(self._embedding.EmbedEcg, embedding_service_pb2.EmbedEcgRequest(ecgs=messages))
        return requests.parse_embeddings(response.embeddings)

    async def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts in one call: float32, shape (batch, dim), unit norm."""
        response = await self._call(self._embedding.EmbedText, embedding_service_pb2.EmbedTextRequest(texts=texts))
        return requests.parse_embeddings(response.embeddings)

    async def embed_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        """Embed vital signs in one call: float32, shape (batch, dim), unit norm."""
        request = embedding_service_pb2.EmbedVitalsRequest(vitals=[render_vitals(item) for item in vitals])
        return requests.parse_embeddings((await self._call(self._embedding.EmbedVitals, request)).embeddings)

    async def embed(self, query: Query) -> NDArray[np.float32]:
        """Embed a mix: float32, shape (dim,), unit norm."""
        request = embedding_service_pb2.EmbedRequest(query=requests.render_query(query))
        return np.asarray((await self._call(self._embedding.Embed, request)).embedding.values, np.float32)

    def embed_many(
        self, queries: Iterable[Query] | AsyncIterable[Query]
    ) -> AsyncIterator[Outcome[NDArray[np.float32]]]:
        """Embed in bulk over one stream; outcomes come in the order of the queries."""

        def render(query: Query) -> Message:
            return embedding_service_pb2.EmbedStreamRequest(query=requests.render_query(query))

        return self._stream(self._embedding.EmbedStream, queries, render, requests.parse_embed_outcome)

    async def search(self, **arguments: Unpack[SearchArguments]) -> SearchResult:
        """Find the studies most similar to any mix; see :meth:`mmecg.client.Client.search`."""
        request = requests.search_request(requests.query_of(arguments), arguments)
        return requests.parse_search(await self._call(self._search.Search, request))

    def search_many(
        self, queries: Iterable[Query] | AsyncIterable[Query], **options: Unpack[SearchOptions]
    ) -> AsyncIterator[Outcome[SearchResult]]:
        """Search in bulk over one stream; outcomes come in the order of the queries."""
        requests.check_options(options)

        def render(query: Query) -> Message:
            return search_service_pb2.SearchStreamRequest(request=requests.search_request(query, options))

        return self._stream(self._search.SearchStream, queries, render, requests.parse_search_outcome)

    async def upsert(
        self, studies: Iterable[Study | EmbeddedStudy] | AsyncIterable[Study | EmbeddedStudy]
    ) -> AsyncIterator[Outcome[int]]:
        """Store studies in bulk over one stream; see :meth:`mmecg.client.Client.upsert`."""
        stream = UpsertStream(self._names)
        items = (stream.item(study) async for study in as_async(studies))
        batches = gather(items, max_bytes=self._options.max_batch_bytes)
        answers = self._stream(self._corpus.UpsertStudies, batches, stream.render, stream.parse)
        async with aclosing(answers), aclosing(batches):
            async for outcomes in answers:
                for outcome in outcomes:
                    yield outcome

    async def mine_labels(
        self, text: str | None = None, *, study_id: str | None = None, language: str = "", vocabulary: str = ""
    ) -> MinedReport:
        """Mine the labels of a report, or of a study's; see :meth:`mmecg.client.Client.mine_labels`."""
        request = requests.mine_request(text, study_id, language, vocabulary)
        return parse_mined_report(await self._call(self._labels.MineLabels, request))

    def mine_labels_many(
        self, texts: Iterable[str] | AsyncIterable[str], *, language: str = "", vocabulary: str = ""
    ) -> AsyncIterator[Outcome[MinedReport]]:
        """Mine reports in bulk over one stream; outcomes come in the order of the texts."""
        stream = MineStream(language, vocabulary)
        return self._stream(self._labels.MineLabelsStream, texts, stream.render, stream.parse)

    async def predict(self, study: Source | None = None, **arguments: Unpack[PredictArguments]) -> Prediction:
        """Predict a study; see :meth:`mmecg.client.Client.predict`."""
        request = prediction_requests.predict_request(study, arguments)
        return parse_prediction(await self._call(self._prediction.Predict, request))

    def predict_many(
        self, queries: Iterable[PredictionQuery] | AsyncIterable[PredictionQuery]
    ) -> AsyncIterator[Outcome[Prediction]]:
        """Predict in bulk over one stream; outcomes come in the order of the queries."""

        def render(query: PredictionQuery) -> Message:
            return prediction_service_pb2.PredictStreamRequest(request=render_prediction_query(query))

        return self._stream(self._prediction.PredictStream, queries, render, prediction_requests.parse_predict_outcome)

    async def explain(
        self, study: Source | None = None, *, label: str, **arguments: Unpack[ExplainArguments]
    ) -> Saliency:
        """Say which moments of which leads speak for a label; see :meth:`mmecg.client.Client.explain`."""
        request = prediction_requests.explain_request(study, label, arguments)
        return parse_saliency(await self._call(self._prediction.ExplainPrediction, request))

    async def get_study(self, study_id: str, *, with_signal: bool = True) -> Study:
        """Return a study. Raises ``StudyNotFoundError``."""
        return (await self.get_tagged_study(study_id, with_signal=with_signal))[0]

    async def get_tagged_study(self, study_id: str, *, with_signal: bool = True) -> tuple[Study, str]:
        """Return a study and its etag, which changes with it. Raises ``StudyNotFoundError``."""
        request = corpus_service_pb2.GetStudyRequest(study_id=study_id, read_mask=requests.signal_mask(with_signal))
        response = await self._call(self._corpus.GetStudy, request)
        return parse_study(response.study), response.etag

    async def update_study(self, study: Study, fields: Collection[str], *, etag: str = "") -> int:
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
        return int((await self._call(self._corpus.UpdateStudy, request)).sequence)

    async def count_studies(self, where: Filter | None = None) -> int:
        """Return how many studies pass a filter."""
        condition = None if where is None else render_filter(where)
        request = corpus_service_pb2.CountStudiesRequest(filter=condition)
        return int((await self._call(self._corpus.CountStudies, request)).studies)

    async def list_studies(
        self, subject_id: str | None = None, *, page_size: int = 100, with_signal: bool = False
    ) -> AsyncIterator[Study]:
        """Yield the studies of a subject, oldest first, or all, page by page. Raises ``SubjectNotFoundError``."""
        request = requests.list_request(subject_id, page_size, with_signal)
        while True:
            response = await self._call(self._corpus.ListStudies, request)
            for study in response.studies:
                yield parse_study(study)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def delete_study(self, study_id: str) -> int:
        """Delete a study; return the sequence number of the commit. Raises ``StudyNotFoundError``."""
        request = corpus_service_pb2.DeleteStudyRequest(study_id=study_id, request_id=self._names.next())
        return int((await self._call(self._corpus.DeleteStudy, request)).sequence)

    async def stats(self) -> CorpusStats:
        """Return what the corpus holds."""
        return requests.parse_stats(await self._call(self._corpus.GetStats, corpus_service_pb2.GetStatsRequest()))

    async def _call(self, method: Any, request: Message) -> Any:
        check_size(request, self._options)
        deadline = time.monotonic() + self._options.timeout_s
        bounds = self._options.retry.pauses(deadline)
        while True:
            try:
                return await method(
                    request, timeout=max(deadline - time.monotonic(), 0.001), metadata=self._options.metadata()
                )
            except grpc.aio.AioRpcError as rpc_error:
                error = parse_rpc_error(rpc_error)
            pause = pause_for(error, next(bounds, None), deadline)
            if pause is None:
                raise error
            await asyncio.sleep(pause)

    async def _stream(
        self,
        method: Any,
        items: Iterable[Item] | AsyncIterable[Item],
        render: Callable[[Item], Message],
        parse: Callable[[int, Any], T],
    ) -> AsyncGenerator[T, None]:
        window = AsyncWindow(check_size(render(item), self._options) async for item in as_async(items))
        bounds = self._options.retry.pauses(float("inf"))
        try:
            while True:
                answered = window.answered
                call = method(window.attempt(), metadata=self._options.metadata())
                try:
                    async for response in call:
                        yield parse(window.answer(), response)
                    window.check()
                    return
                except grpc.aio.AioRpcError as rpc_error:
                    window.check()
                    error = parse_rpc_error(rpc_error)
                finally:
                    call.cancel()
                if window.answered > answered:
                    bounds = self._options.retry.pauses(float("inf"))
                pause = pause_for(error, next(bounds, None), float("inf"))
                if pause is None:
                    raise error
                await asyncio.sleep(pause)
        finally:
            window.close()
