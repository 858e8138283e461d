"""Micro-batching: concurrent encode requests share one encoder call.

There is no timer. One thread a tower takes whatever waits, encodes it, and takes what has gathered meanwhile; an idle
tower starts at once. So a lone request never waits, and under load batches grow by themselves. The queue is bounded:
beyond it a request is refused (:class:`OverloadedError`), as is one that would wait for longer than its caller does;
and one whose caller has left or run out of time is dropped before it costs anything.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.embedding import Encoder
from mmecg.errors import ModelChangedError, NotReadyError, OverloadedError
from mmecg.vitals import Vitals
from mmecg_server.call import Call, current_call

Item = TypeVar("Item")
Vectors = NDArray[np.float32]

SMOOTHING = 0.2
"""Weight of the newest batch in the moving average of the time that an item takes."""


@dataclass(eq=False)
class _Ticket(Generic[Item]):
    items: Sequence[Item]
    call: Call
    queued: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    result: Vectors | None = None
    error: Exception | None = None


class MicroBatcher(Generic[Item]):
    """Joins the items of concurrent callers into batches of one function.

    Parameters
    ----------
    encode : callable
        Sequence of items to float32, shape (batch, dim). Called from one thread.
    max_batch : int
        Most items of one call of ``encode``.
    max_queue : int
        Most items that may wait.
    name : str
        Of the thread.
    on_batch : callable, optional
        Told the size of every batch.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Item]], Vectors],
        *,
        max_batch: int,
        max_queue: int,
        name: str,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._encode = encode
        self._on_batch = on_batch
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[_Ticket[Item]] = deque()
        self._items_waiting = 0
        self._item_s = 0.0
        self._closed = False
        self._retired = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"batch-{name}", daemon=True)
        self._thread.start()

    def __call__(self, items: Sequence[Item]) -> Vectors:
        """Return the embeddings of the items, float32, shape (batch, dim).

        Raises
        ------
        OverloadedError
            More than ``max_queue`` items wait, or so many that the call's deadline would pass first.
        TimeoutError
            The deadline of the thread's call passed, or its caller left.
        """
        chunks = [items[start : start + self._max_batch] for start in range(0, len(items), self._max_batch)]
        return np.concatenate([self._submit(chunk) for chunk in chunks]) if len(chunks) != 1 else self._submit(items)

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return self._items_waiting

    def close(self) -> None:
        """Refuse what waits and end the thread after the running batch."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def retire(self) -> None:
        """Do the same without waiting for it, because another model takes over."""
        with self._changed:
            self._closed = self._retired = True
            self._changed.notify()

    def _submit(self, items: Sequence[Item]) -> Vectors:
        ticket = _Ticket(items, current_call())
        ticket.call.check()
        with self._changed:
            if self._closed:
                raise self._refusal()
            if self._items_waiting + len(items) > self._max_queue:
                raise OverloadedError(
                    f"{self._items_waiting} items wait to be encoded and at most {self._max_queue} may; try later",
                    limit="queue",
                )
            if time.monotonic() + self._items_waiting * self._item_s > ticket.call.deadline:
                raise OverloadedError(
                    f"{self._items_waiting} items wait to be encoded, which takes longer than this call may; "
                    "try later, or allow more time",
                    limit="queue",
                )
            self._waiting.append(ticket)
            self._items_waiting += len(items)
            self._changed.notify()
        remaining = ticket.call.deadline - time.monotonic()
        if not ticket.done.wait(min(max(remaining, 0.0), threading.TIMEOUT_MAX)):
            ticket.call.check()
        if ticket.error is not None:
            raise ticket.error
        if ticket.result is None:
            raise TimeoutError("the call was cancelled")
        return ticket.result

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._answer(batch)
            except Exception as error:
                # One unusable item must not fail the calls that happened to share its batch.
                if len(batch) == 1:
                    batch[0].error = error
                else:
                    self._answer_singly(batch)
            for ticket in batch:
                ticket.done.set()

    def _take(self) -> list[_Ticket[Item]]:
        """Wait for work; return the tickets of the next batch, none at the end."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    self._refuse_all()
                    return []
                batch: list[_Ticket[Item]] = []
                size = 0
                while self._waiting and size + len(self._waiting[0].items) <= self._max_batch:
                    ticket = self._waiting.popleft()
                    self._items_waiting -= len(ticket.items)
                    if self._is_wanted(ticket):
                        batch.append(ticket)
                        size += len(ticket.items)
                if batch:
                    return batch

    def _answer(self, batch: Sequence[_Ticket[Item]]) -> None:
        items = list(itertools.chain.from_iterable(ticket.items for ticket in batch))
        started = time.monotonic()
        vectors = self._encode(items)
        ended, start = time.monotonic(), 0
        self._item_s += SMOOTHING * ((ended - started) / len(items) - self._item_s)
        self._on_batch(len(items))
        for ticket in batch:
            if ticket.call.observe is not None:
                ticket.call.observe("queue", ticket.queued, started)
                ticket.call.observe("encode", started, ended)
            ticket.result = vectors[start : start + len(ticket.items)]
            start += len(ticket.items)

    def _answer_singly(self, batch: Sequence[_Ticket[Item]]) -> None:
        for ticket in batch:
            try:
                self._answer([ticket])
            except Exception as error:
                ticket.error = error

    @staticmethod
    def _is_wanted(ticket: _Ticket[Item]) -> bool:
        try:
            ticket.call.check()
        except TimeoutError as error:
            ticket.error = error
            ticket.done.set()
            return False
        return True

    def _refuse_all(self) -> None:
        for ticket in self._waiting:
            ticket.error = self._refusal()
            ticket.done.set()
        self._waiting.clear()
        self._items_waiting = 0

    def _refusal(self) -> NotReadyError:
        if self._retired:
            return ModelChangedError()
        return NotReadyError("the server is shutting down; send the call to another server, or later")


