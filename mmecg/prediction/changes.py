"""What changed since the last earlier study in which a label is known, and which serial findings that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mmecg.labels.change import load_serial_table
from mmecg.prediction.history import Prior
from mmecg.prediction.result import LabelChange, LabelPrediction

_SINCE: dict[str, str] = {"new": "appeared", "gone": "disappeared"}
"""Change of a label to the change of the serial table that it bears out; more or less of it is not known."""

_ORDER = ("new", "gone", "persists")
PRESENT_FROM = 0.5
"""Probability in an earlier study from which on a label counts as present there."""

TOLD_FROM = 0.7
"""Probability of what holds now from which on a change is told; a decision may be closer to one half.

On fold 8 of PTB-XL, heads of folds 1-7, 56 % of the 75 labels new at 0.5 to 0.7 were right, 83 % of the 104 above; 52 %
of the 67 gone at 0.3 to 0.5, 91 % of the 195 below.
"""


def was_there(columns: Sequence[int], known: Sequence[float]) -> bool | None:
    """Return whether a label was there, given what is known of the heads any of which makes it present; or None."""
    values = [known[column] for column in columns]
    if any(value >= PRESENT_FROM for value in values):
        return True
    return False if all(value == value for value in values) else None  # NaN: it may have been there


def find_changes(
    predicted: Sequence[LabelPrediction], columns: Sequence[Sequence[int]], priors: Sequence[Prior]
) -> tuple[LabelChange, ...]:
    """Return what is new, gone or persists, in this order, most probable first where it is there now.

    A label that is undecided, not supported or closer to one half than :data:`TOLD_FROM` now, known in no earlier
    study, or absent in both, is left out.

    Parameters
    ----------
    predicted : sequence of LabelPrediction
    columns : sequence of sequence of int
        Columns of each label in :attr:`Prior.known`, any of which makes it present.
    priors : sequence of Prior
        Latest first.
    """
    found: list[tuple[LabelPrediction, Prior, Literal["new", "gone", "persists"]]] = []
    known = [(prior, prior.known.tolist()) for prior in priors]
    for one, any_of in zip(predicted, columns, strict=True):
        told = ((prior, was_there(any_of, values)) for prior, values in known)
        prior, before = next(((prior, there) for prior, there in told if there is not None), (None, None))
        sure = max(one.probability, 1 - one.probability) >= TOLD_FROM
        if prior is None or one.decision not in ("present", "absent") or not sure:
            continue
        if one.decision == "present":
            found.append((one, prior, "persists" if before else "new"))
        elif before:
            found.append((one, prior, "gone"))
    answered = serial_answers({one.label: _SINCE.get(change, change) for one, _, change in found})
    changes = [
        LabelChange(
            label=one.label,
            change=change,
            prior_study_id=prior.study_id,
            days_before=prior.days_before,
            source=prior.source,
            probability=one.probability,
            serial=tuple(finding for finding, about in answered.items() if one.label in about),
        )
        for one, prior, change in found
    ]
    return tuple(sorted(changes, key=lambda one: (_ORDER.index(one.change), -one.probability)))


def serial_answers(changes: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return the serial findings of the vocabulary that hold, with the findings that they are about.

    A serial finding that names several changes ("non-specific T wave abnormality has replaced inverted T waves") holds
    only if all of them do.

    Parameters
    ----------
    changes : mapping of str to str
        Finding to what happened to it, in the words of the serial table: ``"appeared"``, ``"disappeared"``.
    """
    held: dict[str, frozenset[str]] = {}
    for finding, parts in load_serial_table().findings.items():
        if all(part.of and changes.get(part.of) == part.change for part in parts):
            held[finding] = frozenset(part.of for part in parts)
    return held


def summary(changes: Sequence[LabelChange]) -> str:
    """Return one line such as ``"new: CLBBB; gone: AFIB"``; empty if nothing changed."""
    listed = {kind: [one.label for one in changes if one.change == kind] for kind in ("new", "gone")}
    return "; ".join(f"{kind}: {', '.join(labels)}" for kind, labels in listed.items() if labels)
