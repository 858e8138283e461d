"""Look-up trees that are damaged: nothing is left out of an answer, whatever the size of the file."""

from __future__ import annotations

import shutil
import sqlite3
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from mmecg_index.corpus import Corpus
from mmecg_index.reading import FILE
from mmecg_index.structure import StructureCheck, is_whole
from mmecg_index.verify import verify

from mmecg.errors import IndexFormatError, MmecgError, StudyNotFoundError, SubjectNotFoundError
from mmecg.study import Scope

COUNT = 240
SUBJECT = "patient-0040"


def hide_a_leaf(file: Path, tree: str) -> None:
    """Let the root page of a tree count one cell less, as one flipped bit does."""
    connection = sqlite3.connect(file)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (tree,)).fetchone()
    connection.close()
    content = bytearray(file.read_bytes())
    start = (page - 1) * 4096
    assert content[start] in (2, 5, 10)
    content[start + 4] -= 1
    file.write_bytes(content)


def ask(corpus: Corpus, question: Callable[[], object]) -> object:
    try:
        return question()
    except (StudyNotFoundError, SubjectNotFoundError) as error:
        return type(error)  # an answer, and a wrong one
    except IndexFormatError:
        return None


def answers(corpus: Corpus) -> dict[str, object]:
    ids = [f"study-{number:04d}-é" for number in range(COUNT)]
    subjects = [f"patient-{number:04d}" for number in range(COUNT // 3)]
    moment = datetime(2020, 3, 1)
    questions: dict[str, Callable[[], object]] = {
        "all": lambda: corpus.list_studies(page_size=1000)[0],
        "page": lambda: corpus.list_studies(page_size=100)[0],
        **{one: lambda one=one: corpus.list_studies(subject_id=one)[0] for one in subjects},
        **{f"earlier {one}": lambda one=one: corpus.earlier(one, moment, limit=9) for one in subjects},
        **{one: lambda one=one: corpus.get([one])[0].study_id for one in ids},
        **{f"row of {one}": lambda one=one: corpus.rows([one]).tolist() for one in ids},
    }
    found = {}
    for name, question in questions.items():
        corpus._database.is_damaged = False  # each on its own
        found[name] = ask(corpus, question)
    return found


@pytest.fixture(scope="module")
def expected(large: Path) -> dict[str, object]:
    with Corpus(large) as corpus:
        return answers(corpus)


@pytest.mark.parametrize("tree", ["studies", "studies_by_subject", "sqlite_autoindex_studies_1"])
def test_no_answer_leaves_out_what_a_damaged_tree_hides(
    large: Path, tmp_path: Path, expected: dict[str, object], tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(large, tmp_path / "corpus")
    monkeypatch.setattr("mmecg_index.database._CHECKED_BYTES", 0)  # as of a file that is too large for that
    monkeypatch.setattr(StructureCheck, "start", lambda _: None)  # before the check in the background has ended
    hide_a_leaf(path / FILE, tree)
    with Corpus(path) as corpus:
        found = answers(corpus)
        refused = {name for name, answer in found.items() if answer is None}
        assert refused
        assert {name for name in found if name not in refused and found[name] != expected[name]} == set()
        corpus._database.condemn()
        with pytest.raises(IndexFormatError):
            corpus.within(Scope(sites=frozenset({"north"}))).get(["study-0000-é"])


def test_a_text_that_is_no_text_any_more_is_damage_and_not_quoted(filled: Path, study: Callable) -> None:
    with Corpus(filled) as corpus:
        corpus._database.writer.execute(
            "UPDATE studies SET document = CAST(CAST(substr(document, 1, 60) AS BLOB) || x'ff' "
            "|| CAST(substr(document, 62) AS BLOB) AS TEXT) WHERE study_id = ?",
            (study(1).study_id,),
        )
        with pytest.raises(IndexFormatError, match="damaged") as caught:
            corpus.get([study(1).study_id])
        assert "Sinus" not in "".join(traceback.format_exception(caught.value))
        assert corpus.get([study(2).study_id])
    assert not verify(filled).ok


def test_a_large_file_is_checked_once_it_is_open(
    large: Path, tmp_path: Path, study: Callable, embedding: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(large, tmp_path / "corpus")
    hide_a_leaf(path / FILE, "studies_by_site")  # which no answer above comes from
    assert not is_whole(path / FILE)
    monkeypatch.setattr("mmecg_index.database._CHECKED_BYTES", 0)
    with Corpus(path) as corpus:
        end = time.monotonic() + 60
        while corpus.writable and time.monotonic() < end:
            time.sleep(0.05)
        for refused in (
            lambda: corpus.get(["study-0000-é"]),
            lambda: corpus.list_studies(),
            lambda: corpus.upsert([study(900)], [embedding(1)]),
        ):
            with pytest.raises(IndexFormatError, match="damaged"):
                refused()


def test_a_whole_file_stays_in_use_and_an_erasure_waits_for_no_check(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(large, tmp_path / "corpus")
    monkeypatch.setattr("mmecg_index.database._CHECKED_BYTES", 0)
    runs: list[object] = []
    from mmecg_index import structure

    original = structure.run_aside

    def counted(*args: object, **options: object) -> object:
        runs.append(original(*args, **options))  # type: ignore[arg-type]
        return runs[-1]

    monkeypatch.setattr(structure, "run_aside", counted)
    monkeypatch.setattr(structure, "_AGAIN_S", 0.05)
    with Corpus(path) as corpus:
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()
        end = time.monotonic() + 60
        while "ok" not in [str(one).strip() for one in runs] and time.monotonic() < end:
            time.sleep(0.05)
        assert str(runs[-1]).strip() == "ok"
        assert corpus.writable
    assert is_whole(path / FILE)


def test_a_write_between_answer_and_witness_is_no_damage(
    large: Path, tmp_path: Path, study: Callable, embedding: Callable
) -> None:
    """Readers beside a writer that stores and deletes all the time find no fault."""
    import threading

    path = shutil.copytree(large, tmp_path / "corpus")
    with Corpus(path, synchronous="normal") as corpus:
        stop = threading.Event()
        wrong: list[MmecgError] = []

        def read() -> None:
            while not stop.is_set():
                try:
                    corpus.list_studies(page_size=1000)
                    corpus.list_studies(subject_id="patient-0000")
                    corpus.get(["study-0900-é"])
                except StudyNotFoundError:
                    pass
                except MmecgError as error:
                    wrong.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for each in readers:
            each.start()
        for _ in range(60):
            corpus.upsert([study(900, subject_id="patient-0000", ecg=None)], [embedding(1)])
            corpus.delete("study-0900-é")
        stop.set()
        for each in readers:
            each.join()
        assert wrong == []
        assert corpus.writable
