"""A study (one acquisition: ECG, report, notes, vitals) and a subject's history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mmecg.ecg import Ecg
from mmecg.errors import InvalidInputError
from mmecg.report import Report
from mmecg.vitals import Vitals

MAX_ID_CHARS = 128


@dataclass(frozen=True)
class ClinicalNote:
    """Free text with a time: triage complaint, history, discharge text.

    Attributes
    ----------
    text : str
    kind : str
        What it is ("triage", "history", "discharge", …); free, lower case.
    written_at : datetime, optional
        When it was written. Unknown counts as later than the ECG: it might give the answer away.
    """

    text: str
    kind: str = "note"
    written_at: datetime | None = None

    def is_known_before(self, moment: datetime | None) -> bool:
        """Return True only if both times are known and the note was written no later than ``moment``.

        Times are compared as :func:`without_zone` says.
        """
        if moment is None or self.written_at is None:
            return False
        return without_zone(self.written_at) <= without_zone(moment)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One acquisition.

    Attributes
    ----------
    study_id, subject_id : str
        1 to 128 printable characters; ``subject_id`` names the patient.
    acquired_at : datetime, optional
        Start of the recording.
    ecg : Ecg, optional
    report : Report, optional
    notes : tuple of ClinicalNote
    vitals : Vitals
    labels : mapping of str to float
        Label to likelihood 0..100 as the source gives it; in PTB-XL 0 means *unknown*, not absent, and a label that is
        not listed is unlabelled, not negative.
    site, device : str, optional
    attributes : mapping of str to str
        What else the source says (signal-quality notes, fold, …).
    """

    study_id: str
    subject_id: str
    acquired_at: datetime | None = None
    ecg: Ecg | None = None
    report: Report | None = None
    notes: tuple[ClinicalNote, ...] = ()
    vitals: Vitals = field(default_factory=Vitals)
    labels: Mapping[str, float] = field(default_factory=dict)
    site: str | None = None
    device: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.study_id, "study_id")
        check_id(self.subject_id, "subject_id")

    def notes_before_ecg(self) -> tuple[ClinicalNote, ...]:
        """Return the notes that were certainly written no later than the ECG."""
        return tuple(note for note in self.notes if note.is_known_before(self.acquired_at))

    def notes_after_ecg(self) -> tuple[ClinicalNote, ...]:
        """Return the notes that may have been written after the ECG (an unknown time counts as after)."""
        return tuple(note for note in self.notes if not note.is_known_before(self.acquired_at))


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which studies somebody may see and change. Both conditions must hold; one that is None allows everything.

    Attributes
    ----------
    sites : frozenset of str, optional
        Of these sites; a study without a site is outside.
    subject_ids : frozenset of str, optional
        Of these subjects.
    """

    sites: frozenset[str] | None = None
    subject_ids: frozenset[str] | None = None

    @property
    def is_whole(self) -> bool:
        """True if it allows every study."""
        return self.sites is None and self.subject_ids is None

    def allows(self, subject_id: str, site: str | None) -> bool:
        """Return whether a study of a subject and a site is inside."""
        return (self.subject_ids is None or subject_id in self.subject_ids) and (
            self.sites is None or site in self.sites
        )

    def and_within(self, other: Scope) -> Scope:
        """Return what is inside both."""
        return Scope(sites=_both(self.sites, other.sites), subject_ids=_both(self.subject_ids, other.subject_ids))


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """A write that its caller named, so that it is done once, however often it is sent.

    Attributes
    ----------
    request_id : str
        1 to 128 characters.
    principal : str
        Who asks; everybody's request ids are their own.
    content : bytes, optional
        What is asked for, if that is not the study alone; the same request id with another content is refused.
    """

    request_id: str
    principal: str = ""
    content: bytes | None = None


@dataclass(frozen=True)
class History:
    """The subject's studies strictly before ``as_of``, oldest first. Build it with :meth:`build`."""

    subject_id: str
    as_of: datetime
    studies: tuple[Study, ...]

    @classmethod
    def build(cls, studies: Iterable[Study], *, subject_id: str, as_of: datetime) -> History:
        """Pick the subject's studies acquired strictly before ``as_of``.

        Studies of other subjects, later studies, and studies without a time are left out. Times are compared as
        :func:`without_zone` says.
        """
        earlier = [
            (without_zone(study.acquired_at), study.study_id, study)
            for study in studies
            if study.subject_id == subject_id
            and study.acquired_at is not None
            and without_zone(study.acquired_at) < without_zone(as_of)
        ]
        earlier.sort(key=lambda item: item[:2])
        return cls(subject_id, as_of, tuple(study for *_, study in earlier))


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def without_zone(moment: datetime) -> datetime:
    """Return a time as all times are compared and stored: UTC if it has a zone, as it is if it has none.

    Raises
    ------
    InvalidInputError
        In UTC it lies outside the years 1 to 9999.
    """
    try:
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise InvalidInputError("time is outside the years 1 to 9999 in UTC, expected one within; check it") from None


def check_id(value: str, name: str) -> str:
    """Return an identifier of 1 to 128 printable characters without surrounding space.

    Raises
    ------
    InvalidInputError
        Anything else. The value is not repeated in the message.
    """
    if not isinstance(value, str):
        got = "missing" if value is None else f"of type {type(value).__name__}"
        raise InvalidInputError(
            f"{name} is {got}, expected text of 1 to {MAX_ID_CHARS} printable characters; give every study its ids",
            field=name,
        )
    if not value or len(value) > MAX_ID_CHARS or not value.isprintable() or value != value.strip():
        raise InvalidInputError(
            f"{name} has {len(value)} characters or unprintable ones, expected 1 to {MAX_ID_CHARS} printable "
            "characters without surrounding space",
            field=name,
        )
    return value
