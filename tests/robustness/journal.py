"""What a client asked for and what it was told: a journal on disk, and what a corpus may hold after a crash."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from small import STUDIES_PER_SUBJECT, subject_of


class Journal:
    """Lines that are appended before a request is sent and after its answer came. Safe to use from many threads."""

    def __init__(self, path: Path, first: int) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._next = first

    def intend(self, kind: str, **what: Any) -> int:
        """Enter a request that is about to be sent; return its number."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        self._append({"op": kind, "id": number} | what)
        return number

    def acknowledge(self, number: int, **answer: Any) -> None:
        """Enter the answer."""
        self._append({"ack": number} | answer)

    def complain(self, what: str) -> None:
        """Enter an answer that must not be."""
        self._append({"bad": what})

    def _append(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


@dataclass
class Model:
    """What a corpus must hold: of every study the version that was acknowledged last, or what was under way since.

    Attributes
    ----------
    settled : dict of int to int or None
        Version of each study after the last check; None for one that is gone.
    erased : set of int
        Subjects whose erasure was acknowledged.
    """

    settled: dict[int, int | None] = field(default_factory=dict)
    erased: set[int] = field(default_factory=set)
    erasing: set[int] = field(default_factory=set)
    allowed: dict[int, list[int | None]] = field(default_factory=dict)
    answered: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    backups: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    sequence: int = 0
    bad: list[str] = field(default_factory=list)
    next_id: int = 0
    acknowledged: int = 0
    acknowledged_by_kind: dict[str, int] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Take in the journal of one round."""
        operations: dict[int, dict[str, Any]] = {}
        answers: dict[int, dict[str, Any]] = {}
        self.bad, self.backups, self.calls, self.pending, self.erasing = [], [], [], [], set()
        for line in path.read_text().splitlines() if path.exists() else []:
            entry = json.loads(line)
            if "op" in entry:
                operations[entry["id"]] = entry
            elif "ack" in entry:
                answers[entry["ack"]] = entry
            else:
                self.bad.append(entry["bad"])
        steps: dict[int, list[tuple[dict[str, Any], int | None]]] = defaultdict(list)
        for number, operation in operations.items():
            answer = answers.get(number)
            operation["sequence"] = answer and answer.get("sequence")
            kind = operation["op"]
            if answer:
                self.acknowledged += 1
                self.acknowledged_by_kind[kind] = self.acknowledged_by_kind.get(kind, 0) + 1
                self.sequence = max(self.sequence, answer.get("sequence") or 0)
                if operation.get("call"):
                    self.calls.append(operation["call"])
            if kind == "backup":
                self.backups += [operation["name"]] if answer else []
            elif kind == "erase":
                (self.erased if answer else self.erasing).add(operation["subject"])
                first = operation["subject"] * STUDIES_PER_SUBJECT
                for study in range(first, first + STUDIES_PER_SUBJECT):
                    steps[study].append((operation, None))
            else:
                result = None if kind == "delete" else operation["version"]
                steps[operation["number"]].append((operation, result))
        self.allowed = {number: [version] for number, version in self.settled.items()}
        for number, taken in steps.items():
            allowed = [self.settled.get(number)]
            for operation, result in taken:
                allowed = [result] if operation["sequence"] is not None else [*allowed, result]
            self.allowed[number] = allowed
            last = taken[-1][0]
            if last["sequence"] is None and "request" in last:
                self.pending.append(last)
        self.answered += [each for each in operations.values() if each["sequence"] is not None and "request" in each]
        gone = self.erased | self.erasing
        self.answered = [each for each in self.answered if subject_of(each["number"]) not in gone][-2000:]
        self.pending = [each for each in self.pending if subject_of(each["number"]) not in gone]
        self.next_id = max([self.next_id, *(number + 1 for number in operations)])

    def settle(self, observed: dict[int, int | None]) -> None:
        """Go on from what a check found."""
        self.settled = observed
        for subject in self.erasing:
            first = subject * STUDIES_PER_SUBJECT
            if all(observed.get(number) is None for number in range(first, first + STUDIES_PER_SUBJECT)):
                self.erased.add(subject)
