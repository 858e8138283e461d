"""Bulk streams: requests are taken in the chunks in which they arrive, and answered one by one in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from queue import Queue
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2

from mmecg.errors import ModelChangedError, NotReadyError, OverloadedError
from mmecg_server.auth import current_principal
from mmecg_server.call import current_call, on_behalf_of
from mmecg_server.interceptors import Gate, report

Request = TypeVar("Request", bound=Message)
Parsed = TypeVar("Parsed")
Answer = TypeVar("Answer")
Item = TypeVar("Item")
_Begun = tuple[list[Parsed | status_pb2.Status], list[Parsed], Callable[[], Sequence[Answer]] | None]
"""A chunk: its requests or their statuses, the requests that can be answered, and what answers these."""

RETRY_PAUSE_S = 0.02


class ChunkReader(Generic[Request]):
    """Iterates over what has arrived of a stream: chunks of at least one request and no more than the limits.

    A thread reads ahead up to the limits and then lets gRPC's flow control hold the sender. A lone request is handed on
    at once.

    Parameters
    ----------
    requests : iterator of messages
    split : callable
        Message to its items, which come in one chunk.
    max_items, max_bytes : int
        Limits of a chunk, and of what is read ahead; until one is reached, a message is let in whatever its size.
    idle_s, max_s : float
        Longest time without a request, and of the whole stream.
    """

    def __init__(
        self,
        requests: Iterator[Message],
        *,
        split: Callable[[Any], Sequence[Request]] = lambda one: (one,),
        max_items: int,
        max_bytes: int,
        idle_s: float = float("inf"),
        max_s: float = float("inf"),
    ) -> None:
        self._requests = requests
        self._split = split
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._ends_at = time.monotonic() + max_s
        self._changed = threading.Condition()
        self._chunk: list[Request] = []
        self._bytes = 0
        self._ended = False
        self._error: Exception | None = None
        # In the context of the call: what its requests name is entered in the audit trail as the call's, not once more.
        threading.Thread(target=copy_context().run, args=(self._read,), name="stream-reader", daemon=True).start()

    def __iter__(self) -> Iterator[list[Request]]:
        """Yield chunks; raise what the stream raised once all before it were handed on.

        Raises
        ------
        TimeoutError
            The client sends nothing for too long, and holds a place that others could use.
        NotReadyError
            The stream lasts too long; the client may go on with another one, if it still may call.
        """
        while chunk := self._take():
            yield chunk
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let the reading thread end."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self) -> list[Request]:
        with self._changed:
            idle_from = time.monotonic()
            while not self._chunk and not self._ended:
                left = min(idle_from + self._idle_s, self._ends_at) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            if time.monotonic() >= self._ends_at:
                raise NotReadyError("the stream lasted as long as one may; go on with another, at the next item")
            if not self._chunk and not self._ended:
                raise TimeoutError(f"nothing was sent for {self._idle_s:g} s; close a stream that has nothing to send")
            chunk, self._chunk, self._bytes = self._chunk, [], 0
            self._changed.notify_all()
            return chunk

    def _read(self) -> None:
        try:
            for request in self._requests:
                with self._changed:
                    while self._is_full() and not self._ended:
                        self._changed.wait()
                    if self._ended:
                        return
                    self._chunk.extend(self._split(request))
                    self._bytes += request.ByteSize()
                    self._changed.notify_all()
        except Exception as error:
            self._error = error
        finally:
            self.close()

    def _is_full(self) -> bool:
        return len(self._chunk) >= self._max_items or self._bytes >= self._max_bytes


def answer_stream(
    reader: ChunkReader[Request],
    gate: Gate,
    parse: Callable[[Request], Parsed],
    answer: Callable[[Sequence[Parsed]], Sequence[Answer]],
    *,
    begin: Callable[[Sequence[Parsed]], Callable[[], Sequence[Answer]]] | None = None,
) -> Iterator[tuple[int, Answer | status_pb2.Status]]:
    """Yield position and answer, or position and status, of every request of a stream.

    Parameters
    ----------
    reader : ChunkReader
    gate : Gate
        Ends the stream at the next chunk once it drains, as does the end of its caller's token.
    parse : callable
        Request to checked arguments; what it raises becomes the status of that request.
    answer : callable
        Checked arguments of a chunk to answers, all or nothing. If it fails, the chunk is answered one by one, so that
        one unusable request does not fail the others. While the encoder's queue is full, the stream waits.
    begin : callable, optional
        The part of ``answer`` that need not wait for the chunk before; returns the other part, which is called in the
        order of the chunks. Chunks are then begun, and parsed, in a thread of their own, one ahead.
    """
    item = 0
    chunks = _begun(reader, gate, parse, begin)
    try:
        for parsed, good, finish in chunks if begin is None else one_ahead(chunks):
            answers = iter(_answer_chunk(answer, good, finish))
            for outcome in parsed:
                yield item, outcome if isinstance(outcome, status_pb2.Status) else next(answers)
                item += 1
    finally:
        reader.close()


def one_ahead(source: Iterator[Item]) -> Iterator[Item]:
    """Yield what a thread takes from an iterator, one item before it is asked for; what that raises, in its place.

    The thread works for the same call. It ends with the iterator, or when nobody asks any more.
    """
    taken: Queue[Item | None] = Queue()
    room = threading.Semaphore(1)
    raised: list[Exception] = []
    left = threading.Event()

    def take() -> None:
        try:
            with on_behalf_of(replace(current_call(), running=set())):
                while room.acquire() and not left.is_set() and (item := next(source, None)) is not None:
                    taken.put(item)
        except Exception as error:
            raised.append(error)
        taken.put(None)

    threading.Thread(target=copy_context().run, args=(take,), name="stream-ahead", daemon=True).start()
    try:
        while (item := taken.get()) is not None:
            room.release()
            yield item
    finally:
        left.set()
        room.release()
    if raised:
        raise raised[0]


def _begun(
    reader: ChunkReader[Request],
    gate: Gate,
    parse: Callable[[Request], Parsed],
    begin: Callable[[Sequence[Parsed]], Callable[[], Sequence[Answer]]] | None,
) -> Iterator[_Begun[Parsed, Answer]]:
    for chunk in reader:
        gate.check()
        current_principal().check()
        parsed = [_attempt(parse, request) for request in chunk]
        good = [outcome for outcome in parsed if not isinstance(outcome, status_pb2.Status)]
        finish = None
        if begin is not None and good:
            try:
                finish = _patiently(begin, good)
            except ModelChangedError:
                raise
            except Exception:  # whichever of them it is, the answers one by one will say
                finish = None
        yield parsed, good, finish


def _answer_chunk(
    answer: Callable[[Sequence[Parsed]], Sequence[Answer]],
    parsed: Sequence[Parsed],
    finish: Callable[[], Sequence[Answer]] | None = None,
) -> Sequence[Answer | status_pb2.Status]:
    if not parsed:
        return []
    try:
        return _patiently(answer if finish is None else lambda _: finish(), parsed)
    except ModelChangedError:  # of all that would follow too: the client goes on with another stream
        raise
    except Exception as error:
        if len(parsed) == 1:
            return [report(error)]
    return [_answer_chunk(answer, [one])[0] for one in parsed]


def _patiently(answer: Callable[[Sequence[Parsed]], Answer], parsed: Sequence[Parsed]) -> Answer:
    """Answer; while the encoder's queue is full, wait, which holds the sender through flow control.

    A full disk does not become free by waiting for a moment: the sender is told.
    """
    while True:
        try:
            return answer(parsed)
        except OverloadedError as error:
            if error.limit == "disk":
                raise
            current_call().check()
            time.sleep(RETRY_PAUSE_S)


def _attempt(parse: Callable[[Request], Parsed], request: Request) -> Parsed | status_pb2.Status:
    try:
        return parse(request)
    except Exception as error:
        return report(error, request)
