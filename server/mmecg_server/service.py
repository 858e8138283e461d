"""The services of encoder and search. Every method parses, calls, renders; ``interceptors.py`` surrounds the call.

The services see protocols only: an encoder and a corpus behind a :class:`mmecg.retriever.Retriever`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import status_pb2
from mmecg_pb.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    info_service_pb2,
    info_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)

from mmecg.administration import Administration
from mmecg.client.messages import parse_ecg, parse_vitals, render_embedding
from mmecg.errors import BundleError, NotReadyError
from mmecg.labels.report_miner import ReportMiner
from mmecg.retriever import Retriever
from mmecg.search import SearchResult
from mmecg_server import convert
from mmecg_server.auth import PerScope, current_principal
from mmecg_server.config import LimitsConfig
from mmecg_server.interceptors import Gate
from mmecg_server.streaming import ChunkReader, answer_stream

if TYPE_CHECKING:
    from mmecg.prediction.predictor import Predictor

CORPUS = "mmecg.v1.CorpusService"
PREDICTION = "mmecg.v1.PredictionService"
SEARCH = "mmecg.v1.SearchService"
SERVICES = (
    "mmecg.v1.EmbeddingService",
    SEARCH,
    CORPUS,
    "mmecg.v1.LabelMiningService",
    PREDICTION,
    "mmecg.v1.AdminService",
    "mmecg.v1.InfoService",
)


class Backend:
    """What the services share: retriever, predictor and administration once they are loaded, the gate and the limits.

    Parameters
    ----------
    gate : Gate
    limits : LimitsConfig
    """

    def __init__(self, gate: Gate, limits: LimitsConfig) -> None:
        self.gate = gate
        self.limits = limits
        self.administration: Administration | None = None
        self._retrievers: PerScope[Retriever] | None = None
        self._predictors: PerScope[Predictor] | None = None

    def take(self, retriever: Retriever, predictor: Predictor | None) -> None:
        """Answer with these from now on; both are of one bundle."""
        corpus = retriever.corpus
        self._retrievers = PerScope(retriever, lambda scope: Retriever(retriever.encoder, corpus.within(scope)))
        predictors = None
        if predictor is not None:
            over = predictor.over
            predictors = PerScope(predictor, lambda scope: over(corpus.within(scope)))
        self._predictors = predictors

    @property
    def retriever(self) -> Retriever:
        """The retriever, over what the caller may see.

        Raises
        ------
        NotReadyError
            It is still loading.
        """
        if self._retrievers is None:
            raise NotReadyError("the server is loading its model and corpus; try again in a moment")
        return self._retrievers.of(current_principal().scope)

    @property
    def predictor(self) -> Predictor:
        """The predictor, over what the caller may see.

        Raises
        ------
        NotReadyError
            It is still loading.
        BundleError
            The bundle has no prediction heads.
        """
        if self._predictors is None:
            _ = self.retriever  # not ready is another answer than never
            raise BundleError("the server's bundle has no prediction heads; its operator can make them: train-heads")
        return self._predictors.of(current_principal().scope)

    @cached_property
    def miner(self) -> ReportMiner:
        """The label miner; made at the first use, if the server was not given one."""
        return ReportMiner()

    def chunks(
        self, requests: Iterator[Any], split: Callable[[Any], Sequence[Any]] = lambda one: (one,)
    ) -> ChunkReader[Any]:
        """Read a stream in chunks that fit the encoder and one message's share of memory; see :class:`ChunkReader`."""
        limits = self.limits
        return ChunkReader(
            requests,
            split=split,
            max_items=limits.max_batch,
            max_bytes=limits.max_message_bytes,
            idle_s=limits.stream_idle_s,
            max_s=limits.max_stream_s,
        )


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Encoders as a service; see ``embedding_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def EmbedEcg(  # noqa: N802
        self, request: embedding_service_pb2.EmbedEcgRequest, context: grpc.ServicerContext
    ) -> embedding_service_pb2.EmbedEcgResponse:
        """Embed recordings."""
        encoder = self._backend.retriever.encoder
        convert.check_batch(request.ecgs, "ecgs", self._backend.limits)
        ecgs = convert.parse_each(parse_ecg, request.ecgs, "ecgs")
        return embedding_service_pb2.EmbedEcgResponse(
            embeddings=convert.render_embeddings(encoder.encode_ecg(ecgs), encoder.fingerprint),
            qualities=[convert.render_quality(ecg) for ecg in ecgs],
        )

    def EmbedText(  # noqa: N802
        self, request: embedding_service_pb2.EmbedTextRequest, context: grpc.ServicerContext
    ) -> embedding_service_pb2.EmbedTextResponse:
        """Embed texts."""
        encoder = self._backend.retriever.encoder
        convert.check_batch(request.texts, "texts", self._backend.limits)
        texts = convert.parse_each(convert.parse_text, request.texts, "texts")
        return embedding_service_pb2.EmbedTextResponse(
            embeddings=convert.render_embeddings(encoder.encode_text(texts), encoder.fingerprint)
        )

    def EmbedVitals(  # noqa: N802
        self, request: embedding_service_pb2.EmbedVitalsRequest, context: grpc.ServicerContext
    ) -> embedding_service_pb2.EmbedVitalsResponse:
        """Embed vital signs."""
        encoder = self._backend.retriever.encoder
        convert.check_batch(request.vitals, "vitals", self._backend.limits)
        vitals = convert.parse_each(parse_vitals, request.vitals, "vitals")
        return embedding_service_pb2.EmbedVitalsResponse(
            embeddings=convert.render_embeddings(encoder.encode_vitals(vitals), encoder.fingerprint)
        )

    def Embed(  # noqa: N802
        self, request: embedding_service_pb2.EmbedRequest, context: grpc.ServicerContext
    ) -> embedding_service_pb2.EmbedResponse:
        """Embed a mix."""
        retriever = self._backend.retriever
        vector = retriever.embed([convert.parse_query(request.query)])[0]
        return embedding_service_pb2.EmbedResponse(embedding=render_embedding(vector, retriever.encoder.fingerprint))

    def EmbedStream(  # noqa: N802
        self, request_iterator: Iterator[embedding_service_pb2.EmbedStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[embedding_service_pb2.EmbedStreamResponse]:
        """Embed in bulk."""
        backend, retriever = self._backend, self._backend.retriever
        reader = backend.chunks(request_iterator)
        fingerprint = retriever.encoder.fingerprint
        for item, answer in answer_stream(
            reader, backend.gate, lambda one: convert.parse_query(one.query), lambda some: list(retriever.embed(some))
        ):
            if isinstance(answer, status_pb2.Status):
                yield embedding_service_pb2.EmbedStreamResponse(item=item, status=answer)
            else:
                embedding = render_embedding(answer, fingerprint)
                yield embedding_service_pb2.EmbedStreamResponse(item=item, embedding=embedding)


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """Similarity search; see ``search_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def Search(  # noqa: N802
        self, request: search_service_pb2.SearchRequest, context: grpc.ServicerContext
    ) -> search_service_pb2.SearchResponse:
        """Answer one query."""
        retriever = self._backend.retriever
        search, sequence = convert.parse_search(request), retriever.corpus.sequence
        result = retriever.search([search.query], **search.options)[0]
        return convert.render_result(result, search.fields, retriever.encoder.fingerprint, sequence)

    def SearchStream(  # noqa: N802
        self, request_iterator: Iterator[search_service_pb2.SearchStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[search_service_pb2.SearchStreamResponse]:
        """Answer queries in bulk."""
        backend, retriever = self._backend, self._backend.retriever
        reader = backend.chunks(request_iterator)
        fingerprint = retriever.encoder.fingerprint
        for item, answer in answer_stream(
            reader,
            backend.gate,
            lambda one: convert.parse_search(one.request),
            lambda some: search_all(retriever, some),
        ):
            if isinstance(answer, status_pb2.Status):
                yield search_service_pb2.SearchStreamResponse(item=item, status=answer)
            else:
                search, sequence, result = answer
                response = convert.render_result(result, search.fields, fingerprint, sequence)
                yield search_service_pb2.SearchStreamResponse(item=item, response=response)


class InfoService(info_service_pb2_grpc.InfoServiceServicer):
    """What runs here; see ``info_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def GetServerInfo(  # noqa: N802
        self, request: info_service_pb2.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> info_service_pb2.GetServerInfoResponse:
        """Return version, model and limits."""
        encoder = self._backend.retriever.encoder
        return convert.render_info(encoder.fingerprint, encoder.ecg_encoder, self._backend.limits)


def add_services(server: grpc.Server, backend: Backend) -> None:
    """Register the services of this module."""
    embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingService(backend), server)
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(SearchService(backend), server)
    info_service_pb2_grpc.add_InfoServiceServicer_to_server(InfoService(backend), server)


def search_all(
    retriever: Retriever, searches: Sequence[convert.Search]
) -> list[tuple[convert.Search, int, SearchResult]]:
    """Answer searches in their order, with the commit that they saw; neighbours with the same options share a call."""
    answers: list[tuple[convert.Search, int, SearchResult]] = []
    sequence = retriever.corpus.sequence
    for options, group in itertools.groupby(searches, key=lambda search: search.options):
        members = list(group)
        # A page token belongs to one query.
        calls = [[member] for member in members] if options["page_token"] else [members]
        for call in calls:
            results = retriever.search([search.query for search in call], **options)
            answers.extend((search, sequence, result) for search, result in zip(call, results, strict=True))
    return answers
