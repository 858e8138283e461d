"""The requests of a stream that were sent and not yet answered, so that a broken stream can go on where it broke."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast

Request = TypeVar("Request")


class Window(Generic[Request]):
    """Hands requests to one attempt after another, beginning with the first that has no answer.

    Parameters
    ----------
    source : iterator of requests
        Consumed once, as fast as the transport takes it.
    """

    def __init__(self, source: Iterator[Request]) -> None:
        self._source = source
        self._sent: deque[Request] = deque()
        self._answered = 0
        self._lock = threading.Lock()
        self._source_lock = threading.Lock()
        self._ended = False
        self._error: Exception | None = None

    @property
    def answered(self) -> int:
        """How many requests have an answer; also the position of the first that has none."""
        return self._answered

    def attempt(self) -> Iterator[Request]:
        """Yield the requests without an answer, then new ones."""
        position = self._answered
        while (request := self._get(position)) is not None:
            yield request
            position += 1

    def answer(self) -> int:
        """Note that the first request without an answer has one; return its position."""
        with self._lock:
            self._sent.popleft()
            self._answered += 1
            return self._answered - 1

    def check(self) -> None:
        """Raise what the source raised, if it did."""
        if self._error is not None:
            raise self._error

    def _get(self, position: int) -> Request | None:
        found, request = self._look(position)
        if found:
            return request
        with self._source_lock:
            # Another attempt may have pulled it meanwhile. While the source is waited for, answers can be noted.
            found, request = self._look(position)
            if found or self._ended:
                return request
            try:
                pulled = next(self._source)
            except StopIteration:
                self._ended = True
                return None
            except Exception as error:
                self._error, self._ended = error, True
                return None
            with self._lock:
                self._sent.append(pulled)
        return self._get(position)

    def _look(self, position: int) -> tuple[bool, Request | None]:
        """Return whether it is known what to send at a position, and that: None if it has been answered."""
        with self._lock:
            at = position - self._answered
            # A broken attempt may still ask for a request that the next one has had answered.
            if at < 0:
                return True, None
            return (True, self._sent[at]) if at < len(self._sent) else (False, None)


class AsyncWindow(Generic[Request]):
    """:class:`Window` for asyncio: a pull that a broken attempt waited for is waited for by the next one.

    Parameters
    ----------
    source : async iterator of requests
        Consumed once, as fast as the transport takes it.
    """

    def __init__(self, source: AsyncIterator[Request]) -> None:
        self._source = source
        self._sent: deque[Request] = deque()
        self._pull: asyncio.Task[None] | None = None
        self._ended = False
        self._error: Exception | None = None
        self.answered = 0

    async def attempt(self) -> AsyncIterator[Request]:
        """Yield the requests without an answer, then new ones."""
        position = self.answered
        while position >= self.answered:
            if position - self.answered < len(self._sent):
                yield self._sent[position - self.answered]
                position += 1
            elif self._ended:
                return
            else:
                self._pull = self._pull or asyncio.create_task(self._next())
                # The transport cancels a broken attempt; that must not end the source.
                await asyncio.shield(self._pull)

    def answer(self) -> int:
        """Note that the first request without an answer has one; return its position."""
        self._sent.popleft()
        self.answered += 1
        return self.answered - 1

    def check(self) -> None:
        """Raise what the source raised, if it did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop waiting for the source."""
        if self._pull is not None:
            self._pull.cancel()

    async def _next(self) -> None:
        try:
            self._sent.append(await anext(self._source))
        except StopAsyncIteration:
            self._ended = True
        except Exception as error:
            self._error, self._ended = error, True
        finally:
            self._pull = None


async def as_async(items: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    """Yield items; an iterator that may be slow is waited for in a thread, so that the event loop goes on."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    elif isinstance(items, Sequence):
        for item in items:
            yield item
    else:
        iterator, end = iter(items), object()
        while (pulled := await asyncio.to_thread(next, iterator, end)) is not end:
            yield cast(Request, pulled)
