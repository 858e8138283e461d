"""Who is let in: the check of a call before it takes a place, what a principal may ask for, streams that stand still.

The order: who calls, whether its roles allow the method, whether it has asked for too much; only then does a call
compete for the server's places, so that strangers hold none.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from mmecg.errors import OverloadedError
from mmecg_server.audit import CallRecord
from mmecg_server.auth import Authenticator, acting_as, check_permission
from mmecg_server.config import LimitsConfig

T = TypeVar("T")

MAX_OPEN_STREAMS = 2
OPEN_STREAM_S = 10.0

_REMEMBERED = 10_000
"""Principals; a bucket that is forgotten was the longest without a call."""


class Doorkeeper:
    """Lets a call in, on behalf of whoever makes it.

    Parameters
    ----------
    authenticator : Authenticator
    limits : LimitsConfig
    """

    def __init__(self, authenticator: Authenticator, limits: LimitsConfig) -> None:
        self._authenticator = authenticator
        self._limits = PrincipalLimits(limits)

    @contextmanager
    def enter(self, method: str, context: grpc.ServicerContext, record: CallRecord) -> Iterator[None]:
        """Act as the caller for the time of a call.

        Raises
        ------
        UnauthenticatedError
            It does not show who it is.
        PermissionDeniedError
            None of its roles allows the method.
        OverloadedError
            It asks for too much.
        """
        principal = self._authenticator.identify(context)
        record.principal = principal.name
        check_permission(principal, method)
        with self._limits.enter(principal.name), acting_as(principal):
            yield


@dataclass(eq=False)
class _Share:
    """What a principal has left: calls it may start, when that was counted, calls that run."""

    tokens: float
    counted_at: float
    running: int = 0


class PrincipalLimits:
    """Rate and concurrency of each principal. Safe to use from many threads.

    Parameters
    ----------
    limits : LimitsConfig
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = limits.rate_per_s
        self._burst = float(limits.burst)
        self._most = limits.max_in_flight_per_principal
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: OrderedDict[str, _Share] = OrderedDict()

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        """Hold a place of a principal's for the time of a call.

        Raises
        ------
        OverloadedError
            It starts too many calls a second, or has too many running. ``retry_after_s`` says when the next may start.
        """
        with self._lock:
            share = self._take(name)
        try:
            yield
        finally:
            with self._lock:
                share.running -= 1

    def _take(self, name: str) -> _Share:
        now = self._clock()
        share = self._shares.setdefault(name, _Share(self._burst, now))
        self._shares.move_to_end(name)
        for _ in range(len(self._shares) - _REMEMBERED):
            oldest, left = self._shares.popitem(last=False)
            if left.running:
                self._shares[oldest] = left
        if self._most and share.running >= self._most:
            raise OverloadedError(
                f"{share.running} calls of this caller are being served, the most it is allowed; wait for one to end",
                limit="principal_calls",
            )
        if self._rate:
            share.tokens = min(self._burst, share.tokens + (now - share.counted_at) * self._rate)
            share.counted_at = now
            if share.tokens < 1:
                raise OverloadedError(
                    f"this caller starts more than {self._rate:g} calls a second; slow down, or send a stream",
                    limit="principal_rate",
                    retry_after_s=(1 - share.tokens) / self._rate,
                )
            share.tokens -= 1
        share.running += 1
        return share


class OpenStreams:
    """Bounds streams that ask nobody who they are (reflection): each holds a thread, and nobody shall hold them all."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(MAX_OPEN_STREAMS)

    def follow(
        self, serve: Callable[[Iterator[Any], grpc.ServicerContext], Iterable[T]]
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Iterator[T]]:
        """Return a method that refuses calls beyond the bound, and ends those that last too long."""

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[T]:
            if not self._room.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many of these streams are open; try again later")
            end = threading.Timer(OPEN_STREAM_S, context.cancel)
            end.daemon = True
            end.start()
            try:
                yield from serve(requests, context)
            except grpc.RpcError:  # it has lasted too long, or its client has left
                return
            finally:
                end.cancel()
                self._room.release()

        return stream


@dataclass(eq=False)
class _Stream:
    """A stream whose client has had an answer since a moment without taking it; None while it is the server's turn."""

    cancel: Callable[[], object]
    waiting_since: float | None = None


class SlowReaders:
    """Ends streams whose clients take no answers.

    gRPC's flow control blocks the thread that answers, so that nothing but a cancellation frees it; its client sees
    CANCELLED.

    Parameters
    ----------
    idle_s : float
        How long an answer may wait for its client.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, answers: Iterable[T], context: grpc.ServicerContext) -> Iterator[T]:
        """Yield answers, and cancel the call if one of them is not taken in time."""
        stream = _Stream(context.cancel)
        with self._lock:
            self._streams.add(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="slow-readers", daemon=True)
                self._thread.start()
        try:
            for answer in answers:
                stream.waiting_since = time.monotonic()
                yield answer
                stream.waiting_since = None
        finally:
            with self._lock:
                self._streams.discard(stream)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(min(self._idle_s / 4, 5.0)):
            border = time.monotonic() - self._idle_s
            with self._lock:
                slow = [one for one in self._streams if one.waiting_since is not None and one.waiting_since < border]
            for stream in slow:
                stream.cancel()
