"""The corpus as a service: store, read, change, count and delete studies. See ``corpus_service.proto``."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from mmecg_pb.v1 import corpus_service_pb2, corpus_service_pb2_grpc

from mmecg.client.messages import check_known, parse_filter
from mmecg.retriever import get_present
from mmecg.study import check_id
from mmecg_server import convert
from mmecg_server.service import Backend
from mmecg_server.streaming import answer_stream
from mmecg_server.upserts import UpsertMessages
from mmecg_server.writes import begin_to_store, parse_update, parse_upsert, store_all, write_request


class CorpusService(corpus_service_pb2_grpc.CorpusServiceServicer):
    """The corpus; see ``corpus_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def UpsertStudies(  # noqa: N802
        self, request_iterator: Iterator[corpus_service_pb2.UpsertStudiesRequest], context: grpc.ServicerContext
    ) -> Iterator[corpus_service_pb2.UpsertStudiesResponse]:
        """Store studies in bulk."""
        backend, retriever = self._backend, self._backend.retriever
        messages = UpsertMessages()
        answers = answer_stream(
            backend.chunks(request_iterator, messages.split),
            backend.gate,
            lambda one: parse_upsert(one, retriever.encoder.fingerprint),
            lambda some: store_all(retriever, some),
            begin=lambda some: begin_to_store(retriever, some),
        )
        yield from messages.join(answers)

    def GetStudy(  # noqa: N802
        self, request: corpus_service_pb2.GetStudyRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.GetStudyResponse:
        """Return a study."""
        fields = convert.parse_mask(request.read_mask, default=convert.STUDY_FIELDS)
        study_id = check_id(request.study_id, "study_id")
        ((study, etag),) = self._backend.retriever.corpus.tagged([study_id], with_signal="ecg" in fields)
        return corpus_service_pb2.GetStudyResponse(study=convert.render_masked(study, fields), etag=etag)

    def UpdateStudy(  # noqa: N802
        self, request: corpus_service_pb2.UpdateStudyRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.UpdateStudyResponse:
        """Change fields of a study."""
        update = parse_update(request)
        sequence = self._backend.retriever.update(
            update.study_id, update.change, etag=update.etag, request=update.request
        )
        return corpus_service_pb2.UpdateStudyResponse(sequence=sequence)

    def ListStudies(  # noqa: N802
        self, request: corpus_service_pb2.ListStudiesRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.ListStudiesResponse:
        """List studies."""
        corpus = self._backend.retriever.corpus
        fields = convert.parse_mask(request.read_mask, default=convert.WITHOUT_SIGNAL)
        study_ids, token = corpus.list_studies(
            subject_id=check_id(request.subject_id, "subject_id") if request.HasField("subject_id") else None,
            page_size=convert.parse_page_size(request),
            page_token=request.page_token,
        )
        found = get_present(corpus, study_ids, with_signal="ecg" in fields)
        studies = [convert.render_masked(study, fields) for study in found]
        return corpus_service_pb2.ListStudiesResponse(studies=studies, next_page_token=token)

    def DeleteStudy(  # noqa: N802
        self, request: corpus_service_pb2.DeleteStudyRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.DeleteStudyResponse:
        """Delete a study."""
        study_id = check_id(request.study_id, "study_id")
        sequence = self._backend.retriever.corpus.delete(study_id, request=write_request(request.request_id))
        return corpus_service_pb2.DeleteStudyResponse(sequence=sequence)

    def CountStudies(  # noqa: N802
        self, request: corpus_service_pb2.CountStudiesRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.CountStudiesResponse:
        """Count the studies that pass a filter."""
        check_known(request, "request")
        studies = self._backend.retriever.corpus.count(parse_filter(request.filter))
        return corpus_service_pb2.CountStudiesResponse(studies=studies)

    def GetStats(  # noqa: N802
        self, request: corpus_service_pb2.GetStatsRequest, context: grpc.ServicerContext
    ) -> corpus_service_pb2.GetStatsResponse:
        """Say what the corpus holds."""
        return convert.render_stats(self._backend.retriever.corpus.stats())


def add_corpus_service(server: grpc.Server, backend: Backend) -> None:
    """Register the service of this module."""
    corpus_service_pb2_grpc.add_CorpusServiceServicer_to_server(CorpusService(backend), server)
