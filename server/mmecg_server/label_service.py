"""The label mining service: reports in, assertions and labels out. It needs neither model nor index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from google.rpc import status_pb2
from mmecg_pb.v1 import label_mining_service_pb2, label_mining_service_pb2_grpc

from mmecg.client.label_messages import render_mined_report
from mmecg.client.messages import check_known
from mmecg.errors import InvalidInputError, QueryError
from mmecg.labels.report_miner import ReportMiner
from mmecg.labels.serial import SerialResolver
from mmecg.report import check_text
from mmecg.search import CorpusStore
from mmecg.study import check_id
from mmecg_server.call import stage
from mmecg_server.service import Backend
from mmecg_server.streaming import answer_stream


class LabelMiningService(label_mining_service_pb2_grpc.LabelMiningServiceServicer):
    """Weak labels from reports; see ``label_mining_service.proto``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def MineLabels(  # noqa: N802
        self, request: label_mining_service_pb2.MineLabelsRequest, context: grpc.ServicerContext
    ) -> label_mining_service_pb2.MineLabelsResponse:
        """Mine one report."""
        return mine(self._backend.miner, self._backend.retriever.corpus, parse_mine(request))

    def MineLabelsStream(  # noqa: N802
        self,
        request_iterator: Iterator[label_mining_service_pb2.MineLabelsStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[label_mining_service_pb2.MineLabelsStreamResponse]:
        """Mine reports in bulk."""
        backend = self._backend
        miner, corpus = backend.miner, backend.retriever.corpus
        reader = backend.chunks(request_iterator)

        def answer(
            some: Sequence[label_mining_service_pb2.MineLabelsRequest],
        ) -> list[label_mining_service_pb2.MineLabelsResponse]:
            return [mine(miner, corpus, one) for one in some]

        for item, found in answer_stream(reader, backend.gate, lambda one: parse_mine(one.request), answer):
            if isinstance(found, status_pb2.Status):
                yield label_mining_service_pb2.MineLabelsStreamResponse(item=item, status=found)
            else:
                yield label_mining_service_pb2.MineLabelsStreamResponse(item=item, response=found)


def add_label_mining_service(server: grpc.Server, backend: Backend) -> None:
    """Register the service."""
    label_mining_service_pb2_grpc.add_LabelMiningServiceServicer_to_server(LabelMiningService(backend), server)


@stage("decode")
def parse_mine(
    request: label_mining_service_pb2.MineLabelsRequest,
) -> label_mining_service_pb2.MineLabelsRequest:
    """Check a request.

    Raises
    ------
    InvalidInputError
        No source, a text that is too long or has control characters, an identifier that cannot be one.
    """
    check_known(request, "request")
    source = request.WhichOneof("source")
    if source is None:
        raise QueryError("request has no source, expected text or study_id; set one of them", field="source")
    if source == "text":
        check_text(request.text, field="text")
    else:
        check_id(request.study_id, "study_id")
    return request


@stage("mine")
def mine(
    miner: ReportMiner, corpus: CorpusStore, request: label_mining_service_pb2.MineLabelsRequest
) -> label_mining_service_pb2.MineLabelsResponse:
    """Mine the text of a checked request; serial statements of a study's report are looked up in the corpus.

    Raises
    ------
    StudyNotFoundError
        The corpus has no such study.
    InvalidInputError
        The study has no report; or the language or the vocabulary is unknown.
    """
    if request.WhichOneof("source") == "text":
        found = miner.mine_report(request.text, language=request.language, vocabulary=request.vocabulary)
        return render_mined_report(found, request.text)
    (study,) = corpus.get([request.study_id], with_signal=False)
    if study.report is None:
        raise InvalidInputError("study has no report, expected one; send the text instead", field="study_id")
    resolver = SerialResolver(corpus, lambda raw: miner.mine_report(raw).assertions)
    found = miner.mine_report(
        study.report.raw,
        language=request.language,
        vocabulary=request.vocabulary,
        resolve=lambda said: resolver.resolve(said, study.subject_id, study.acquired_at),
    )
    return render_mined_report(found, study.report.raw)
