"""What an operator sees of a call: request id, metrics, trace, log line."""

from __future__ import annotations

import collections
import re
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from mmecg_server.call import Stage
from mmecg_server.logs import log
from mmecg_server.metrics import REFUSALS, Metrics
from mmecg_server.tracing import CallSpan, Tracing

REQUEST_ID = "x-request-id"
REFUSALS_EVERY_S = 1.0
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
        self._metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        self.request_id = choose_request_id(self._metadata)
        self.request: Message | None = None
        self._method = method.removeprefix("/mmecg.v1.")
        self._metrics = metrics
        self._streaming = streaming
        self._received = self._sent = self._items = 0
        self._tracing = tracing
        self._span: CallSpan | None = None
        self._started = time.monotonic()

    def begin(self) -> None:
        """Begin the span of a call that was let in."""
        if self._tracing is not None:
            self._span = self._tracing.begin(self._method, self._metadata, self.request_id)

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


class Refusals:
    """Lines of the log about calls refused alike: the first of a second stands for itself, the others as a number.

    Under overload the log would otherwise cost more than the refusals. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._timer: threading.Timer | None = None

    def is_first(self, method: str, code: str, principal: str) -> bool:
        """Count a call; False if it needs no line of its own."""
        key = (method, code, principal)
        with self._lock:
            self._counts[key] += 1
            if self._timer is None:
                self._timer = threading.Timer(REFUSALS_EVERY_S, self.write)
                self._timer.daemon = True
                self._timer.start()
            return self._counts[key] == 1

    def write(self) -> None:
        """Write how many more there were."""
        with self._lock:
            counts, self._counts, self._timer = self._counts, collections.Counter(), None
        for (method, code, principal), count in counts.items():
            if count > 1:
                log("calls_refused", method=method, code=code, principal=principal, more=count - 1)

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            timer = self._timer
        if timer is not None:
            timer.cancel()
            self.write()


def choose_request_id(metadata: Mapping[str, str]) -> str:
    """Return the caller's request id if it is a UUID or a ULID, or else a new one.

    Anything else may be the number of an order or a patient, and the id goes to the log, traces and the audit trail.
    """
    given = metadata.get(REQUEST_ID, "")
    return given if _MADE_BY_MACHINE.fullmatch(given) else uuid.uuid4().hex
