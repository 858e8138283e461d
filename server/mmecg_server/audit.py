"""What the audit trail is told of a call: who, which method, which subjects and studies, how it ended.

Subjects and studies are read off the messages themselves, wherever one of them has a field for such an id, so that no
service can forget to tell. Nothing else of a message is looked at.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mmecg_server.auth import METHOD_ROLES
from mmecg_server.status import grpc_code

MAX_TOUCHED = 1000
"""Studies of one entry; a stream that touches more makes several."""


class Trail(Protocol):
    """Where calls are entered."""

    def subjects_of(self, study_ids: Sequence[str], /) -> Mapping[str, str]:
        """Return whose studies these are, of those that are there."""

    def acting(self, record: CallRecord, /) -> AbstractContextManager[None]:
        """Let what this thread writes be entered as the call's, together with the write."""

    def enter(self, record: CallRecord, /) -> None:
        """Enter a call as it stands now, unless its writes have entered it."""


@dataclass(eq=False)
class CallRecord:
    """A call, as far as it has come.

    Attributes
    ----------
    method, request_id : str
    trail : Trail, optional
        Without one, nothing is noted.
    principal : str
        Empty until it is known who calls.
    outcome : str
        Name of the status; "RUNNING" in the entries of a stream that goes on.
    touched : dict of (subject id, study id) to None
        In the order met; either id may be empty.
    failed : dict of str to dict
        By the name of its status, what single items of a stream were about that came to nothing.
    """

    method: str
    request_id: str
    trail: Trail | None = None
    principal: str = ""
    outcome: str = "RUNNING"
    touched: dict[tuple[str, str], None] = field(default_factory=dict)
    failed: dict[str, dict[tuple[str, str], None]] = field(default_factory=dict)
    _unanswered: deque[list[list[tuple[str, str]]]] = field(default_factory=deque, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def only_reads(self) -> bool:
        """True for a method that changes nothing, and is no operator's."""
        return not {"reader", "predictor"}.isdisjoint(METHOD_ROLES.get(f"/mmecg.v1.{self.method}", ()))

    def see(self, message: Message) -> None:
        """Note whom and what a request or an answer is about."""
        if self.trail is not None:
            self._note(self._named(message))

    def see_request(self, message: Message) -> None:
        """Keep whom and what the next message of a stream is about, until it is answered."""
        if self.trail is not None:
            items: Sequence[Message] = getattr(message, "items", ()) or (message,)
            self._unanswered.append([self._named(item) for item in items])

    def see_answer(self, message: Message) -> None:
        """Note what the oldest message without an answer was about, item by item: done, or by which status refused."""
        if self.trail is None:
            return
        items = self._unanswered.popleft()
        outcomes: Sequence[Any] = getattr(message, "outcomes", ()) or (message,) * len(items)
        for item, outcome in zip(items, outcomes, strict=True):
            refused = outcome.status.code if outcome.HasField("status") else None
            self._note(item, "" if refused is None else grpc_code(refused).name)
        self._note(self._named(message))

    def _named(self, message: Message) -> list[tuple[str, str]]:
        found = list(touched_by(message))
        unknown = [study for subject, study in found if study and not subject]
        # At once: after a deletion nobody knows whose study it was.
        subjects = self.trail.subjects_of(unknown) if unknown and self.trail is not None else {}
        return [(subject or subjects.get(study, ""), study) for subject, study in found]

    def _note(self, pairs: Iterable[tuple[str, str]], failure: str = "") -> None:
        with self._lock:
            into = self.failed.setdefault(failure, {}) if failure else self.touched
            into.update(dict.fromkeys(pairs))
            if len(into) >= MAX_TOUCHED and self.trail is not None:
                self.trail.enter(self)
                self.touched, self.failed = {}, {}

    def acting(self) -> AbstractContextManager[None]:
        """Let what this thread writes be entered as this call's."""
        return nullcontext() if self.trail is None else self.trail.acting(self)

    def end(self, outcome: str) -> None:
        """Hand the call to the trail."""
        self.outcome = outcome
        if self.trail is not None:
            for items in list(self._unanswered):  # a stream that broke off
                self.touched.update(dict.fromkeys(pair for item in items for pair in item))
            self.trail.enter(self)


def touched_by(message: Message) -> Iterator[tuple[str, str]]:
    """Yield subject and study of everything in a message that names one of them."""
    subjects, studies, nested = _fields(message.DESCRIPTOR)
    subject = next(filter(None, (getattr(message, name) for name in subjects)), "")
    named = [study for name in studies if (study := getattr(message, name))]
    if subject or named:
        yield from ((subject, study) for study in named or [""])
    for name, is_repeated in nested:
        if is_repeated:
            for one in getattr(message, name):
                yield from touched_by(one)
        elif message.HasField(name):
            yield from touched_by(getattr(message, name))


@lru_cache(None)
def _fields(kind: Descriptor) -> tuple[list[str], list[str], list[tuple[str, bool]]]:
    """Return the fields that hold a subject, a study, and messages in which one of these may be."""
    texts = [each.name for each in kind.fields if each.type == FieldDescriptor.TYPE_STRING and not each.is_repeated]
    nested: list[tuple[str, bool]] = [
        (each.name, bool(each.is_repeated))
        for each in kind.fields
        if each.message_type and _names_any(each.message_type)
    ]
    subjects = [name for name in texts if name.endswith("subject_id")]
    return subjects, [name for name in texts if name.endswith("study_id")], nested


def _names_any(kind: Any) -> bool:
    return not kind.GetOptions().map_entry and any(map(bool, _fields(kind)))