class BatchingEncoder:
    """An :class:`mmecg.embedding.Encoder` whose concurrent callers share batches, one batcher a method.

    Parameters
    ----------
    encoder : Encoder
        The model.
    max_batch, max_queue : int
        See :class:`MicroBatcher`.
    on_batch : callable, optional
        Told tower and size of every batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[str, int], None] = lambda tower, size: None,
    ) -> None:
        def batcher(name: str, encode: Callable[[Sequence[Item]], Vectors]) -> MicroBatcher[Item]:
            return MicroBatcher(
                encode, max_batch=max_batch, max_queue=max_queue, name=name, on_batch=partial(on_batch, name)
            )

        self._encoder = encoder
        self._ecg: MicroBatcher[Ecg] = batcher("ecg", encoder.encode_ecg)
        self._text: MicroBatcher[str] = batcher("text", encoder.encode_text)
        self._vitals: MicroBatcher[Vitals] = batcher("vitals", encoder.encode_vitals)
        self._features: MicroBatcher[Ecg] = batcher("features", encoder.ecg_features)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle."""
        return self._encoder.fingerprint

    @property
    def ecg_encoder(self) -> str:
        """Name of the ECG tower."""
        return self._encoder.ecg_encoder

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> Vectors:
        """Return float32, shape (batch, dim), unit norm."""
        return self._ecg(ecgs)

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return float32, shape (batch, dim), unit norm."""
        return self._text(texts)

    def encode_vitals(self, vitals: Sequence[Vitals]) -> Vectors:
        """Return float32, shape (batch, dim), unit norm."""
        return self._vitals(vitals)

    def ecg_features(self, ecgs: Sequence[Ecg]) -> Vectors:
        """Return float32, shape (batch, features)."""
        return self._features(ecgs)

    def waiting(self) -> dict[str, int]:
        """Return how many items wait for each tower."""
        return {
            "ecg": self._ecg.waiting,
            "text": self._text.waiting,
            "vitals": self._vitals.waiting,
            "features": self._features.waiting,
        }

    def close(self) -> None:
        """End the threads."""
        for batcher in (self._ecg, self._text, self._vitals, self._features):
            batcher.close()

    def retire(self) -> None:
        """End the threads soon; what waits is refused with ``ModelChangedError``."""
        for batcher in (self._ecg, self._text, self._vitals, self._features):
            batcher.retire()
