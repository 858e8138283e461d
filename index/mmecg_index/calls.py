"""The calls of a server in the audit trail of its corpus.

What a call writes is entered with the write, in one transaction, so that the two are there together or not at all; what
it reads, and what it is refused, is entered when it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from mmecg_index.audit import AuditEntry, audited
from mmecg_index.writer import Operation, Written

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus


class Call(Protocol):
    """A call, as far as it has come."""

    @property
    def principal(self) -> str:
        """Who calls; empty if that is not known."""

    @property
    def method(self) -> str:
        """What is called."""

    @property
    def only_reads(self) -> bool:
        """True for a method that changes nothing, and is no operator's."""

    @property
    def request_id(self) -> str:
        """How log and answer name it."""

    @property
    def outcome(self) -> str:
        """Name of the status."""

    @property
    def touched(self) -> Mapping[tuple[str, str], None]:
        """Subjects and studies that it named or was told of."""

    @property
    def failed(self) -> Mapping[str, Mapping[tuple[str, str], None]]:
        """By the name of the status, subjects and studies of single items that came to nothing."""


@dataclass(eq=False)
class _Actor:
    call: Call
    wrote: bool = False


_ACTOR: ContextVar[_Actor | None] = ContextVar("actor", default=None)


def entered(operation: Operation, secret: bytes) -> Operation:
    """Return an operation that enters what it changed, if a call that is to be entered runs it."""
    actor = _ACTOR.get()
    if actor is None:
        return operation
    call = actor.call

    def run(connection: sqlite3.Connection) -> Written:
        written = operation(connection)
        actor.wrote = actor.wrote or bool(written.touched)  # else nothing is entered with it
        return written

    return audited(run, secret, call.principal, call.method, call.request_id)


class CallTrail:
    """Enters the calls of a server. Safe to use from many threads.

    Parameters
    ----------
    corpus : Corpus
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def subjects_of(self, study_ids: Sequence[str]) -> dict[str, str]:
        """Return the subject of each study that is there."""
        return self._corpus.subjects_of(study_ids)

    @contextmanager
    def acting(self, call: Call) -> Iterator[None]:
        """Let what this thread writes be entered as the call's."""
        token = _ACTOR.set(_Actor(call))
        try:
            yield
        finally:
            _ACTOR.reset(token)

    def enter(self, call: Call) -> None:
        """Enter a call as it stands now, unless it went well and its writes have entered it already.

        Items of a stream that came to nothing have entries of their own, one for each status.
        """
        actor, moment = _ACTOR.get(), datetime.now(UTC)
        went_well = call.outcome in ("OK", "RUNNING")
        is_entered = actor is not None and actor.call is call and actor.wrote and went_well
        is_told = bool(call.touched) or not call.failed
        parts = [] if is_entered or not is_told else [(call.outcome, call.touched)]
        entries = [
            AuditEntry(moment, call.principal, call.method, outcome, call.request_id, tuple(touched), len(touched))
            for outcome, touched in (*parts, *call.failed.items())
        ]
        if entries:
            self._corpus.audit.append(entries, are_reads=call.only_reads and went_well and not call.failed)
