"""Errors and gRPC statuses: the reason that names an error class on the wire, and a status turned back into an error.

The server puts a ``google.rpc.ErrorInfo`` of domain :data:`DOMAIN` into every status; its ``reason`` is the class name
without ``Error`` in upper snake case (``StudyNotFoundError`` is ``STUDY_NOT_FOUND``). A status without one, from a
proxy or from gRPC itself, is mapped by its code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from mmecg import errors
from mmecg.errors import FingerprintMismatchError, InvalidInputError, MmecgError, NotReadyError, OverloadedError

DOMAIN = "mmecg"
DEADLINE_REASON = "DEADLINE_EXCEEDED"

_DETAILS = "grpc-status-details-bin"
_BY_CODE: dict[int, type[MmecgError]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: errors.InvalidInputError,
    grpc.StatusCode.NOT_FOUND.value[0]: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS.value[0]: errors.AlreadyExistsError,
    grpc.StatusCode.ABORTED.value[0]: errors.ConflictError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: errors.PermissionDeniedError,
    grpc.StatusCode.FAILED_PRECONDITION.value[0]: errors.ArtifactError,
    grpc.StatusCode.UNAVAILABLE.value[0]: errors.NotReadyError,
    # The clients never cancel a call that somebody waits for: a stopping server did.
    grpc.StatusCode.CANCELLED.value[0]: errors.NotReadyError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: errors.OverloadedError,
}


def reason_of(kind: type[MmecgError]) -> str:
    """Return the reason of an error class, for example ``"STUDY_NOT_FOUND"``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).upper()


def error_classes() -> Iterator[type[MmecgError]]:
    """Yield every error class of :mod:`mmecg.errors`, parents first."""
    pending: list[type[MmecgError]] = [MmecgError]
    while pending:
        kind = pending.pop(0)
        if kind.__module__ == errors.__name__:
            yield kind
            pending.extend(kind.__subclasses__())


def parse_status(status: status_pb2.Status) -> Exception:
    """Return the error that a status stands for.

    Returns
    -------
    MmecgError or TimeoutError
        Of the class that the server raised. ``retry_after_s`` is set on errors that name a pause.
    """
    info, field, pause_s = error_details_pb2.ErrorInfo(), None, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = next((violation.field for violation in bad.field_violations), None)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            pause_s = retry.retry_delay.ToTimedelta().total_seconds()
    if status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]:
        return TimeoutError(status.message)
    error = _build(_class_of(info, status.code), status.message, info, field)
    if isinstance(error, NotReadyError | OverloadedError):
        error.retry_after_s = pause_s
    return error


def parse_rpc_error(error: Any) -> Exception:
    """Return the error that a failed call (``grpc.RpcError`` or ``grpc.aio.AioRpcError``) stands for."""
    code, text = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            return parse_status(status_pb2.Status.FromString(value))
    return parse_status(status_pb2.Status(code=code.value[0], message=f"{code.name}: {text}"))


def is_retryable(error: Exception) -> bool:
    """Return True for an error of the moment; a message above the size limit is not one, whatever its code."""
    return isinstance(error, NotReadyError | OverloadedError) and "larger than max" not in str(error)


def _class_of(info: error_details_pb2.ErrorInfo, code: int) -> type[MmecgError]:
    if info.domain == DOMAIN:
        for kind in error_classes():
            if reason_of(kind) == info.reason:
                return kind
    return _BY_CODE.get(code, MmecgError)


def _build(kind: type[MmecgError], message: str, info: error_details_pb2.ErrorInfo, field: str | None) -> MmecgError:
    if kind is FingerprintMismatchError:
        error = FingerprintMismatchError(got=info.metadata["got"], expected=info.metadata["expected"])
        error.args = (message,)
        return error
    if issubclass(kind, InvalidInputError):
        return kind(message, field=field)
    return kind(message)
