"""Does the check of the crash run find what it is there for? Corpora that break a promise, each in its own way."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import fork
from crash_check import check
from journal import Journal, Model
from mmecg_index.corpus import Corpus
from small import FINGERPRINT, HashEncoder, make_study, warm_up

from mmecg.retriever import Retriever

STUDIES = 9
ERASED, CHANGED = 1, 7
"""Subject, and study."""

PROMISES = ("lost", "back", "wrong", "index", "audit", "unanswered", "unreadable", "failed")


def build(place: Path) -> Path:
    """Make a corpus, and the journal of how: studies stored, one of them changed, a subject erased."""
    journal = Journal(place / "journal", 1)
    with Corpus.create(place / "corpus", FINGERPRINT, reserve_bytes=0) as corpus:
        retriever = Retriever(HashEncoder(), corpus)
        for number in range(STUDIES):
            _store(retriever, journal, number, 0)
        _store(retriever, journal, CHANGED, 1)
        entry = journal.intend("erase", subject=ERASED)
        erased = corpus.erase_subject(make_study(3 * ERASED).subject_id)
        journal.acknowledge(entry, sequence=erased.sequence)
    return place / "corpus"


def _store(retriever: Any, journal: Journal, number: int, version: int) -> None:
    entry = journal.intend("put", number=number, version=version)
    (sequence,) = retriever.store([make_study(number, version)])
    journal.acknowledge(entry, sequence=sequence)


def _with_corpus(work: Callable[[Corpus], object]) -> Callable[[Path], None]:
    def sabotage(path: Path) -> None:
        with Corpus(path, reserve_bytes=0) as corpus:
            work(corpus)

    return sabotage


def _delete_in_the_file(path: Path) -> None:
    connection = sqlite3.connect(path / "corpus.sqlite")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("DELETE FROM studies WHERE study_id = 'study-0'")
    connection.commit()
    connection.close()


def _leave_a_word(path: Path) -> None:
    (path / "index" / "left-over").write_text(make_study(3 * ERASED).subject_id)


def _give_another_vector(path: Path) -> None:
    connection = sqlite3.connect(path / "corpus.sqlite")
    connection.execute(
        "UPDATE embeddings SET vector = (SELECT vector FROM embeddings WHERE row = 2 AND modality = 'text') "
        "WHERE row = 1 AND modality = 'text'"
    )
    connection.commit()
    connection.close()


SABOTAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda _: None, ""),
    "a study is deleted": (_with_corpus(lambda corpus: corpus.delete("study-0")), "lost"),
    "a study is deleted in the file": (_delete_in_the_file, "lost"),
    "an older version is stored": (
        _with_corpus(lambda corpus: Retriever(HashEncoder(), corpus).store([make_study(CHANGED, 0)])),
        "wrong",
    ),
    "a study that nobody sent is stored": (
        _with_corpus(lambda corpus: Retriever(HashEncoder(), corpus).store([make_study(99)])),
        "wrong",
    ),
    "an erased study is put back": (
        _with_corpus(lambda corpus: Retriever(HashEncoder(), corpus).store([make_study(3 * ERASED)])),
        "back",
    ),
    "a word of somebody erased is left in a file": (_leave_a_word, "back"),
    "an embedding is another one": (_give_another_vector, "unreadable"),
}
"""Name -> what is done to the corpus, and the promise that is broken by it."""


def main() -> int:
    """Print what the check finds of each; exit 0 if it is what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the outcome is written")
    arguments = parser.parse_args()
    warm_up()
    outcome: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="mmecg-sabotage-") as folder:
        for number, (name, (sabotage, _)) in enumerate(SABOTAGE.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            child = fork(lambda _, place=place, sabotage=sabotage: sabotage(build(place)), Path(folder) / "log")
            child.line()
            child.kill()
            model = Model()
            model.read(place / "journal")
            child = fork(
                lambda pipe, place=place, model=model: check(place, model, pipe, close=True), Path(folder) / "log"
            )
            found = json.loads(child.line() or b'{"failed": "the check did not end"}')
            child.kill()
            outcome[name] = [promise for promise in PROMISES if found.get(promise)]
    print(json.dumps(outcome, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome) + "\n")
    missed = [name for name, (_, promise) in SABOTAGE.items() if (promise in outcome[name]) != bool(promise)]
    return 1 if missed or outcome["nothing"] else 0


if __name__ == "__main__":
    sys.exit(main())
