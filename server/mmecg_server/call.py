"""The call on whose behalf a thread works: its deadline, its request id, and the stages it passes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, cast, get_args

from mmecg.search import CorpusStore

Stage = Literal["decode", "queue", "encode", "search", "store", "predict", "mine"]
"""decode: bytes to checked arguments; queue: waiting for a tower; encode: a batch in a tower; search: the vector index;
store: the database; predict, mine: whole predictions and mined reports, with what they look up."""

STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(eq=False)
class Call:
    """The call on whose behalf a thread works.

    Attributes
    ----------
    deadline : float
        Moment of :func:`time.monotonic` after which the answer is of no use.
    is_active : callable
        False once the caller has left.
    request_id : str
        In the log, the trace, the audit trail and the answer's trailing metadata.
    observe : callable, optional
        Told of every stage that ended: its name, and its start and end as :func:`time.monotonic`.
    """

    deadline: float
    is_active: Callable[[], bool] = lambda: True
    request_id: str = ""
    observe: Callable[[Stage, float, float], None] | None = None
    running: set[Stage] = field(default_factory=set)

    def check(self) -> None:
        """Raise TimeoutError if the deadline has passed or the caller has left."""
        if time.monotonic() >= self.deadline:
            raise TimeoutError("the deadline passed before the answer was ready; allow more time, or send less at once")
        if not self.is_active():
            raise TimeoutError("the call was cancelled")


_CALL: ContextVar[Call | None] = ContextVar("call", default=None)


@contextmanager
def on_behalf_of(call: Call) -> Iterator[None]:
    """Let what this thread does inherit deadline, request id and observer of a call."""
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def current_call() -> Call:
    """Return the call of this thread; one without a deadline if there is none."""
    return _CALL.get() or Call(float("inf"))


class stage(ContextDecorator):  # noqa: N801  (used as a statement and as a decorator)
    """Time a stage of the current call; outside of a call, and inside the same stage, nothing happens.

    Parameters
    ----------
    name : Stage
    """

    def __init__(self, name: Stage) -> None:
        self._name = name
        self._call: Call | None = None
        self._started = 0.0

    def _recreate_cm(self) -> stage:
        return stage(self._name)

    def __enter__(self) -> None:
        call = _CALL.get()
        if call is None or call.observe is None or self._name in call.running:
            return
        call.running.add(self._name)
        self._call, self._started = call, time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call is not None and self._call.observe is not None:
            self._call.running.discard(self._name)
            self._call.observe(self._name, self._started, time.monotonic())


_STAGE_OF: dict[str, Stage] = {
    "search": "search",
    **dict.fromkeys(
        ("get", "tagged", "rows", "study_ids", "embeddings", "list_studies", "earlier", "metadata", "stats", "count"),
        "store",
    ),
    **dict.fromkeys(("unchanged", "store", "upsert", "delete"), "store"),
}


class _Staged:
    """A corpus, or a scope's view of it, each of whose methods is a stage; everything else is handed through."""

    def __init__(self, corpus: object) -> None:
        self._corpus = corpus

    def __getattr__(self, name: str) -> object:
        found = getattr(self._corpus, name)
        if name == "within":
            return lambda scope: _Staged(found(scope))
        return stage(_STAGE_OF[name])(found) if name in _STAGE_OF else found


def staged(corpus: CorpusStore) -> CorpusStore:
    """Return the corpus with its searches timed as stage "search", and its other methods as "store"."""
    return cast(CorpusStore, _Staged(corpus))
