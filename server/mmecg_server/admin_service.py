"""The operator's work on a corpus that is being served; see ``admin_service.proto``."""

from __future__ import annotations

import grpc
from mmecg_pb.v1 import admin_service_pb2 as pb
from mmecg_pb.v1 import admin_service_pb2_grpc

from mmecg.administration import Administration, AuditRecord
from mmecg.client.messages import check_known, parse_time
from mmecg.errors import ConfigError, QueryError
from mmecg.study import check_id
from mmecg_server import convert
from mmecg_server.service import Backend


class AdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Erase, back up, verify, audit, another bundle."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def EraseSubject(  # noqa: N802
        self, request: pb.EraseSubjectRequest, context: grpc.ServicerContext
    ) -> pb.EraseSubjectResponse:
        """Erase a subject for good."""
        check_known(request, "request")
        subject_id = check_id(request.subject_id, "subject_id")
        erased = self._administration.erase_subject(subject_id, check=request.check)
        traces = None if erased.traces is None else len(erased.traces)
        return pb.EraseSubjectResponse(studies=erased.studies, sequence=erased.sequence, traces=traces)

    def Backup(  # noqa: N802
        self, request: pb.BackupRequest, context: grpc.ServicerContext
    ) -> pb.BackupResponse:
        """Write a backup."""
        check_known(request, "request")
        made = self._administration.back_up(request.name)
        return pb.BackupResponse(sequence=made.sequence, studies=made.studies, size_bytes=made.size_bytes)

    def Verify(  # noqa: N802
        self, request: pb.VerifyRequest, context: grpc.ServicerContext
    ) -> pb.VerifyResponse:
        """Read the whole corpus."""
        found = self._administration.verify(wanted=context.is_active)
        return pb.VerifyResponse(findings=found.findings, studies=found.studies)

    def ListAudit(  # noqa: N802
        self, request: pb.ListAuditRequest, context: grpc.ServicerContext
    ) -> pb.ListAuditResponse:
        """List entries of the audit trail."""
        check_known(request, "request")
        size = convert.parse_page_size(request)
        records = self._administration.audit(
            subject_id=check_id(request.subject_id, "subject_id") if request.HasField("subject_id") else None,
            principal=request.principal if request.HasField("principal") else None,
            since=parse_time(request, "since"),
            after=_parse_token(request.page_token),
            limit=size + 1,
        )
        page = records[:size]
        token = str(page[-1].entry) if len(records) > size else ""
        return pb.ListAuditResponse(entries=map(_render_entry, page), next_page_token=token)

    def Reindex(  # noqa: N802
        self, request: pb.ReindexRequest, context: grpc.ServicerContext
    ) -> pb.ReindexResponse:
        """Let another bundle take over."""
        check_known(request, "request")
        return pb.ReindexResponse(fingerprint=self._administration.reindex(request.bundle))

    def GetReindex(  # noqa: N802
        self, request: pb.GetReindexRequest, context: grpc.ServicerContext
    ) -> pb.GetReindexResponse:
        """Say how far that is."""
        state = self._administration.reindexing()
        return pb.GetReindexResponse(
            fingerprint=state.fingerprint, done=state.done, studies=state.studies, total=state.total, error=state.error
        )

    @property
    def _administration(self) -> Administration:
        _ = self._backend.retriever  # not ready is another answer than never
        if self._backend.administration is None:
            raise ConfigError(
                "the server's corpus cannot be administered over gRPC; use the commands of mmecg beside it"
            )
        return self._backend.administration


def add_admin_service(server: grpc.Server, backend: Backend) -> None:
    """Register the service of this module."""
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(backend), server)


def _render_entry(record: AuditRecord) -> pb.AuditEntry:
    entry = pb.AuditEntry(
        entry=record.entry,
        principal=record.principal,
        method=record.method,
        outcome=record.outcome,
        request_id=record.request_id,
        items=record.items,
        touched=[
            pb.AuditTouched(
                subject_id=one.subject_id,
                study_id=one.study_id,
                subject_digest=one.subject_digest,
                study_digest=one.study_digest,
            )
            for one in record.touched
        ],
    )
    entry.time.FromDatetime(record.time)
    return entry


def _parse_token(token: str) -> int:
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise QueryError(
            "page_token is not one of an earlier answer; leave it out for the first page", field="page_token"
        )
    return int(token or 0)
