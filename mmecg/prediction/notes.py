"""What the clinician wrote beside an ECG before it was recorded ("known AF; prior LBBB"), as evidence of the past.

A note is not the report of the ECG: that one is the answer and is never read. What a note states counts like an earlier
study of which only labels are known, and only those that the note speaks of:

* **stated** (present, probable, historical): 1, with all that it implies; **denied**: 0. Doubt, alternatives,
  comparisons and what is said of relatives say nothing, and neither does silence.
* **Only what was certainly written in time**: notes of the study with a time no later than the recording (and no later
  than ``as_of``), and the one that the caller hands over with the request. Notes of kind "ecg", "ekg" or "report", and
  those with the very words of the report, are taken for the report and left out.
* **Undated**: when a stated finding was seen is not known. :data:`UNDATED_DAYS` stands in for it, the median gap to
  the latest study in folds 1-7 of PTB-XL. It hardly matters: on fold 8, if notes moved only the labels that they speak
  of, macro-AUROC was 0.9328 with 1 day, 0.9326 with 10, 0.9320 with a year, and 0.9326 as the mean over five
  quantiles of the gaps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.prediction.history import MAX_PRIORS, Prior
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import NoteFinding
from mmecg.report import MAX_TEXT_CHARS
from mmecg.study import Study, without_zone

UNDATED_DAYS = 10.0
OF_REQUEST = -1
"""Position of the note that came with the request; those of the study count from 0."""

_STATED = frozenset({Status.PRESENT, Status.PROBABLE, Status.HISTORICAL})
_SAYS = _STATED | {Status.NEGATED}
_REPORTS = frozenset({"ecg", "ekg", "report", "ecg report", "ecg_report", "befund"})
_RELATIVE = re.compile(
    r"(?i)\b(?:famil\w*|heredit\w*|relatives?|father|mother|brother|sister|siblings?|parents?|grand\w+|vater|mutter|"
    r"bruder|schwester|geschwister|eltern|großvater|großmutter|verwandt\w*|pappa|mamma|syskon|föräldr\w*|släkt\w*)\b"
    r"[^.;\n]*\Z"
)
"""What stands before a finding that is said of somebody else, in the same sentence."""


@dataclass(frozen=True)
class Noted:
    """What notes state.

    Attributes
    ----------
    said : tuple of NoteFinding
    text : str
        All that was read, for an answer without an ECG.
    prior : Prior
        The same as an earlier study known by its labels alone.
    """

    said: tuple[NoteFinding, ...]
    text: str
    prior: Prior


def read_notes(query: PredictionQuery, known: KnownLabels) -> Noted | None:
    """Return what the notes of a query state; None if they state nothing, or history is not wanted.

    Parameters
    ----------
    query : PredictionQuery
    known : KnownLabels
        Says what is mined, and what follows from it.
    """
    if not query.options.use_history:
        return None
    said: list[NoteFinding] = []
    read = ""
    for place, text in _in_time(query):
        if len(read) + len(text) + 1 > MAX_TEXT_CHARS:  # as much as is mined at once
            continue
        read += f"{text}\n"
        said += findings_of(text, known, place)
    values = stated(said, known)
    if not np.isfinite(values).any():
        return None
    return Noted(tuple(said), read, Prior(study_id="", days_before=UNDATED_DAYS, source="report", known=values))


def findings_of(text: str, known: KnownLabels, place: int = OF_REQUEST) -> list[NoteFinding]:
    """Return what one note states or denies of the patient."""
    return [
        NoteFinding(note=place, start=one.start, end=one.end, finding=one.finding, status=one.status.value)
        for one in known.mined(text)
        if one.status in _SAYS and not _of_a_relative(text, one)
    ]


def stated(said: Sequence[NoteFinding], known: KnownLabels) -> NDArray[np.float32]:
    """Return 1 for what is stated and what it implies, 0 for what is denied, else NaN: float32, shape (labels,)."""
    denied = {one.finding for one in said if one.status == Status.NEGATED}
    there = known.implied(one.finding for one in said if one.status != Status.NEGATED)
    rest = (0.0 if label in denied else np.nan for label in known.labels)
    return np.array([1.0 if label in there else value for label, value in zip(known.labels, rest, strict=True)], "f4")


def with_notes(priors: Sequence[Prior], noted: Noted | None) -> list[Prior]:
    """Return the earlier studies, latest first, and behind them what notes state."""
    return list(priors) if noted is None else [*priors[: MAX_PRIORS - 1], noted.prior]


def _in_time(query: PredictionQuery) -> list[tuple[int, str]]:
    """Return the notes that were certainly written before the ECG, each with its position."""
    found = [(OF_REQUEST, query.note)] if query.note.strip() else []
    if not isinstance(query.study, Study):
        return found
    report = query.study.report.raw.strip() if query.study.report else ""
    dated = [
        (without_zone(note.written_at), place, note.text)
        for place, note in enumerate(query.study.notes)
        if note.written_at is not None
        and note.is_known_before(query.border)
        and note.kind.strip().lower() not in _REPORTS
        and note.text.strip() not in ("", report)
    ]
    return [*found, *((place, text) for _, place, text in sorted(dated, reverse=True))]


def _of_a_relative(text: str, one: LabelAssertion) -> bool:
    return _RELATIVE.search(text, 0, one.start) is not None
