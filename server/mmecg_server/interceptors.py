"""What surrounds every mmecg.v1 call: admission, deadline, errors to statuses, and one log line.

The log line says which request id, method and code, how long and how large, and nothing else of the request. An
internal error adds a line with its error id, the exception's type and the places in the code it came through, but not
its text, which may quote what a caller sent.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from mmecg.errors import InvalidInputError, NotReadyError, OverloadedError, QueryError, ReportError
from mmecg_server.admission import Doorkeeper, Watchdog
from mmecg_server.audit import CallRecord, Trail
from mmecg_server.call import Call, current_call, on_behalf_of
from mmecg_server.config import LimitsConfig
from mmecg_server.logs import log
from mmecg_server.metrics import Metrics
from mmecg_server.open_services import OpenServices
from mmecg_server.status import error_id_of, grpc_code, render_status
from mmecg_server.telemetry import REQUEST_ID, Refusals, Watch
from mmecg_server.tracing import Tracing

T = TypeVar("T")

SPARE_THREADS = 8
"""Threads beyond those of admitted calls, for calls on their way in."""

_PREFIX = "/mmecg.v1."
_OVERLOAD = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def report(error: Exception, request: Message | None = None) -> status_pb2.Status:
    """Return the status of an error; an internal one is logged under the id that the status carries."""
    status = render_status(error, request)
    error_id = error_id_of(status)
    if error_id is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}:{frame.name}" for frame in frames]
        log("internal_error", level=logging.ERROR, error_id=error_id, type=type(error).__name__, places=places)
    return status


class Gate:
    """Admission: a bounded number of unary calls and of streams at the same time, none once draining.

    Parameters
    ----------
    limits : LimitsConfig

    Attributes
    ----------
    threads : int
        Of the pool that serves calls: one for each place, and some for calls of callers who are not known yet.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._room = {False: limits.max_in_flight, True: limits.max_streams}
        self._limit = dict(self._room)
        self.threads = limits.max_in_flight + limits.max_streams + SPARE_THREADS
        self._free_threads = threading.BoundedSemaphore(self.threads)
        self._lock = threading.Lock()
        self._draining = threading.Event()

    def drain(self) -> None:
        """Refuse calls from now on, and let streams end at their next chunk."""
        self._draining.set()

    def check(self) -> None:
        """Raise NotReadyError once draining."""
        if self._draining.is_set():
            raise NotReadyError("the server is shutting down; send the call to another server, or later")

    def running(self) -> dict[str, int]:
        """Return how many calls and streams are being served."""
        return {what: self._limit[kind] - self._room[kind] for kind, what in ((False, "unary"), (True, "stream"))}

    def take_thread(self, *, streaming: bool) -> bool:
        """Take a thread for a call if one is free, and there is room for such a call; return whether it was taken."""
        if not self._room[streaming] or self._draining.is_set():
            return False
        return self._free_threads.acquire(blocking=False)

    def leave_thread(self) -> None:
        """Give back what :meth:`take_thread` took."""
        self._free_threads.release()

    @contextmanager
    def enter(self, *, streaming: bool, is_full: bool = False) -> Iterator[None]:
        """Hold a place for the time of a call; none, if it is known already that there is none.

        Raises
        ------
        OverloadedError
            No place is free.
        NotReadyError
            The server is draining.
        """
        self.check()
        with self._lock:
            if is_full or not self._room[streaming]:
                what = "streams" if streaming else "calls"
                raise OverloadedError(
                    f"{self._limit[streaming]} {what} are being served, the most allowed; try again", limit=what
                )
            self._room[streaming] -= 1
        try:
            yield
        finally:
            with self._lock:
                self._room[streaming] += 1


