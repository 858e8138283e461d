"""Services that ask nobody who they are: health and reflection.

Strangers call them, so they have threads of their own, and nobody keeps one for long: a call whose request does not
come, or whose answer is not taken, is cancelled after :data:`OPEN_S`, or as soon as its thread is wanted for another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from mmecg_server.admission import Watchdog

T = TypeVar("T")
Serve = Callable[..., Any]

OPEN_THREADS = 32
"""Calls that wait for their request at the same time; the next one takes the thread of the oldest."""

MAX_OPEN_STREAMS = 2
OPEN_S = 10.0


class OpenServices:
    """Serves the methods of these services.

    Parameters
    ----------
    max_watches : int
        Clients that are told of changes of health at the same time; none of them holds a thread.

    Attributes
    ----------
    watchdog : Watchdog
    """

    def __init__(self, max_watches: int) -> None:
        self.watchdog = Watchdog(OPEN_S)
        self._pool = ThreadPoolExecutor(OPEN_THREADS + MAX_OPEN_STREAMS, thread_name_prefix="open")
        self._streams = threading.BoundedSemaphore(MAX_OPEN_STREAMS)
        self._watches = threading.BoundedSemaphore(max_watches)

    def close(self) -> None:
        """End the threads; no call is served any more."""
        self.watchdog.close()
        self._pool.shutdown(wait=False)

    def serve(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a call that has just come."""
        self.watchdog.make_room(OPEN_THREADS)
        behaviour: Any
        if handler.unary_unary is not None:
            behaviour, build = self._unary(handler.unary_unary), grpc.stream_unary_rpc_method_handler
        elif handler.unary_stream is not None:
            behaviour, build = self._watch(handler.unary_stream), grpc.stream_stream_rpc_method_handler
            behaviour.experimental_non_blocking = True
        else:
            assert handler.stream_stream is not None  # noqa: S101  (there is no other kind among these)
            behaviour, build = self._stream(handler.stream_stream), grpc.stream_stream_rpc_method_handler
        behaviour.experimental_thread_pool = self._pool
        return build(behaviour, handler.request_deserializer, handler.response_serializer)

    def _first(self, requests: Iterator[T], context: grpc.ServicerContext) -> T:
        with self.watchdog.waiting(context, time.monotonic() + OPEN_S):
            request = next(requests, None)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request, expected one")
        return request

    def _unary(self, serve: Serve) -> Serve:
        return lambda requests, context: serve(self._first(requests, context), context)

    def _watch(self, serve: Serve) -> Serve:
        def watch(requests: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            request = self._first(requests, context)
            if not self._watches.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health already; ask for it")
            if context.add_callback(self._watches.release):
                serve(request, context, _Outbox(send, context, self._pool, self.watchdog))
            else:  # its client has left
                self._watches.release()

        return watch

    def _stream(self, serve: Serve) -> Serve:
        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            if not self._streams.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many of these streams are open; try again later")
            end = threading.Timer(OPEN_S, context.cancel)
            end.daemon = True
            end.start()
            answers: Iterable[Any] = serve(requests, context)
            try:
                yield from answers
            except grpc.RpcError:  # it has lasted too long, or its client has left
                return
            finally:
                end.cancel()
                self._streams.release()

        return stream


class _Outbox:
    """Sends what is newest to a client, in a thread of the pool, so that who does not read holds nobody else up.

    Parameters
    ----------
    send : callable
        Blocks until the client takes it.
    context : grpc.ServicerContext
    pool : ThreadPoolExecutor
    watchdog : Watchdog
    """

    def __init__(
        self, send: Callable[[Any], None], context: grpc.ServicerContext, pool: ThreadPoolExecutor, watchdog: Watchdog
    ) -> None:
        self._send = send
        self._context = context
        self._pool = pool
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._newest: Any = None
        self._is_sending = False

    def __call__(self, answer: Any) -> None:
        """Take an answer; None once the call has ended."""
        with self._lock:
            self._newest = answer
            if answer is None or self._is_sending:
                return
            self._is_sending = True
        self._pool.submit(self._run)

    def _run(self) -> None:
        while (answer := self._take()) is not None:
            with self._watchdog.waiting(self._context, time.monotonic() + OPEN_S):
                self._send(answer)

    def _take(self) -> Any:
        with self._lock:
            answer, self._newest = self._newest, None
            self._is_sending = answer is not None
            return answer
