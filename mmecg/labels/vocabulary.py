"""The vocabulary: findings, their codes in other systems, and which finding implies which.

The data are the CSV files in ``vocabulary/``; the README of this folder says where each came from.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ConfigError, InvalidInputError

KINDS: tuple[str, ...] = ("rhythm", "form", "diagnostic", "axis", "measurement", "technical", "serial")
MIN_EDGE_PRECISION = 0.5
"""An edge whose implied finding is gold in fewer of the records with the first does not belong in the vocabulary."""


class Relation(StrEnum):
    """What a foreign code is, seen from our finding."""

    EXACT = "exact"
    BROADER = "broader"
    NARROWER = "narrower"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of an ECG.

    Attributes
    ----------
    id : str
        SCP-ECG code as PTB-XL spells it, or an upper-case name of ours.
    name : str
    kind : str
        One of :data:`KINDS`.
    superclass, subclass : str
        Of PTB-XL; empty outside its diagnostic statements.
    serial : bool
        It compares with an earlier ECG, so that one ECG cannot decide it.
    """

    id: str
    name: str
    kind: str
    superclass: str
    subclass: str
    serial: bool


@dataclass(frozen=True, slots=True)
class Mapping:
    """One row of the crosswalk.

    Attributes
    ----------
    finding : str
        Empty for a foreign code that names no finding of an ECG; :attr:`note` says why.
    system, code, name : str
        The foreign code, and what its system calls it.
    relation : Relation or None
        The foreign code is exactly, broader than, or narrower than the finding; None without a finding.
    note : str
    """

    finding: str
    system: str
    code: str
    name: str
    relation: Relation | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """An implication: where :attr:`finding` is present, :attr:`implies` is, because of :attr:`reason`.

    Attributes
    ----------
    finding, implies : str
    reason : str
    precision : float or None
        Share of the records with the first that gold gives the second: PTB-XL, folds 1 to 8. None for an edge that gold
        cannot test, as it has no label for one of the ends; such an edge rests on its reason alone.
    """

    finding: str
    implies: str
    reason: str
    precision: float | None = None


