"""Mixed work on a corpus whose disk may fail: what each call came to, and whether reads stay right."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from journal import Journal
from mmecg_index.backup import back_up
from mmecg_index.corpus import Corpus
from small import STUDIES_PER_SUBJECT, HashEncoder, content_of, make_study, subject_of

from mmecg.errors import MmecgError, NotFoundError
from mmecg.retriever import Retriever
from mmecg.search import WriteRequest


class Work:
    """Calls on a corpus, journalled.

    Parameters
    ----------
    place : Path
    journal : Path
    seed : int
    mark : callable, optional
        Is told after each line of the journal how many there are.
    """

    def __init__(self, place: Path, journal: Path, seed: int, mark: Callable[[int], None] | None = None) -> None:
        self._place = place
        self._journal = Journal(journal, 1)
        self._random = random.Random(seed)
        self._mark = mark
        self._lines = 0
        self._there: dict[int, int] = {}
        self._uncertain: set[int] = set()
        self._made: Counter[int] = Counter()
        self._next = 0
        self._outcomes: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._answered: list[tuple[int, int, str, int]] = []

    def run(self, calls: int, after: int, arm: Callable[[], None], disk: Any) -> dict[str, Any]:
        """Do some calls; from one of them on the disk fails. Then it is mended, and one more write is tried."""
        corpus = None
        kinds = ("put", "batch", "delete", "erase", "compact", "backup", "read")
        for number in range(calls):
            if number == after:
                arm()
            if corpus is None:
                corpus = self._open(number >= after)
                continue
            kind = self._random.choices(kinds, (6, 4, 3, 2, 2, 1, 4))[0]
            self._try(kind, lambda one=corpus, kind=kind: getattr(self, f"_{kind}")(one), number >= after)
        if corpus is None:
            disk.mend()
            return self._result(disk, 0)
        self._read(corpus)
        disk.mend()
        self._read(corpus)
        again = self._try("put", lambda: self._put(corpus), False) if corpus.writable else False
        self._replay(corpus)
        self._try("close", corpus.close, True)
        return self._result(disk, int(again))

    def _result(self, disk: Any, again: int) -> dict[str, Any]:
        return {
            "outcomes": dict(self._outcomes),
            "wrong": self._wrong,
            "writes_again": again,
            "struck": disk.struck() > 0,
        }

    def _open(self, count: bool) -> Corpus | None:
        found: list[Corpus] = []
        self._try("open", lambda: found.append(Corpus(self._place / "corpus", reserve_bytes=0)), count)
        return found[0] if found else None

    def _try(self, kind: str, call: Callable[[], object], count: bool) -> bool:
        try:
            call()
        except MmecgError as error:
            outcome = type(error).__name__
        except (OSError, sqlite3.Error) as error:
            outcome = f"raw {type(error).__name__}"
            self._wrong.append(f"{kind}: {outcome}: {error}")
        except Exception as error:
            self._wrong.append(f"{kind}: {type(error).__name__}: {error}")
            return False
        else:
            outcome = "done"
        if count:
            self._outcomes[outcome] += 1
        return outcome == "done"

    def _intend(self, kind: str, **what: Any) -> int:
        number = self._journal.intend(kind, **what)
        self._tell()
        return number

    def _acknowledge(self, number: int, sequence: int) -> None:
        self._journal.acknowledge(number, sequence=sequence)
        self._tell()

    def _tell(self) -> None:
        self._lines += 1
        if self._mark is not None:
            self._mark(self._lines)

    def _put(self, corpus: Corpus, count: int = 1) -> None:
        entries = []
        for _ in range(count):
            number = self._random.choice([*sorted(self._there.keys() - self._uncertain), self._next, self._next])
            self._next += number == self._next
            self._made[number] += 1
            entries.append((number, self._made[number], uuid.UUID(int=self._random.getrandbits(128)).hex))
        entries = list({number: (number, version, request) for number, version, request in entries}.values())
        ids = [self._intend("put", number=one, version=version, request=name) for one, version, name in entries]
        self._uncertain |= {number for number, *_ in entries}
        sequences = Retriever(HashEncoder(), corpus).store(
            [make_study(number, version) for number, version, _ in entries],
            requests=[WriteRequest(request_id=name) for *_, name in entries],
        )
        for entry, (number, version, name), sequence in zip(ids, entries, sequences, strict=True):
            self._acknowledge(entry, sequence)
            self._there[number] = version
            self._uncertain.discard(number)
            self._answered.append((number, version, name, sequence))

    def _batch(self, corpus: Corpus) -> None:
        self._put(corpus, self._random.randint(2, 12))

    def _delete(self, corpus: Corpus) -> None:
        if certain := sorted(self._there.keys() - self._uncertain):
            number = self._random.choice(certain)
            name = uuid.UUID(int=self._random.getrandbits(128)).hex
            entry = self._intend("delete", number=number, version=0, request=name)
            self._uncertain.add(number)
            sequence = corpus.delete(f"study-{number}", request=WriteRequest(request_id=name))
            self._acknowledge(entry, sequence)
            self._uncertain.discard(number)
            del self._there[number]

    def _erase(self, corpus: Corpus) -> None:
        if not self._there:
            return
        subject = subject_of(self._random.choice(sorted(self._there)))
        theirs = range(subject * STUDIES_PER_SUBJECT, (subject + 1) * STUDIES_PER_SUBJECT)
        if self._next <= theirs[-1]:  # one of theirs may still come
            return
        entry = self._intend("erase", subject=subject)
        self._uncertain |= set(theirs)
        erased = corpus.erase_subject(make_study(theirs[0]).subject_id)
        self._acknowledge(entry, erased.sequence)
        for number in theirs:
            self._there.pop(number, None)
            self._uncertain.discard(number)
        self._answered = [each for each in self._answered if each[0] not in theirs]

    def _compact(self, corpus: Corpus) -> None:
        corpus.compact()

    def _backup(self, corpus: Corpus) -> None:
        name = uuid.UUID(int=self._random.getrandbits(128)).hex
        entry = self._intend("backup", name=name)
        made = back_up(corpus.path, self._place / "backups" / name)
        self._acknowledge(entry, made.sequence)

    def _read(self, corpus: Corpus) -> None:
        """Compare what is certain; an answer is right or an error."""
        for number in self._random.sample(sorted(self._there), min(5, len(self._there))):
            if number in self._uncertain:
                continue
            wanted = make_study(number, self._there[number])
            try:
                (found,) = corpus.get([wanted.study_id])
            except NotFoundError:
                self._wrong.append(f"read: study {number} is not found")
            except MmecgError as error:
                self._outcomes[f"read: {type(error).__name__}"] += 1
            else:
                if content_of(found) != content_of(wanted):
                    self._wrong.append(f"read: study {number} is another one")

    def _replay(self, corpus: Corpus) -> None:
        """Send again what was answered; the answer is the same, or an error."""
        for number, version, name, sequence in self._random.sample(self._answered, min(5, len(self._answered))):
            try:
                (again,) = Retriever(HashEncoder(), corpus).store(
                    [make_study(number, version)], requests=[WriteRequest(request_id=name)]
                )
            except MmecgError as error:
                self._outcomes[f"replay: {type(error).__name__}"] += 1
            else:
                if again != sequence:
                    self._wrong.append(f"replay: answered with {again}, before with {sequence}")
