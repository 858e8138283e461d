"""Items of a stream that go in one message: as many as come soon after the first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Generic, TypeVar

from google.protobuf.message import Message

MAX_ITEMS = 64
MAX_BYTES = 512 * 2**10
"""Of a batch: what sharing saves matters for studies of a few kB; and a server that takes smaller messages than the
client would send (``limits.max_message_bytes``) refuses the whole stream."""

LINGER_S = 0.005
"""How long an item waits for others: a small part of what a message costs both ends, and nothing beside a commit."""

Item = TypeVar("Item", bound=Message)


class Batches(Generic[Item]):
    """Iterates over what a source gives, several at a time. For one thread at a time.

    A thread pulls, at most one batch ahead, so that an item never waits longer than :data:`LINGER_S` for one that its
    source may give only after the first was answered.

    Parameters
    ----------
    source : iterator of messages
    max_bytes : int
        Of a batch; an item that is larger goes alone.
    """

    def __init__(self, source: Iterator[Item], *, max_bytes: int = MAX_BYTES) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._batch: list[Item] = []
        self._bytes = 0
        self._full = self._ended = self._left = False
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[list[Item]]:
        """Yield batches; raise what the source raised once all before it were handed on."""
        threading.Thread(target=self._pull, name="batches", daemon=True).start()
        try:
            while batch := self._take():
                yield batch
        finally:
            with self._changed:
                self._left = True
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _take(self) -> list[Item]:
        with self._changed:
            self._changed.wait_for(lambda: self._batch or self._ended)
            self._changed.wait_for(lambda: self._full or self._ended, LINGER_S)
            batch, self._batch, self._bytes, self._full = self._batch, [], 0, False
            self._changed.notify_all()
            return batch

    def _pull(self) -> None:
        try:
            for item in self._source:
                if not self._put(item, item.ByteSize()):
                    return
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Item, size: int) -> bool:
        """Return False if nobody asks any more."""
        with self._changed:
            if not fits(self._batch, self._bytes + size, self._max_bytes):
                self._full = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._batch or self._left)
            self._batch.append(item)
            self._bytes += size
            if len(self._batch) == 1:
                self._changed.notify_all()
            return not self._left


async def gather(source: AsyncIterator[Item], *, max_bytes: int = MAX_BYTES) -> AsyncGenerator[list[Item], None]:
    """Yield what a source gives, several at a time; see :class:`Batches`."""
    batch: list[Item] = []
    size, sent_by, error = 0, 0.0, None
    pull = None
    try:
        while error is None:
            pull = pull or asyncio.ensure_future(anext(source))
            await asyncio.wait({pull}, timeout=max(sent_by - time.monotonic(), 0.0) if batch else None)
            if pull.done():
                error = pull.exception()
                if error is None:
                    item, pull = pull.result(), None
                    if not fits(batch, size + item.ByteSize(), max_bytes):
                        yield batch
                        batch, size = [], 0
                    sent_by = sent_by if batch else time.monotonic() + LINGER_S
                    batch.append(item)
                    size += item.ByteSize()
                    continue
            if batch:
                yield batch
                batch, size = [], 0
        if not isinstance(error, StopAsyncIteration):
            raise error
    finally:
        if pull is not None:
            pull.cancel()


def fits(batch: list[Item], size: int, max_bytes: int) -> bool:
    """Return whether a batch that would have this size with one item more may have it."""
    return not batch or (len(batch) < MAX_ITEMS and size <= max_bytes)
