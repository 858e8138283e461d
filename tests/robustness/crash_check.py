"""What is looked at after a crash: that the corpus opens, and holds what was acknowledged and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from journal import Model
from kill_points import Trap, _before_statement
from mmecg_index.corpus import Corpus
from mmecg_index.verify import verify
from small import STUDIES_PER_SUBJECT, canary, content_of, index_faults, make_study

from mmecg.errors import MmecgError

GOLDEN = Path(__file__).parents[1] / "golden" / "corpus_v1"


def check(place: Path, model: Model, pipe: int, *, close: bool) -> None:
    """Open the corpus of a place, compare it with the model, and write what was found into the pipe, as JSON.

    Parameters
    ----------
    place : Path
    model : Model
    pipe : int
    close : bool
        Close the corpus in the end; else this process just ends, which is one more crash.
    """
    found: dict[str, Any] = {"failed": ""}
    if not (place / "corpus").exists():  # died before it was made
        _write(pipe, found | {"observed": {}})
        return
    started = time.monotonic()
    try:
        corpus = Corpus(place / "corpus", reserve_bytes=0)
    except Exception as error:
        _write(pipe, found | {"failed": f"open: {type(error).__name__}: {error}"})
        return
    found["open_s"] = time.monotonic() - started
    try:
        found |= _studies(corpus, model)
        found["index"] = index_faults(corpus)
        found["audit"] = _audit(corpus, model)
        found["unreadable"] = [*verify(corpus.path).findings, *_backups(place, model)]
        found["backups"] = len(model.backups)
        if corpus.sequence < model.sequence:
            found["lost"].append(f"sequence is {corpus.sequence}, {model.sequence} was acknowledged")
    except MmecgError as error:
        found["failed"] = f"read: {type(error).__name__}: {error}"
    if close:
        corpus.close()
    _write(pipe, found)


def _studies(corpus: Corpus, model: Model) -> dict[str, Any]:
    ids, token = [], ""
    while True:
        page, token = corpus.list_studies(page_size=1000, page_token=token)
        ids += page
        if not token:
            break
    there = {study.study_id: content_of(study) for study in corpus.get(ids)}
    lost, back, wrong, observed = [], [], [], {}
    under_way = done = 0
    for number, allowed in model.allowed.items():
        content = there.pop(f"study-{number}", None)
        fitting = [one for one in allowed if content == (None if one is None else content_of(make_study(number, one)))]
        if fitting:
            observed[number] = fitting[-1]
            if len(allowed) > 1:
                under_way += 1
                done += fitting[-1] != allowed[0]
        elif content is None:
            lost.append(number)
        elif allowed == [None]:
            back.append(number)
        else:
            wrong.append(f"study {number} is of none of the versions {allowed}")
    wrong += [f"{name} was never stored" for name in there]
    for subject in model.erasing:
        first = subject * STUDIES_PER_SUBJECT
        theirs = [number for number in range(first, first + STUDIES_PER_SUBJECT) if model.allowed.get(number)]
        left = [number for number in theirs if observed.get(number) is not None]
        there_before = [number for number in theirs if model.allowed[number][0] is not None]
        if left and len(left) < len(there_before):
            wrong.append(f"subject {subject} was erased in part")
    back += _remains(corpus.path, model, observed)
    return {
        "lost": lost, "back": back, "wrong": wrong, "observed": observed, "under_way": under_way, "found_done": done,
        "unanswered": [],
    }  # fmt: skip


def _remains(path: Path, model: Model, observed: dict[int, int | None]) -> list[str]:
    """Return which erased subjects are in any file of the corpus."""
    gone = set(model.erased)
    for subject in model.erasing:
        first = subject * STUDIES_PER_SUBJECT
        if all(observed.get(number) is None for number in range(first, first + STUDIES_PER_SUBJECT)):
            gone.add(subject)
    contents = []
    for folder, _, names in os.walk(path):  # unlike rglob, it passes over folders that are deleted meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                contents.append((Path(folder) / name).read_bytes())
    content = b"\0".join(contents)
    return [f"subject {subject} is in the files" for subject in gone if canary(subject).encode() in content]


def _audit(corpus: Corpus, model: Model) -> list[str]:
    """Return the calls that were answered and are not in the trail; its seals are checked with all the rest."""
    with corpus._database.reading() as connection:
        entered = {one for (one,) in connection.execute("SELECT request_id FROM audit")}
    return [f"call {call} is not in the trail" for call in model.calls if call not in entered]


def _backups(place: Path, model: Model) -> list[str]:
    faults = []
    for name in model.backups:
        faults += [f"backup: {one}" for one in verify(place / "backups" / name).findings]
    shutil.rmtree(place / "backups", ignore_errors=True)
    return faults


def unpack_version_1(place: Path) -> None:
    """Put a corpus that an earlier release wrote into a place."""
    (place / "corpus").mkdir(parents=True)
    with tarfile.open(GOLDEN / "corpus.tar.gz") as archive:
        archive.extractall(place / "corpus", filter="data")


def check_migrated(place: Path, pipe: int, *, die_at: int = 0) -> None:
    """Open a corpus of version 1, and compare its studies with those of one that nothing happened to.

    Parameters
    ----------
    place : Path
    pipe : int
    die_at : int
        Die before so many SQL statements; 0 for never.
    """
    if die_at:
        _before_statement("", Trap(die_at))
        with Corpus(place / "corpus", reserve_bytes=0):
            _write(pipe, {})
            return
    untouched = place / "untouched"
    unpack_version_1(untouched)
    found: dict[str, Any] = {"failed": ""}
    try:
        content = []
        for path in (place / "corpus", untouched / "corpus"):
            with Corpus(path, reserve_bytes=0) as corpus:
                ids = corpus.list_studies(page_size=1000)[0]
                vectors = corpus.embeddings(corpus.rows(ids))
                content.append(
                    [[content_of(study) for study in corpus.get(ids)]]
                    + [{name: vector.tobytes() for name, vector in one.items()} for one in vectors]
                )
                found.setdefault("index", []).extend(index_faults(corpus))
                found.setdefault("unreadable", []).extend(verify(path).findings)
        if content[0] != content[1]:
            found["wrong"] = ["the migrated corpus is another one"]
    except MmecgError as error:
        found["failed"] = f"open: {type(error).__name__}: {error}"
    _write(pipe, found)


def _write(pipe: int, found: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(found, default=_plain).encode())
    os.close(pipe)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
