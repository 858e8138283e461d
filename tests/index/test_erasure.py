from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmecg_index import audit
from mmecg_index.backup import back_up, restore
from mmecg_index.corpus import Corpus
from mmecg_index.erasure import find_remains
from mmecg_index.leftovers import count_leftovers
from mmecg_index.reading import FILE, reading
from mmecg_index.runs import RUN, Runs, search_files
from mmecg_index.traces import wanted_of
from mmecg_index.verify import verify

from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import IndexFormatError, NotReadyError, QueryError, SubjectNotFoundError
from mmecg.search import Filter

DIM = 8
FINGERPRINT = "a" * 64
SUBJECT = "patient-0004"
STUDIES = [f"study-{i:04d}-é" for i in (12, 13, 14)]
Content = Callable[[Path], dict]


def remains(corpus: Path, original: Path) -> list:
    """Look for what an untouched copy of the corpus says of the subject."""
    return find_remains(corpus, [SUBJECT], known_from=original)


def test_the_search_for_traces_finds_what_is_there(filled: Path) -> None:
    """Or the other tests would prove nothing."""
    with reading(filled) as view:
        wanted = wanted_of(view.connection, [SUBJECT])
    found = search_files(filled, wanted.ids, wanted.contents)
    assert {file for _, file, _ in found["runs"]} >= {FILE, "index/ecg-000000000000001/tail_vectors.npy"}
    assert {name for name, *_ in found["ids"]} == {SUBJECT, *STUDIES}


def test_any_run_is_found_wherever_it_lies() -> None:
    drawn = np.random.default_rng(0)
    value = drawn.bytes(100)
    runs = Runs([value, b"short"])
    assert len(runs) == 100 - RUN + 1
    for at in range(40):
        start = int(drawn.integers(100 - RUN))
        data = np.frombuffer(bytes(at) + value[start : start + RUN] + drawn.bytes(30), np.uint8)
        assert (value[start : start + RUN], at) in list(runs.find(data))
        almost = data.copy()
        almost[at + int(drawn.integers(RUN))] ^= 1
        assert (value[start : start + RUN], at) not in list(runs.find(almost))


def test_nothing_of_an_erased_subject_is_left(filled: Path, template: Path, study) -> None:
    with Corpus(filled) as corpus:
        erased = corpus.erase_subject(SUBJECT, check=True)
        assert (erased.studies, erased.sequence, erased.traces) == (3, 2, ())
        with pytest.raises(SubjectNotFoundError):
            corpus.list_studies(subject_id=SUBJECT)
        assert corpus.stats().studies == 27
        assert corpus.count(Filter(subject_ids=frozenset({SUBJECT}))) == 0
        found = corpus.search(normalise(np.ones((1, DIM), np.float32)), 30)
        assert (found.rows >= 0).sum() == 27
        assert remains(filled, template) == [], "while the corpus is open"
    assert remains(filled, template) == []
    assert verify(filled).findings == ()
    with Corpus(filled) as corpus:
        assert corpus.stats().studies == 27


def test_without_the_erasure_the_traces_are_there(filled: Path, template: Path) -> None:
    """A deletion study by study leaves the log and the snapshots; the check must say so."""
    with Corpus(filled) as corpus:
        for study_id in STUDIES:
            corpus.delete(study_id)
        kinds = {(trace.file.split("/")[0], trace.kind) for trace in remains(filled, template)}
        assert ("index", "content") in kinds
        assert (f"{FILE}-wal", "id") in kinds or (FILE, "id") in kinds
        corpus.erase_subject(SUBJECT)  # of whom nothing is there but traces
        assert remains(filled, template) == []


def test_approximate_segments_are_built_anew(tmp_path: Path, study, embedding) -> None:
    path = tmp_path / "corpus"
    ids = list(range(300))
    with Corpus.create(path, FINGERPRINT, dim=DIM, factory="HNSW8") as corpus:
        corpus.upsert([study(i, ecg=None) for i in ids], [embedding(i) for i in ids])
        corpus.compact()
        corpus.upsert(
            [study(12, ecg=None, device="other")], [embedding(5000)]
        )  # an earlier vector, dead in the segment
        before = corpus._caches["ecg"].index.state.segment
        assert before.ann is not None
        with reading(path) as view:
            wanted = wanted_of(view.connection, [SUBJECT])
        contents = (*wanted.contents, *(vector.tobytes() for vector in embedding(12).values()))
        erased = corpus.erase_subject(SUBJECT, check=True)
        assert (erased.studies, erased.traces) == (3, ())
        for cache in corpus._caches.values():
            segment = cache.index.state.segment
            assert segment.ann is not None
            assert segment.count == len(segment) == 297
    found = search_files(path / "index", (), contents)["runs"]  # but sentences, which others' reports have, too
    assert [file for _, file, _ in found if not file.startswith("metadata-")] == []