@dataclass(frozen=True)
class Vocabulary:
    """Findings, crosswalk and implications, checked against each other.

    Attributes
    ----------
    version : str
    findings : tuple of Finding
        The 71 statements of PTB-XL first, in its order.
    crosswalk : tuple of Mapping
    edges : tuple of Edge

    Raises
    ------
    ConfigError
        An id is unknown or listed twice, or the implications run in a circle.
    """

    version: str
    findings: tuple[Finding, ...]
    crosswalk: tuple[Mapping, ...]
    edges: tuple[Edge, ...]
    _by_id: dict[str, Finding] = field(init=False, repr=False, compare=False)
    _implied: dict[str, frozenset[str]] = field(init=False, repr=False, compare=False)
    _by_system: dict[str, tuple[Mapping, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_unique("findings", [finding.id for finding in self.findings])
        _check_unique("crosswalk", [(row.finding, row.system, row.code) for row in self.crosswalk])
        _check_unique("implies", [(edge.finding, edge.implies) for edge in self.edges])
        by_id = {finding.id: finding for finding in self.findings}
        used = {row.finding for row in self.crosswalk if row.finding}
        used |= {name for edge in self.edges for name in (edge.finding, edge.implies)}
        if unknown := sorted(used - by_id.keys()):
            raise ConfigError(f"vocabulary uses {unknown[0]!r}, which findings.csv does not list; list it")
        if wrong := [finding for finding in self.findings if finding.kind not in KINDS]:
            raise ConfigError(f"kind of {wrong[0].id} is {wrong[0].kind!r}, expected one of {', '.join(KINDS)}")
        for row in self.crosswalk:
            if bool(row.finding) != (row.relation is not None) or not (row.finding or row.note):
                raise ConfigError(f"{row.system} {row.code!r} needs a finding and a relation, or neither and a note")
        object.__setattr__(self, "_by_id", by_id)
        object.__setattr__(self, "_implied", _transitive(self.edges))
        rows: dict[str, list[Mapping]] = {}
        for row in self.crosswalk:
            rows.setdefault(row.system, []).append(row)
        object.__setattr__(self, "_by_system", {system: tuple(found) for system, found in rows.items()})

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the code systems of the crosswalk."""
        return tuple(self._by_system)

    def finding(self, finding_id: str) -> Finding:
        """Return a finding by its id.

        Raises
        ------
        InvalidInputError
            There is none of this id.
        """
        found = self._by_id.get(finding_id)
        if found is None:
            raise InvalidInputError(f"no finding {finding_id!r}; {_advice(finding_id, self._by_id)}", field="finding")
        return found

    def mappings(self, system: str) -> tuple[Mapping, ...]:
        """Return the rows of one code system, also those without a finding.

        Parameters
        ----------
        system : str
            A name in :attr:`systems`; a hyphen for its underscore will do (``ecg-fm``).

        Raises
        ------
        InvalidInputError
            The crosswalk has no such system.
        """
        rows = self._by_system.get(system.replace("-", "_"))
        if rows is None:
            raise InvalidInputError(f"no code system {system!r}; {_advice(system, self.systems)}", field="system")
        return rows

    def translate(self, finding_id: str, system: str) -> tuple[Mapping, ...]:
        """Return the codes of a system that hold wherever the finding holds, the exact ones first.

        These are its exact and broader codes, and those of every finding that it implies, which are broader. A
        narrower code says more than the finding does and is never returned.

        Raises
        ------
        InvalidInputError
            The finding or the system is unknown.
        """
        self.finding(finding_id)
        found: dict[str, Mapping] = {}
        for row in self.mappings(system):
            if row.finding == finding_id and row.relation in (Relation.EXACT, Relation.BROADER):
                found[row.code] = row
        for row in self.mappings(system):
            if row.finding in self._implied.get(finding_id, ()) and row.relation in (Relation.EXACT, Relation.BROADER):
                found.setdefault(row.code, Mapping(finding_id, system, row.code, row.name, Relation.BROADER))
        return tuple(sorted(found.values(), key=lambda row: row.relation is not Relation.EXACT))

    def closure(self, finding_ids: Iterable[str]) -> frozenset[str]:
        """Return the findings and all that they imply; only for findings that are present.

        Raises
        ------
        InvalidInputError
            A finding is unknown.
        """
        known = {self.finding(finding_id).id for finding_id in finding_ids}
        return frozenset(known.union(*(self._implied.get(finding_id, ()) for finding_id in known)))

    def edge_precision(self, findings: Sequence[str], gold: NDArray[np.bool_]) -> dict[Edge, float | None]:
        """Return P(implied | finding) of each edge on gold labels; None where gold cannot tell.

        Parameters
        ----------
        findings : sequence of str, length labels
            Findings that the gold labels know.
        gold : bool, shape (records, labels)

        Returns
        -------
        dict of Edge to float or None
            None if gold does not know one of the two ends, or has no record with the first: that edge rests on its
            reason alone.
        """
        column = {finding_id: gold[:, index] for index, finding_id in enumerate(findings)}
        return {
            edge: float(column[edge.implies][column[edge.finding]].mean())
            if edge.implies in column and column.get(edge.finding, np.False_).any()
            else None
            for edge in self.edges
        }


@cache
def load_vocabulary() -> Vocabulary:
    """Return the vocabulary that ships with mmecg, checked."""
    return Vocabulary(
        _read("VERSION").strip(),
        _rows("findings.csv", _finding),
        _rows("crosswalk.csv", _mapping),
        _rows("implies.csv", _edge),
    )


_Row = TypeVar("_Row")


def _rows(name: str, make: Callable[[dict[str, str]], _Row]) -> tuple[_Row, ...]:
    return tuple(make(row) for row in csv.DictReader(_read(name).splitlines()))


def _read(name: str) -> str:
    return files("mmecg.labels").joinpath("vocabulary", name).read_text("utf-8")


def _finding(row: dict[str, str]) -> Finding:
    return Finding(row["id"], row["name"], row["kind"], row["superclass"], row["subclass"], row["serial"] == "true")


def _edge(row: dict[str, str]) -> Edge:
    precision = float(row["gold_precision"]) if row["gold_precision"] else None
    return Edge(row["finding"], row["implies"], row["reason"], precision)


def _mapping(row: dict[str, str]) -> Mapping:
    return Mapping(
        row["finding"],
        row["system"],
        row["code"],
        row["name"],
        Relation(row["relation"]) if row["relation"] else None,
        row["note"],
    )


def _advice(name: str, known: Iterable[str]) -> str:
    spelt = {entry.upper(): entry for entry in known}
    near = get_close_matches(name.upper(), spelt, 1)
    return f"did you mean {spelt[near[0]]}?" if near else f"expected one of {', '.join(spelt.values())}"


def _check_unique(what: str, keys: Sequence[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ConfigError(f"{what}.csv lists {key!r} twice; keep one")
        seen.add(key)


def _transitive(edges: Iterable[Edge]) -> dict[str, frozenset[str]]:
    direct: dict[str, set[str]] = {}
    for edge in edges:
        direct.setdefault(edge.finding, set()).add(edge.implies)

    def above(finding_id: str, path: tuple[str, ...]) -> frozenset[str]:
        if finding_id in path:
            raise ConfigError(f"implies.csv runs in a circle: {' -> '.join((*path, finding_id))}; drop one edge")
        parents = direct.get(finding_id, set())
        return frozenset(parents.union(*(above(parent, (*path, finding_id)) for parent in parents)))

    return {finding_id: above(finding_id, ()) for finding_id in direct}
