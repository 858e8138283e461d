"""What an operator sees of a call: request id, metrics, trace, log line."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from mmecg_server.call import Stage
from mmecg_server.metrics import REFUSALS, Metrics
from mmecg_server.tracing import CallSpan, Tracing

REQUEST_ID = "x-request-id"
_MADE_BY_MACHINE = re.compile(
    r"(?=.*[A-Za-z])([0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-7][0-9A-HJKMNP-TV-Z]{25})"
)
"""A UUID, with dashes or without, or a ULID. One of nothing but digits may be a number of somebody's."""


class Watch:
    """One call, watched from admission to its last answer.

    Parameters
    ----------
    metrics : Metrics
    tracing : Tracing or None
    method : str
        ``/mmecg.v1.SearchService/Search``.
    context : grpc.ServicerContext
    streaming : bool

    Attributes
    ----------
    request_id : str
    request : Message, optional
        Of a unary call, once it has come.
    """

    def __init__(
        self, metrics: Metrics, tracing: Tracing | None, method: str, context: grpc.ServicerContext, *, streaming: bool
    ) -> None:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        self.request_id = choose_request_id(metadata)
        self.request: Message | None = None
        self._method = method.removeprefix("/mmecg.v1.")
        self._metrics = metrics
        self._streaming = streaming
        self._received = self._sent = self._items = 0
        self._span: CallSpan | None = None
        if tracing is not None:
            self._span = tracing.begin(self._method, metadata, self.request_id)
        self._started = time.monotonic()

    def observe(self, name: Stage, started: float, ended: float) -> None:
        """Count a stage that ended."""
        self._metrics.observe_stage(name, ended - started)
        if self._span is not None:
            self._span.add_stage(name, started, ended)

    def take(self, request: Message) -> None:
        """Count a message that came; that of a unary call is kept."""
        self._received += request.ByteSize()
        if self._streaming:
            self._items += len(getattr(request, "items", ())) or 1  # a message may hold several
        self.request = None if self._streaming else request

    def count_answer(self, size: int) -> None:
        """Count a message that is sent."""
        self._sent += size

    def end(self, code: grpc.StatusCode, error: Exception | None) -> dict[str, Any]:
        """Count the call; return the fields of its log line."""
        seconds = time.monotonic() - self._started
        self._metrics.count_call(self._method, code.name, None if self._streaming else seconds)
        self._metrics.count_traffic(self._method, received=self._received, sent=self._sent, items=self._items)
        if error is not None and code.name in REFUSALS:
            self._metrics.count_refusal(error)
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "code": code.name,
            "duration_ms": round(1000 * seconds, 2),
            "received_bytes": self._received,
            "sent_bytes": self._sent,
        }
        if self._streaming:
            fields["items"] = self._items
        if self._span is not None:
            fields["trace_id"] = self._span.trace_id
            self._span.end(code.name, int(code.value[0]))
        return fields


def choose_request_id(metadata: Mapping[str, str]) -> str:
    """Return the caller's request id if it is a UUID or a ULID, or else a new one.

    Anything else may be the number of an order or a patient, and the id goes to the log, traces and the audit trail.
    """
    given = metadata.get(REQUEST_ID, "")
    return given if _MADE_BY_MACHINE.fullmatch(given) else uuid.uuid4().hex