def test_too_few_vectors_for_the_index_that_was_asked_for(tmp_path: Path, study, embedding) -> None:
    path = tmp_path / "corpus"
    with Corpus.create(path, FINGERPRINT, dim=DIM, factory="IVF1,Flat") as corpus:
        ids = range(40)
        corpus.upsert([study(i, ecg=None) for i in ids], [embedding(i) for i in ids])
        corpus.compact()
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()
        assert corpus.stats().embeddings == dict.fromkeys(MODALITIES, 37)
        assert corpus.search(normalise(np.ones((1, DIM), np.float32)), 3).plan.exact


def test_erasing_again_and_erasing_nobody(filled: Path) -> None:
    with Corpus(filled) as corpus:
        assert corpus.erase_subject(SUBJECT).studies == 3
        assert corpus.erase_subject(SUBJECT, check=True).studies == 0
        assert corpus.erase_subject("nobody", check=True).traces == ()
        assert corpus.stats().studies == 27
        assert corpus.eraser.erase(["patient-0001", "patient-0002"]).studies == 6
        for wrong in ([], "patient-0003", [""]):
            with pytest.raises((QueryError, ValueError)):
                corpus.eraser.erase(wrong)


def test_a_subject_who_comes_back_is_stored_again(filled: Path, study, embedding) -> None:
    with Corpus(filled) as corpus:
        corpus.erase_subject(SUBJECT)
        corpus.upsert([study(12)], [embedding(12)])
        assert corpus.list_studies(subject_id=SUBJECT)[0] == [STUDIES[0]]
    with pytest.raises(QueryError, match="erase them first"):
        find_remains(filled, [SUBJECT])


def test_what_others_have_as_well_is_no_trace(filled: Path, study, embedding) -> None:
    sentence = "Sinus rhythm. Left axis deviation. No change since the last recording."
    with Corpus(filled) as corpus:
        for number, subject in ((100, SUBJECT), (101, "somebody")):
            corpus.upsert([study(number, subject_id=subject, attributes={"text": sentence}, ecg=None)], [embedding(7)])
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()
        assert corpus.get(["study-0101-é"])[0].attributes == {"text": sentence}


def test_an_erasure_is_in_the_trail_without_a_name(filled: Path) -> None:
    with Corpus(filled) as corpus:
        assert corpus.erase_subject(SUBJECT, principal="officer", check=True).traces == ()
    with reading(filled) as view:
        (entry,) = audit.select(view.connection, view.secret, subject_id=SUBJECT)
        assert (entry.principal, entry.method, entry.items) == ("officer", "corpus.erase_subject", 3)
        assert {each.subject_id for each in entry.touched} == {""}


