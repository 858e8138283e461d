"""An operator's work on a corpus: what an engine does for the service that is asked for it, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Trace:
    """Something that an erasure left behind.

    Attributes
    ----------
    file : str
        Path below the directory of the corpus.
    offset : int
        Where in the file.
    kind : {"id", "content"}
    """

    file: str
    offset: int
    kind: str


@dataclass(frozen=True)
class Erasure:
    """What an erasure did.

    Attributes
    ----------
    studies : int
        How many were there.
    sequence : int
        Sequence number of the commit.
    traces : tuple of Trace, optional
        What the files still hold; None if that was not asked for.
    """

    studies: int
    sequence: int
    traces: tuple[Trace, ...] | None = None


@dataclass(frozen=True)
class Backup:
    """What a backup holds.

    Attributes
    ----------
    sequence : int
        Complete up to this sequence number.
    studies : int
    size_bytes : int
        Of all its files.
    erased : int
        Studies that were erased anew when it was restored.
    """

    sequence: int
    studies: int
    size_bytes: int
    erased: int = 0


@dataclass(frozen=True)
class Verification:
    """What was read, and what of it is damaged.

    Attributes
    ----------
    studies, embeddings, snapshots, audit_entries : int
        How many were read.
    sequence : int
        Sequence number of the store; -1 if it cannot be read.
    audit_seal : str
        Newest seal of the audit trail, to be kept elsewhere.
    findings : tuple of str
        Empty if everything is as it was written.
    """

    studies: int = 0
    embeddings: int = 0
    snapshots: int = 0
    audit_entries: int = 0
    sequence: int = -1
    audit_seal: str = ""
    findings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing is damaged."""
        return not self.findings


@dataclass(frozen=True)
class AuditTouched:
    """A study that a call touched; the ids are empty for what is no longer in the corpus.

    Attributes
    ----------
    subject_digest, study_digest : str
        Keyed hashes, hexadecimal.
    subject_id, study_id : str
    """

    subject_digest: str
    study_digest: str
    subject_id: str = ""
    study_id: str = ""


@dataclass(frozen=True)
class AuditRecord:
    """An entry of the audit trail as it is stored.

    Attributes
    ----------
    entry : int
        Its number, from 1, without gaps.
    time : datetime
        When the call ended, in UTC.
    principal, method, outcome : str
        Who called what, and the name of the status it ended with.
    request_id : str
        The call's, or a keyed hash of it.
    items : int
        How many studies; ``touched`` may list fewer.
    touched : tuple of AuditTouched
    """

    entry: int
    time: datetime
    principal: str
    method: str
    outcome: str
    request_id: str
    items: int
    touched: tuple[AuditTouched, ...] = ()


@dataclass(frozen=True)
class Reindexing:
    """How far the embeddings of another bundle are.

    Attributes
    ----------
    fingerprint : str
        Of that bundle; of the one that serves if there is no other.
    done : bool
        True if it is that bundle that serves.
    studies, total : int
        Studies that have its embeddings, and studies of the corpus.
    error : str
        Why it ended before it was done; empty while it goes on.
    """

    fingerprint: str
    done: bool
    studies: int
    total: int
    error: str = ""


class Reindexer(Protocol):
    """Lets another bundle take over a corpus that is being served."""

    @property
    def state(self) -> Reindexing:
        """How far it is."""

    def start(self, path: Path) -> str:
        """Begin with the bundle of a directory; return its fingerprint."""


class Administration(Protocol):
    """The work of an operator on a corpus that is being served. Safe to call from many threads."""

    def erase_subject(self, subject_id: str, *, check: bool = False) -> Erasure:
        """Erase a subject from the answers and from every file; with ``check``, look for what is left."""

    def back_up(self, name: str) -> Backup:
        """Write a backup of this name."""

    def verify(self, *, wanted: Callable[[], bool] = ...) -> Verification:
        """Read the whole corpus, while it is wanted; raises ``NotReadyError`` if it was ended before."""

    def audit(
        self,
        *,
        subject_id: str | None = None,
        principal: str | None = None,
        since: datetime | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[AuditRecord]:
        """Return entries of the audit trail, oldest first."""

    def reindex(self, name: str) -> str:
        """Begin to give the corpus the embeddings of a bundle, and serve with it then; return its fingerprint."""

    def reindexing(self) -> Reindexing:
        """Return how far that is."""