class _Here(ThreadPoolExecutor):
    """Runs what it is given in the thread that gives it: gRPC's own, which sees a call first."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run it; return its outcome."""
        outcome: Future[T] = Future()
        outcome.set_result(fn(*args, **kwargs))
        return outcome


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Puts every mmecg.v1 method behind the gate, under its deadline, and turns what it raises into a status.

    Parameters
    ----------
    gate : Gate
    limits : LimitsConfig
    metrics : Metrics
    tracing : Tracing, optional
    doorkeeper : Doorkeeper
        Decides who is let in.

    Attributes
    ----------
    trail : Trail, optional
        Where every call is entered, also one that is refused.
    open_services : OpenServices
        Health and reflection.
    """

    def __init__(
        self, gate: Gate, limits: LimitsConfig, metrics: Metrics, tracing: Tracing | None, doorkeeper: Doorkeeper
    ) -> None:
        self.trail: Trail | None = None
        self.open_services = OpenServices(limits.max_connections)
        self._watchdog = Watchdog(min(limits.stream_idle_s, limits.default_deadline_s))
        self._doorkeeper = doorkeeper
        self._gate = gate
        self._limits = limits
        self._metrics = metrics
        self._tracing = tracing
        self._refusals = Refusals()
        self._here = _Here(1)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a unary or bidirectional method, and those of other services (health, reflection).

        Every method takes its requests as a stream: gRPC would otherwise wait for the one of a unary method, and hold a
        thread for it, before any of this is asked.
        """
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if not method.startswith(_PREFIX):
            return self.open_services.serve(handler)
        assert handler.request_deserializer is not None  # noqa: S101  (generated code has one)
        if not self._gate.take_thread(streaming=handler.stream_stream is not None):
            return self._refuse(method, streaming=handler.stream_stream is not None)
        decode = _tolerant(handler.request_deserializer)
        if serve_stream := handler.stream_stream:

            def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Message]:
                with self._threaded(), self._call(method, context, streaming=True) as (watch, record):
                    checked = map(partial(_checked, watch=watch, see=record.see_request), requests)
                    answers = serve_stream(checked, context)
                    for answer in self._watchdog.follow(answers, context, self._limits.stream_idle_s):
                        watch.count_answer(answer.ByteSize())
                        record.see_answer(answer)
                        yield answer

            return grpc.stream_stream_rpc_method_handler(stream, decode, handler.response_serializer)
        serve_unary = handler.unary_unary
        assert serve_unary is not None  # noqa: S101  (mmecg.v1 has no other kind of method)

        def unary(requests: Iterator[Any], context: grpc.ServicerContext) -> Message | None:
            with self._threaded(), self._call(method, context) as (watch, record):
                response: Message = serve_unary(_checked(self._only(requests, context), watch, record.see), context)
                self._check_size(response)
                watch.count_answer(response.ByteSize())
                record.see(response)
                return response
            return None

        return grpc.stream_unary_rpc_method_handler(unary, decode, handler.response_serializer)

    def close(self) -> None:
        """End the threads that look after calls."""
        self._refusals.close()
        self._watchdog.close()
        self.open_services.close()

    def _refuse(self, method: str, *, streaming: bool) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what tells a caller that there is no place, or that it may not call, in gRPC's thread and unread."""

        def refuse(requests: Iterator[Any], context: grpc.ServicerContext) -> None:
            with self._call(method, context, streaming=streaming, is_full=True):
                pass

        refuse.experimental_thread_pool = self._here  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(refuse)

    @contextmanager
    def _threaded(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._gate.leave_thread()

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Return the request of a unary method, which has to come before the deadline; what follows is not read."""
        with self._watchdog.waiting(context, current_call().deadline):
            request = next(requests, None)
        if request is None:
            raise InvalidInputError("the call ended without a request, expected one")
        return request

    @contextmanager
    def _call(
        self, method: str, context: grpc.ServicerContext, *, streaming: bool = False, is_full: bool = False
    ) -> Iterator[tuple[Watch, CallRecord]]:
        watch = Watch(self._metrics, self._tracing, method, context, streaming=streaming)
        answer_metadata = ((REQUEST_ID, watch.request_id),)
        context.set_trailing_metadata(answer_metadata)
        record = CallRecord(method.removeprefix(_PREFIX), watch.request_id, self.trail)
        code, status, failure = grpc.StatusCode.OK, None, None
        try:
            call = Call(
                self._deadline(context, streaming=streaming), context.is_active, watch.request_id, watch.observe
            )
            entered = self._doorkeeper.enter(method, context, record)
            place = self._gate.enter(streaming=streaming, is_full=is_full)
            with entered, place, on_behalf_of(call), record.acting():
                watch.begin()
                yield watch, record
                record.end(code.name)  # before the answer leaves: what cannot be entered is not answered
        except GeneratorExit:  # the client of a stream has left, or takes no answers
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.RpcError:  # requests end so when their client has left, or has been waited for long enough
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            failure = error
            status = report(error, watch.request)
            code = grpc_code(status.code)
        finally:
            if code is not grpc.StatusCode.OK:
                _enter_failure(record, code)
            fields = {"method": method, "principal": record.principal, **watch.end(code, failure)}
            if code not in _OVERLOAD or self._refusals.is_first(method, code.name, record.principal):
                log("call", **fields)
        if status is not None:
            refused: Any = rpc_status.to_status(status)
            metadata = (*refused.trailing_metadata, *answer_metadata)
            context.abort_with_status(refused._replace(trailing_metadata=metadata))

    def _deadline(self, context: grpc.ServicerContext, *, streaming: bool) -> float:
        """Return the caller's deadline; a unary call gets at most the default, a stream may last as it likes."""
        remaining = context.time_remaining()
        limit = float("inf") if streaming else self._limits.default_deadline_s
        return time.monotonic() + min(limit, limit if remaining is None else remaining)

    def _check_size(self, response: Message) -> None:
        if response.ByteSize() > self._limits.max_message_bytes:
            raise QueryError(
                f"the answer has {response.ByteSize()} bytes, expected at most {self._limits.max_message_bytes}; "
                "ask for fewer results, or leave `ecg` out of read_mask"
            )


def _enter_failure(record: CallRecord, code: grpc.StatusCode) -> None:
    try:
        record.end(code.name)
    except Exception as error:  # the call has failed already, and that is what its client is told
        log("audit_failed", level=logging.ERROR, request_id=record.request_id, type=type(error).__name__)


def _tolerant(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | InvalidInputError]:
    """Return a deserializer that hands on what is wrong; gRPC would answer INTERNAL without saying it."""

    def decode(content: bytes) -> Message | InvalidInputError:
        try:
            return deserialize(content)
        except DecodeError as error:
            if "UTF-8" in str(error):
                return ReportError("a text of the request is not UTF-8; convert it to UTF-8", field="text")
            return InvalidInputError(
                f"the request's {len(content)} bytes cannot be decoded as its message; they are cut or of another type"
            )

    return decode


def _checked(request: Message | InvalidInputError, watch: Watch, see: Callable[[Message], None]) -> Message:
    if isinstance(request, InvalidInputError):
        raise request
    watch.take(request)
    see(request)
    return request
