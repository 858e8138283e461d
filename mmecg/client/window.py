"""The requests of a stream that were sent and not yet answered, so that a broken stream can go on where it broke."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

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
        with self._lock:
            # A broken attempt may still ask for a request that the next one has had answered.
            if position < self._answered:
                return None
            while position - self._answered >= len(self._sent):
                try:
                    self._sent.append(next(self._source))
                except StopIteration:
                    return None
                except Exception as error:
                    self._error = error
                    return None
            return self._sent[position - self._answered]
