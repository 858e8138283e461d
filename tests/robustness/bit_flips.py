"""One bit of one file is another: is it found, and is any answer made of it?"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmecg_index.corpus import Corpus
from mmecg_index.verify import verify
from small import FINGERPRINT, HashEncoder, content_of, make_study

from mmecg.embedding import MODALITIES
from mmecg.errors import MmecgError
from mmecg.retriever import Retriever
from mmecg.search import Filter

STUDIES = 24
Answers = dict[str, Any]


def flip_all(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Flip so many bits in index files, and so many in the database, each in a copy of its own."""
    drawn = random.Random(seed)
    whole = folder / "whole"
    with Corpus.create(whole, FINGERPRINT, factory="HNSW8", reserve_bytes=0) as corpus:
        retriever = Retriever(HashEncoder(), corpus)
        retriever.ingest([make_study(number) for number in range(STUDIES)])
        corpus.compact()
        retriever.ingest([make_study(number) for number in range(STUDIES, STUDIES + 5)])
        for number in (3, 4):
            corpus.delete(f"study-{number}")
    expected = answers_of(whole)
    index = sorted(file for file in (whole / "index").rglob("*") if file.is_file())
    failures: list[dict[str, str]] = []
    return {
        "index files": _flip(whole, index, count, drawn, expected, failures, must_be_found=True),
        "database": _flip(whole, [whole / "corpus.sqlite"], count, drawn, expected, failures, must_be_found=False),
        "failures": failures,
    }


def _flip(
    whole: Path,
    files: list[Path],
    count: int,
    drawn: random.Random,
    expected: Answers,
    failures: list[dict[str, str]],
    *,
    must_be_found: bool,
) -> dict[str, int]:
    """Return how many flips were found by what. Files are drawn evenly, so that the small ones have their share."""
    found: Counter[str] = Counter()
    for _ in range(count):
        copy = whole.with_name("flipped")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        file = copy / drawn.choice(files).relative_to(whole)
        content = bytearray(file.read_bytes())
        bit = drawn.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        where = f"{file.relative_to(copy)}, bit {bit}"
        try:
            verified = not verify(copy).ok
        except MmecgError:
            verified = True
        answers = answers_of(copy)
        refused = {what for what, answer in answers.items() if isinstance(answer, str)}
        other = [what for what, answer in answers.items() if what not in refused and answer != expected[what]]
        found["flips"] += 1
        found["found by verify"] += verified
        found["corpus refused"] += refused == set(expected)
        found["some answers refused"] += 0 < len(refused) < len(expected)
        found["answers as before"] += not refused and not other
        if other:
            found["another answer"] += 1
            found["another answer, not found by verify"] += not verified
        if other and (must_be_found or not verified):
            failures.append({"case": f"flip in {where}", "what": f"another answer: {other[:5]}"})
        if must_be_found and not verified:
            failures.append({"case": f"flip in {where}", "what": "verify found nothing"})
        if must_be_found and refused:
            failures.append({"case": f"flip in {where}", "what": f"not rebuilt: {sorted(refused)[:3]}"})
    return dict(found)


def answers_of(path: Path) -> Answers:
    """Return the answer to each of many questions; its error as text where there is one."""
    numbers = [number for number in range(STUDIES + 5) if number not in (3, 4)]
    queries = HashEncoder().encode_text(["sinus rhythm", "atrial fibrillation"])
    questions: dict[str, Callable[[Corpus], Any]] = {
        "list": lambda corpus: tuple(corpus.list_studies(page_size=1000)[0]),
        "count": lambda corpus: (corpus.count(), corpus.count(Filter(sites=frozenset({"site-1"})))),
        "stats": lambda corpus: (corpus.stats().studies, corpus.stats().subjects, dict(corpus.stats().embeddings)),
        "deleted": lambda corpus: _gone(corpus, "study-3"),
    }
    for number in numbers:
        name = f"study-{number}"
        questions[f"get {number}"] = lambda corpus, name=name: content_of(corpus.get([name])[0])
        questions[f"vectors {number}"] = lambda corpus, name=name: [
            (modality, vector.tobytes()) for modality, vector in corpus.embeddings(corpus.rows([name]))[0].items()
        ]
        subject = make_study(number).subject_id
        questions[f"subject {number // 3}"] = lambda corpus, subject=subject: (
            corpus.list_studies(subject_id=subject)[0],
            corpus.earlier(subject, make_study(10**4).acquired_at, limit=9),
        )
    for target in MODALITIES:
        questions[f"search {target}"] = lambda corpus, target=target: _found(corpus, queries, target, None)
        questions[f"filtered search {target}"] = lambda corpus, target=target: _found(
            corpus, queries, target, Filter(sites=frozenset({"site-0"}), age_max_years=50)
        )
    try:
        corpus = Corpus(path, reserve_bytes=0)
    except MmecgError as error:
        return dict.fromkeys(questions, f"open: {type(error).__name__}")
    answers: Answers = {}
    for what, ask in questions.items():
        try:
            answers[what] = [ask(corpus)]
        except MmecgError as error:
            answers[what] = type(error).__name__
            if answers[what] in ("StudyNotFoundError", "SubjectNotFoundError"):  # that is an answer, and a wrong one
                answers[what] = ["not found"]
    with suppress(MmecgError):
        corpus.close()
    return answers


def _found(corpus: Corpus, queries: Any, target: Any, where: Filter | None) -> Any:
    found = corpus.search(queries, 5, target=target, where=where)
    return [corpus.study_ids(rows) for rows in found.rows], found.scores.round(5).tolist()


def _gone(corpus: Corpus, name: str) -> bool:
    try:
        corpus.get([name])
    except MmecgError:
        return True
    return False
