"""Who is let in: the check of a call before it takes a place, what a principal may ask for, clients that stand still.

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
from typing import TypeVar

import grpc

from mmecg.errors import OverloadedError
from mmecg_server.audit import CallRecord
from mmecg_server.auth import Authenticator, acting_as, check_permission
from mmecg_server.config import LimitsConfig

T = TypeVar("T")

_TICK_S = 5.0

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


@dataclass(eq=False)
class _Wait:
    """A call, and until when its client may keep a thread waiting; for ever while it is the server's turn."""

    cancel: Callable[[], object]
    until: float = float("inf")


class Watchdog:
    """Cancels calls whose clients keep a thread waiting: for a request that does not come, or an answer not taken.

    gRPC blocks the thread, so that nothing but a cancellation frees it; the client sees CANCELLED.

    Parameters
    ----------
    patience_s : float
        The shortest time that anything may wait; it is looked four times as often.
    """

    def __init__(self, patience_s: float) -> None:
        self._tick_s = min(patience_s / 4, _TICK_S)
        self._lock = threading.Lock()
        self._waits: dict[_Wait, None] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self, context: grpc.ServicerContext, until: float) -> Iterator[None]:
        """Cancel the call if what this thread waits for has not happened at a moment of :func:`time.monotonic`."""
        with self._watch(context) as wait:
            wait.until = until
            yield

    def follow(self, answers: Iterable[T], context: grpc.ServicerContext, idle_s: float) -> Iterator[T]:
        """Yield answers, and cancel the call if one of them is not taken in time."""
        with self._watch(context) as wait:
            for answer in answers:
                wait.until = time.monotonic() + idle_s
                yield answer
                wait.until = float("inf")

    def make_room(self, most: int) -> None:
        """Cancel the call that has waited longest if as many wait as may: the next is likelier to be in earnest."""
        with self._lock:
            oldest = next((one for one in self._waits if one.until > 0), None) if len(self._waits) >= most else None
            if oldest is not None:
                oldest.until = 0.0
        if oldest is not None:
            oldest.cancel()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def _watch(self, context: grpc.ServicerContext) -> Iterator[_Wait]:
        wait = _Wait(context.cancel)
        with self._lock:
            self._waits[wait] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
        try:
            yield wait
        finally:
            with self._lock:
                del self._waits[wait]

    def _run(self) -> None:
        while not self._closed.wait(self._tick_s):
            now = time.monotonic()
            with self._lock:
                late = [one for one in self._waits if one.until < now]
            for one in late:
                one.cancel()
