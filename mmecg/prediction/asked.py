"""From the labels that are asked for to the heads that answer.

A label may be an SCP statement (``"AFIB"``), a superclass (``"superclass/MI"``), ``"all"``, ``"superclass"``, another
finding of the vocabulary (``"BBB"``), or a code of another vocabulary (``"snomed:164889003"``). A finding or code
without a head of its own is answered by the heads of the findings that imply it: it is there if any of these is
(:func:`mmecg.prediction.answer.predict_labels`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import QueryError
from mmecg.labels.vocabulary import Relation, load_vocabulary
from mmecg.prediction.result import SUPERCLASS_PREFIX

ALL, SUPERCLASS = "all", "superclass"
_MAX_LABELS = 1000


@dataclass(frozen=True)
class AskedLabel:
    """A label as it was asked for, and the columns of the heads any of which makes it present."""

    label: str
    columns: tuple[int, ...]


class LabelResolver:
    """Finds the heads for label names.

    Parameters
    ----------
    labels : sequence of str
        The labels that have a head.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._column = {label: index for index, label in enumerate(labels)}
        self._vocabulary = load_vocabulary()
        statements = [label for label in labels if not label.startswith(SUPERCLASS_PREFIX)]
        self._closure = {label: self._vocabulary.closure([label]) for label in statements}
        self._findings = frozenset(finding.id for finding in self._vocabulary.findings)

    def resolve(self, labels: Sequence[str] | None) -> tuple[AskedLabel, ...]:
        """Return what answers each label, in the order asked for, a repeated one once; None asks for all.

        Raises
        ------
        QueryError
            No label, too many, or one that no trained head answers.
        """
        if labels is None:
            labels = (ALL,)
        if isinstance(labels, str) or not 0 < len(labels) <= _MAX_LABELS:
            got = "one string" if isinstance(labels, str) else f"{len(labels)} labels"
            raise QueryError(f"labels are {got}, expected 1 to {_MAX_LABELS} names", field="options.labels")
        if not all(isinstance(name, str) for name in labels):
            raise QueryError("labels hold something that is not text, expected names", field="options.labels")
        found: dict[str, AskedLabel] = {}
        for name in labels:
            if name == ALL:
                found |= {label: AskedLabel(label, (column,)) for label, column in self._column.items()}
            elif name == SUPERCLASS:
                wanted = {label: at for label, at in self._column.items() if label.startswith(SUPERCLASS_PREFIX)}
                found |= {label: AskedLabel(label, (column,)) for label, column in wanted.items()}
            else:
                found[name] = AskedLabel(name, self._columns(name))
        return tuple(found.values())

    def site_prevalence(self, prevalence: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the prevalence at the caller's site: float64, shape (labels,), NaN where it is not given.

        Raises
        ------
        QueryError
            A label without a head of its own.
        """
        site = np.full(len(self._column), np.nan)
        for label, share in prevalence.items():
            if label not in self._column:
                raise QueryError(self._unknown(label, "prevalence names"), field="options.prevalence")
            site[self._column[label]] = share
        return site

    def _columns(self, name: str) -> tuple[int, ...]:
        if name in self._column:
            return (self._column[name],)
        found = [self._column[label] for finding in self._findings_of(name) for label in self._implying(finding)]
        if not found:
            raise QueryError(self._unknown(name, "label"), field="options.labels")
        return tuple(sorted(set(found)))

    def _findings_of(self, name: str) -> list[str]:
        """Return the findings any of which makes a name hold: those that the code is exactly, or else broader than."""
        system, colon, code = name.partition(":")
        if name in self._findings:
            return [name]
        if not colon or system not in self._vocabulary.systems:
            return []
        rows = [row for row in self._vocabulary.mappings(system) if row.code == code and row.finding]
        exact = [row.finding for row in rows if row.relation is Relation.EXACT]
        return exact or [row.finding for row in rows if row.relation is Relation.BROADER]

    def _implying(self, finding: str) -> list[str]:
        """Return the labels with a head that imply a finding; a finding that has its own head answers for itself."""
        if finding in self._column:
            return [finding]
        return [label for label, implied in self._closure.items() if finding in implied]

    def _unknown(self, name: str, what: str) -> str:
        spelt = {label.upper(): label for label in self._column}
        near = [spelt[each] for each in difflib.get_close_matches(name.upper(), spelt, 3)]
        advice = f"did you mean {' or '.join(near)}?" if near else "expected a label of `mmecg predict --labels all`"
        return f"{what} {name[:40]!r} has no trained head; {advice}"
