"""Errors to gRPC statuses with ``google.rpc`` details: the one table.

A :class:`mmecg.errors.MmecgError` keeps its message. Anything else becomes INTERNAL with a fixed text and an error id;
what happened is in the log under that id, and nowhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mmecg.client.status import DEADLINE_REASON, DOMAIN, reason_of
from mmecg.errors import (
    AlreadyExistsError,
    ArtifactError,
    ConfigError,
    ConflictError,
    FingerprintMismatchError,
    InvalidInputError,
    MmecgError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (ConflictError, grpc.StatusCode.ABORTED),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (ArtifactError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (NotReadyError, grpc.StatusCode.UNAVAILABLE),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
)
"""The first class that an error is an instance of decides; INTERNAL if there is none."""

RETRY_DELAY_S = {NotReadyError: 1.0, OverloadedError: 0.1}

_RESOURCES = (("study_id", "mmecg.v1/Study"), ("subject_id", "mmecg.v1/Subject"))


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of an error."""
    return next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def grpc_code(number: int) -> grpc.StatusCode:
    """Return the status code of a number."""
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def render_status(error: Exception, request: Message | None = None) -> status_pb2.Status:
    """Render an error as a status with details.

    Parameters
    ----------
    error : Exception
    request : Message, optional
        Whose ``study_id`` or ``subject_id`` names the resource of a NOT_FOUND.
    """
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        return _internal(uuid.uuid4().hex)
    status = status_pb2.Status(code=code.value[0], message=str(error))
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=DEADLINE_REASON)
    if isinstance(error, MmecgError):
        info.reason = reason_of(type(error))
    if isinstance(error, FingerprintMismatchError):
        info.metadata.update(got=error.got, expected=error.expected)
    for detail in (info, *_specific(error, request)):
        status.details.add().Pack(detail)
    return status


def error_id_of(status: status_pb2.Status) -> str | None:
    """Return the error id of an INTERNAL status, None for any other."""
    if status.code != grpc.StatusCode.INTERNAL.value[0]:
        return None
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.metadata["error_id"])


def _internal(error_id: str) -> status_pb2.Status:
    status = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message=f"internal error {error_id}; the server's log has the details under this id",
    )
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason="INTERNAL", metadata={"error_id": error_id})
    status.details.add().Pack(info)
    return status


def _specific(error: Exception, request: Message | None) -> Iterator[Message]:
    """Yield the detail that goes with the kind of error, beside ErrorInfo."""
    if isinstance(error, InvalidInputError):
        field = error_details_pb2.BadRequest.FieldViolation(field=error.field or "", description=str(error))
        yield error_details_pb2.BadRequest(field_violations=[field])
    elif isinstance(error, NotFoundError | AlreadyExistsError):
        kind, name = _resource(request)
        yield error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=str(error))
    elif isinstance(error, ArtifactError | ConfigError):
        subject = "embedding" if isinstance(error, FingerprintMismatchError) else "server"
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=reason_of(type(error)), subject=subject, description=str(error)
        )
        yield error_details_pb2.PreconditionFailure(violations=[violation])
    elif isinstance(error, NotReadyError | OverloadedError):
        retry = error_details_pb2.RetryInfo()
        default = next(pause for kind, pause in RETRY_DELAY_S.items() if isinstance(error, kind))
        retry.retry_delay.FromMilliseconds(round(1000 * (error.retry_after_s or default)))
        yield retry


def _resource(request: Message | None) -> tuple[str, str]:
    """Return type and name of the resource that the request names."""
    for message in (request, getattr(request, "query", None)):
        for field, kind in _RESOURCES:
            if message is not None and field in message.DESCRIPTOR.fields_by_name and getattr(message, field):
                return kind, getattr(message, field)
    return "", ""