def test_searches_and_writes_go_on(filled: Path, study, embedding) -> None:
    slowest, stop, failed = [0.0], threading.Event(), []
    with Corpus(filled) as corpus:

        def search() -> None:
            query = normalise(np.ones((1, DIM), np.float32))
            while not stop.is_set():
                start = time.monotonic()
                try:
                    corpus.search(query, 5)
                except Exception as error:
                    failed.append(error)
                slowest[0] = max(slowest[0], time.monotonic() - start)

        def write() -> None:
            for number in range(200, 230):
                corpus.upsert([study(number, ecg=None)], [embedding(number)])

        threads = [threading.Thread(target=search), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        for number in range(5):
            assert corpus.erase_subject(f"patient-{number:04d}", check=True).traces == ()
        threads[1].join()
        stop.set()
        threads[0].join()
        assert failed == []
        assert corpus.stats().studies == 30 - 15 + 30
    assert slowest[0] < 2  # on a busy machine; a rebuild under a lock would show
    assert verify(filled).findings == ()


def test_a_long_reader_delays_the_files_not_the_answers(filled: Path, template: Path, monkeypatch) -> None:
    monkeypatch.setattr("mmecg_index.erasure._EMPTY_LOG_S", 0.5)
    with Corpus(filled) as corpus:
        with reading(filled) as view:
            assert view.count("studies") == 30
            with pytest.raises(NotReadyError, match="out of all answers"):
                corpus.erase_subject(SUBJECT)
            assert corpus.stats().studies == 27
        assert remains(filled, template) != []
    with Corpus(filled):  # finished when it is opened
        assert remains(filled, template) == []


ERASE_AND_DIE = """
import os, sys, threading, time
from pathlib import Path
from mmecg_index.corpus import Corpus
corpus = Corpus(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
corpus.erase_subject(sys.argv[2])
print("done", flush=True)
os._exit(9)
"""


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 6, 10, 15, 25, 1000])
def test_killed_erasure_is_done_or_not_begun(filled: Path, template: Path, delay_ms: int) -> None:
    command = [sys.executable, "-c", ERASE_AND_DIE, str(filled), SUBJECT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(delay_ms / 1000)
        process.kill()
        acknowledged = b"done" in process.stdout.read()
    with Corpus(filled) as corpus:
        left = corpus.stats().studies
        assert left in ((27,) if acknowledged else (27, 30))
        if left == 27:
            assert remains(filled, template) == []
    assert verify(filled).findings == ()


@pytest.mark.parametrize("point", ["purge", "save_purged", "_empty_log", "_mark_done"])
def test_an_erasure_that_fails_at_any_point_is_finished_at_the_next_start(
    filled: Path, template: Path, point: str, monkeypatch
) -> None:
    from mmecg_index import cache, erasure

    owner = {"purge": cache.IndexCache, "save_purged": cache.IndexCache, "_empty_log": erasure.Eraser}.get(
        point, erasure
    )

    def fail(*_: object) -> None:
        raise NotReadyError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(owner, point, fail)
        corpus = Corpus(filled)
        with pytest.raises(NotReadyError, match="stopped here"):
            corpus.erase_subject(SUBJECT)
        corpus.close()
    with Corpus(filled):
        assert remains(filled, template) == []


def test_what_a_crash_left_of_a_snapshot_goes(filled: Path, template: Path) -> None:
    snapshot = next((filled / "index").glob("ecg-*"))
    shutil.copytree(snapshot, snapshot.with_name(f".{snapshot.name}.tmp-1"))
    with Corpus(filled):
        assert not list((filled / "index").glob(".*"))


def test_whatever_else_lies_beside_the_indexes_goes(filled: Path, template: Path) -> None:
    (filled / "index" / "other-000000000000001").mkdir()
    (filled / "index" / "other-000000000000001" / "table").write_text(f"the text of {SUBJECT}")
    with Corpus(filled) as corpus:
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()


def test_what_sqlite_has_left_of_a_row_that_it_moved_goes_too(tmp_path: Path, filled: Path) -> None:
    """Its pages keep copies in their unused part, and an earlier release did not overwrite what it deleted."""
    connection = sqlite3.connect(filled / FILE, isolation_level=None)
    connection.execute("PRAGMA secure_delete = OFF")
    secret_text = "A sentence that was deleted and not overwritten."
    connection.execute("INSERT INTO settings VALUES ('x', ?)", (secret_text * 3,))
    connection.execute("DELETE FROM settings WHERE name IN ('x', 'overwritten')")
    connection.close()
    assert secret_text.encode() in (filled / FILE).read_bytes()
    with Corpus(filled) as corpus:
        corpus.erase_subject(SUBJECT)
    assert secret_text.encode() not in (filled / FILE).read_bytes()


def leave_behind(file: Path, table: str, text: bytes) -> None:
    """Put a copy of something into the unused part of a leaf of a table, as SQLite does when it moves a row."""
    connection = sqlite3.connect(file)
    query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' AND unused > 200 LIMIT 1"
    (page,) = connection.execute(query, (table,)).fetchone()
    connection.close()
    content = bytearray(file.read_bytes())
    start = (page - 1) * 4096
    end = start + int.from_bytes(content[start + 5 : start + 7], "big")
    assert not any(content[end - len(text) - 8 : end])
    content[end - len(text) - 4 : end - 4] = text
    file.write_bytes(content)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What erasures write anew; every corpus is as one that is too large to be written anew each time."""
    from mmecg_index.writer import Writer

    found: list[str] = []
    original = Writer.rebuild

    def rebuild(self: Writer, statement: str) -> None:
        found.append(statement.split()[0])
        original(self, statement)

    monkeypatch.setattr(Writer, "rebuild", rebuild)
    monkeypatch.setattr("mmecg_index.erasure._SMALL_BYTES", 0)
    return found


def test_a_large_database_is_not_written_anew_for_nothing(filled: Path, template: Path, statements: list[str]) -> None:
    with Corpus(filled) as corpus:
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()
    assert remains(filled, template) == []
    assert statements == ["REINDEX", "REINDEX"]
    assert verify(filled).findings == ()


@pytest.mark.parametrize("table", ["studies", "embeddings"])
def test_a_large_database_is_written_anew_if_a_page_holds_a_copy(
    filled: Path, table: str, statements: list[str]
) -> None:
    secret_text = b"A sentence of a report that was replaced."
    leave_behind(filled / FILE, table, secret_text)
    assert verify(filled).findings == ()  # nothing that SQLite reads
    assert count_leftovers(filled / FILE) == 1
    with Corpus(filled) as corpus:
        corpus.erase_subject(SUBJECT)
        assert statements == ["REINDEX", "REINDEX", "VACUUM"]
        corpus.erase_subject("patient-0001")
        assert statements == ["REINDEX", "REINDEX", "VACUUM", "REINDEX", "REINDEX"]
    assert secret_text not in (filled / FILE).read_bytes()


def test_copies_in_look_up_trees_go(filled: Path, statements: list[str]) -> None:
    connection = sqlite3.connect(filled / FILE)
    connection.execute("DELETE FROM studies WHERE row > 25")  # so that there is room
    connection.commit()
    connection.close()
    leave_behind(filled / FILE, "studies_by_subject", b"patient-0004study-00")
    with Corpus(filled) as corpus:
        corpus.erase_subject(SUBJECT)
    assert statements == ["REINDEX", "REINDEX"]
    assert b"patient-0004study-00" not in (filled / FILE).read_bytes()


def test_what_is_left_of_lists_of_cells_is_no_leftover(large: Path, tmp_path: Path) -> None:
    """Pages of tables that rows came to and went from hold numbers in their unused part, and no content."""
    path = shutil.copytree(large, tmp_path / "corpus")
    with Corpus(path) as corpus:
        for number in range(0, 240, 2):
            corpus.delete(f"study-{number:04d}-é")
        assert corpus.erase_subject("patient-0077", check=True).traces == ()
    assert count_leftovers(path / FILE) == 0


@pytest.mark.parametrize("when", ["open", "erase"])
def test_a_file_that_cannot_be_deleted_is_told_of(filled: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = filled / "index" / "other-000000000000001"
    other.mkdir()

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "not yours", str(other))

    corpus = Corpus(filled)
    with monkeypatch.context() as patched:
        patched.setattr("mmecg_index.erasure.Eraser._sweep", fail)
        with pytest.raises(NotReadyError, match="check the disk and who may write") as caught:
            corpus.erase_subject(SUBJECT)
        assert str(other) not in str(caught.value)
        corpus.close()
        if when == "open":
            Corpus(filled).close()  # opens, and says in the log that an erasure is not finished
    with Corpus(filled) as corpus:
        assert corpus.erase_subject(SUBJECT, check=True).traces == ()
    assert not other.exists()


def test_erasures_after_a_backup_are_applied_to_what_is_restored(
    filled: Path, template: Path, tmp_path: Path, study, embedding
) -> None:
    with Corpus(filled) as corpus:
        corpus.erase_subject("patient-0001")  # before the backup, and back again
        corpus.upsert([study(3)], [embedding(3)])
        back_up(filled, tmp_path / "backup")
        corpus.erase_subject(SUBJECT)
        corpus.erase_subject("nobody")
    restore(tmp_path / "backup", tmp_path / "restored")
    with Corpus(tmp_path / "restored") as corpus:
        assert corpus.eraser.apply(filled) == 3
        assert corpus.list_studies(subject_id="patient-0001")[0] == ["study-0003-é"]
        assert corpus.eraser.apply(filled) == 0
    assert remains(tmp_path / "restored", template) == []
    back_up(tmp_path / "restored", tmp_path / "second")
    with Corpus.create(tmp_path / "other", FINGERPRINT, dim=DIM) as other, pytest.raises(IndexFormatError, match="key"):
        other.eraser.apply(filled)


def test_random_lives_leave_nothing(tmp_path: Path, study, embedding) -> None:
    """Studies come, change, move between subjects and go; what is erased leaves no byte, also of earlier versions."""
    drawn = random.Random(int(os.environ.get("MMECG_SEED", "1")))
    path = tmp_path / "corpus"
    kept: dict[str, list[bytes]] = {}
    with Corpus.create(path, FINGERPRINT, dim=DIM) as corpus:
        for step in range(60):
            subject = f"subject-{drawn.randrange(6):04d}"
            if drawn.random() < 0.85:
                secret = f"Marker{drawn.getrandbits(80):020x} " * drawn.choice([1, 3, 40, 200])
                one = study(drawn.randrange(40), subject_id=subject, attributes={"text": secret}, ecg=None)
                corpus.upsert([one], [embedding(step)])
                kept.setdefault(subject, []).append(secret.split()[0].encode())
            else:
                erased = corpus.erase_subject(subject, check=True)
                assert erased.traces == ()
                gone = kept.pop(subject, [])
                data = b"".join(file.read_bytes() for file in path.glob("corpus.sqlite*"))
                assert [marker for marker in gone if marker in data] == []
    assert verify(path).findings == ()
