"""Writes of many threads: together on the disk, each by itself in what it means, and clear when the disk fails."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus
from mmecg_index.database import next_sequence
from mmecg_index.writer import GROUP, Written

from mmecg.embedding import MODALITIES
from mmecg.errors import IndexFormatError, MmecgError, NotReadyError, OverloadedError, QueryError, StudyNotFoundError
from mmecg.study import Study

FINGERPRINT = "a" * 64


@pytest.fixture
def corpus(filled: Path) -> Iterator[Corpus]:
    with Corpus.open(filled, FINGERPRINT, reserve_bytes=0) as opened:
        yield opened


def on_disk(corpus: Corpus) -> dict[str, int]:
    """What another connection finds: only what was committed."""
    connection = sqlite3.connect(corpus.path / "corpus.sqlite")
    found = dict(connection.execute("SELECT study_id, sequence FROM studies"))
    connection.close()
    return found


def commits(corpus: Corpus) -> list[str]:
    """Every COMMIT from now on."""
    seen: list[str] = []
    corpus._database.writer.set_trace_callback(
        lambda statement: seen.append(statement) if statement == "COMMIT" else None
    )
    return seen


def held_back(corpus: Corpus, calls: list[Callable[[], object]]) -> list[object]:
    """Run calls in threads while writes are held back until all of them wait; return results and errors."""

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        with corpus._writer.exclusive():
            futures = [pool.submit(outcome, call) for call in calls]
            while len(corpus._writer._waiting) < len(calls):
                pass
        return [future.result(timeout=60) for future in futures]


def test_what_waits_is_committed_together(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    seen = commits(corpus)
    calls = [lambda i=i: corpus.upsert([study(100 + i)], [embedding(100 + i)]) for i in range(20)]
    numbers = held_back(corpus, calls)
    assert len(seen) == 1
    assert sorted(numbers) == list(range(2, 22))  # each write has its own number
    assert corpus.sequence == 21
    stored = on_disk(corpus)
    assert [stored[study(100 + i).study_id] for i in range(20)] == numbers
    for i in range(20):
        assert corpus.search(embedding(100 + i)["ecg"][None], 1).rows[0] == corpus.rows([study(100 + i).study_id])


def test_a_group_has_a_bound(corpus: Corpus) -> None:
    def operation(connection: sqlite3.Connection) -> Written:
        return Written(next_sequence(connection))

    seen = commits(corpus)
    held_back(corpus, [lambda: corpus._writer.write(operation)] * (GROUP + 44))
    assert len(seen) == 2


def test_one_that_fails_fails_alone(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    def broken(connection: sqlite3.Connection) -> Written:
        next_sequence(connection)
        connection.execute("DELETE FROM studies")
        connection.execute("INSERT INTO corpus VALUES (1)")
        raise AssertionError

    outcomes = held_back(
        corpus,
        [
            lambda: corpus.upsert([study(100)], [embedding(1)]),
            lambda: corpus.delete("nobody"),
            lambda: corpus._writer.write(broken),
            lambda: corpus._writer.write(lambda connection: 1 / 0),
            lambda: corpus.delete(study(3).study_id),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [
        int, StudyNotFoundError, sqlite3.OperationalError, ZeroDivisionError, int
    ]  # fmt: skip
    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == [2, 3]
    assert corpus.sequence == 3
    stored = on_disk(corpus)
    assert len(stored) == 30
    assert study(100).study_id in stored
    assert study(3).study_id not in stored
    assert corpus.stats().studies == 30


def test_writes_wait_for_who_needs_the_corpus_alone(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    written = threading.Event()

    def write() -> None:
        corpus.upsert([study(100)], [embedding(1)])
        written.set()

    thread = threading.Thread(target=write)
    with corpus._writer.exclusive():
        thread.start()
        assert not written.wait(0.3)
    thread.join(timeout=60)
    assert written.is_set()


def test_an_interrupted_leader_leaves_nobody_waiting(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    def interrupted(connection: sqlite3.Connection) -> Written:
        raise KeyboardInterrupt

    def leader() -> object:
        try:
            return corpus._writer.write(interrupted)
        except KeyboardInterrupt as error:
            return error

    outcomes = held_back(corpus, [leader, lambda: corpus.upsert([study(100)], [embedding(1)])])
    assert isinstance(outcomes[0], KeyboardInterrupt | OverloadedError)
    assert isinstance(outcomes[1], KeyboardInterrupt | OverloadedError)
    assert study(100).study_id not in on_disk(corpus)
    corpus.upsert([study(100)], [embedding(1)])
    assert study(100).study_id in on_disk(corpus)


def test_too_little_room_refuses_what_grows_only(filled: Path, study: Callable, embedding: Callable) -> None:
    with Corpus.open(filled, FINGERPRINT, reserve_bytes=2**62) as corpus:
        with pytest.raises(OverloadedError, match=r"MiB free \(storage.reserve_bytes\).*make room") as caught:
            corpus.upsert([study(100)], [embedding(1)])
        assert str(filled) not in str(caught.value)
        assert corpus.writable
        corpus.delete(study(1).study_id)
        assert len(corpus.list_studies()[0]) == 29


def test_a_full_disk_is_told_and_passes(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    writer = corpus._database.writer
    before = on_disk(corpus)
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0]}")
    many = range(100, 140)
    with pytest.raises(OverloadedError, match="disk of the corpus is full; make room"):
        corpus.upsert([study(i) for i in many], [embedding(i) for i in many])
    assert on_disk(corpus) == before
    assert corpus.writable
    writer.execute("PRAGMA max_page_count = 1000000")
    corpus.upsert([study(i) for i in many], [embedding(i) for i in many])
    assert len(on_disk(corpus)) == len(before) + len(many)


_FAILING_DISK = """
import resource, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import FINGERPRINT, make_embedding, make_study
from mmecg_index.corpus import Corpus
from mmecg.errors import NotReadyError

corpus = Corpus.open(Path(sys.argv[1]), FINGERPRINT, reserve_bytes=0)
corpus.upsert([make_study(100)], [make_embedding(100)])
log = Path(sys.argv[1], "corpus.sqlite-wal").stat().st_size
# From here on every write of a file beyond its present length fails, as on a disk with a broken part.
resource.setrlimit(resource.RLIMIT_FSIZE, (log + int(sys.argv[3]), resource.RLIM_INFINITY))
outcomes = []
def write(number):
    try:
        corpus.upsert([make_study(number)], [make_embedding(number)])
        outcomes.append("stored")
    except NotReadyError as error:
        assert "its disk failed (SQLITE_IOERR" in str(error), error
        assert "open the corpus again" in str(error), error
        outcomes.append("refused")
threads = [threading.Thread(target=write, args=(number,)) for number in range(200, 232)]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
assert len(outcomes) == 32 and "refused" in outcomes, outcomes
assert not corpus.writable
# Reads go on, and answer with what was acknowledged.
print(corpus.get([make_study(100).study_id])[0].site, len(corpus.list_studies()[0]) - 31, outcomes.count("stored"))
assert corpus.search(make_embedding(100)["ecg"][None], 1).rows[0] == corpus.rows([make_study(100).study_id])
try:
    corpus.delete(make_study(1).study_id)
except NotReadyError:
    print("read-only")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not corpus.writable  # until it is opened again
corpus.close()
with Corpus.open(Path(sys.argv[1]), FINGERPRINT) as again:
    assert again.writable
    found = set(again.list_studies()[0])
    assert make_study(100).study_id in found
    assert len(found) >= 31 + outcomes.count("stored"), (len(found), outcomes)
    again.delete(make_study(1).study_id)
print("opened again")
"""


@pytest.mark.parametrize("room", [0, 30_000])
def test_a_disk_that_fails_makes_the_corpus_read_only(filled: Path, room: int) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the length of files is limited here already")
    command = [sys.executable, "-c", _FAILING_DISK, str(filled), str(Path(__file__).parent), str(room)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    _, read, stored = first.rsplit(maxsplit=2)
    assert read == stored
    assert rest == ["read-only", "opened again"]


def test_a_file_that_is_read_only_is_told(filled: Path, study: Callable, embedding: Callable) -> None:
    with Corpus.open(filled, FINGERPRINT) as corpus:
        corpus._database.writer.execute("PRAGMA query_only = ON")
        with pytest.raises(NotReadyError, match="SQLITE_READONLY"):
            corpus.upsert([study(100)], [embedding(1)])
        assert not corpus.writable
        assert corpus.get([study(1).study_id])
    with Corpus.open(filled, FINGERPRINT) as again:
        again.upsert([study(100)], [embedding(1)])


def test_damage_met_while_writing_makes_the_corpus_read_only(
    filled: Path, study: Callable, embedding: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = filled / "corpus.sqlite"
    connection = sqlite3.connect(file)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'studies_by_subject'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with file.open("r+b") as opened:
        opened.seek((page - 1) * size)
        opened.write(b"\xff" * 64)
    with pytest.raises(IndexFormatError, match="damaged"):
        Corpus.open(filled, FINGERPRINT)
    monkeypatch.setattr("mmecg_index.database._CHECKED_BYTES", 0)  # as of a file that is too large for that
    monkeypatch.setattr("mmecg_index.structure.StructureCheck.start", lambda _: None)  # before that check has ended
    with Corpus.open(filled, FINGERPRINT) as corpus:
        with pytest.raises(NotReadyError, match="SQLITE_CORRUPT"):
            corpus.upsert([study(100)], [embedding(1)])
        assert not corpus.writable
        with pytest.raises(IndexFormatError, match="damaged"):
            corpus.list_studies(subject_id=study(1).subject_id)


def test_indexes_that_cannot_follow_stop_the_writes(
    corpus: Corpus, study: Callable, embedding: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    corpus.compact()
    monkeypatch.setattr(corpus._caches["vitals"].index, "upsert", fail)
    before = corpus.sequence
    with pytest.raises(NotReadyError, match="the indexes could not follow"):
        corpus.upsert([study(0, site="elsewhere")], [embedding(999)])
    assert (corpus.sequence, corpus.writable) == (before, False)
    corpus.close()  # and saves no index that lacks a write
    with Corpus.open(corpus.path, FINGERPRINT) as again:
        assert again.sequence == before + 1
        for target in MODALITIES:
            assert again.search(embedding(999)[target][None], 1, target=target).rows[0] == again.rows(
                [study(0).study_id]
            )


def test_the_log_is_moved_into_the_file(corpus: Corpus, study: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmecg_index.database._LOG_BYTES", 200_000)
    corpus._database.writer.execute("PRAGMA journal_size_limit = 200000")
    log = corpus.path / "corpus.sqlite-wal"
    sizes = []
    for i in range(100, 400, 10):
        corpus.upsert([study(j) for j in range(i, i + 10)], [{}] * 10)
        sizes.append(log.stat().st_size)
    assert max(sizes) < 600_000
    corpus.close()
    assert not log.exists() or log.stat().st_size == 0


def test_many_threads_against_a_plain_dict(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    """Each thread has studies of its own, so that it knows what must be there; all of them share the corpus."""
    errors: list[BaseException] = []
    models: list[dict[str, tuple[Study, int]]] = [{} for _ in range(8)]

    def run(thread: int) -> None:
        random = np.random.default_rng(thread)
        model = models[thread]
        try:
            for step in range(25):
                number = 1000 * (thread + 1) + int(random.integers(6))
                name = study(number).study_id
                if random.random() < 0.3:
                    if name in model:
                        assert corpus.delete(name) > 0
                        del model[name]
                        assert corpus.study_ids(corpus.search(embedding(number)["ecg"][None], 1).rows[0]) != [name]
                    else:
                        with pytest.raises(StudyNotFoundError):
                            corpus.delete(name)
                else:
                    changed = study(number, site=f"site {step % 2}", ecg=None)
                    (sequence,) = corpus.store([changed], [embedding(number)])
                    assert corpus.sequence >= sequence
                    assert on_disk(corpus)[name] == sequence
                    model[name] = changed, sequence
                    found = corpus.search(embedding(number)["text"][None], 1, target="text")
                    assert corpus.study_ids(found.rows[0]) == [name]
                    assert found.scores[0, 0] == pytest.approx(1, abs=1e-5)
                with pytest.raises(QueryError):
                    corpus.store([study(number)], [{"ecg": np.zeros(3, np.float32)}])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors, errors
    model = {name: kept for one in models for name, kept in one.items()}
    stored = on_disk(corpus)
    mine = {name: number for name, number in stored.items() if name in model}
    assert mine == {name: sequence for name, (_, sequence) in model.items()}
    assert len(stored) == 30 + len(model)
    assert [each.site for each in corpus.get(list(model))] == [kept.site for kept, _ in model.values()]
    assert corpus.stats().embeddings == dict.fromkeys(MODALITIES, len(stored))
    path = corpus.path
    corpus.close()
    with Corpus.open(path, FINGERPRINT) as again:
        assert set(again.list_studies(page_size=1000)[0]) == stored.keys()
        assert again.stats().embeddings == dict.fromkeys(MODALITIES, len(stored))


def test_writes_to_a_closed_corpus_say_so(corpus: Corpus, study: Callable, embedding: Callable) -> None:
    corpus.close()
    for call in (
        lambda: corpus.upsert([study(1)], [embedding(1)]),
        lambda: corpus.delete("x"),
        lambda: corpus._writer.checkpoint(),
    ):
        with pytest.raises(MmecgError, match="closed; open it again"):
            call()


_WRITE_UNTIL_KILLED = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import FINGERPRINT, make_embedding, make_study
from mmecg_index.corpus import Corpus

corpus = Corpus.open(Path(sys.argv[1]), FINGERPRINT, reserve_bytes=0)
lock = threading.Lock()
def write(thread):
    for number in range(1000 * thread, 1000 * thread + 999):
        study = make_study(number, ecg=None, report=None)
        corpus.upsert([study], [make_embedding(number)])
        if number % 3 == 2:
            corpus.delete(study.study_id)
        with lock:
            print(number, flush=True)
for thread in range(1, 9):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("acknowledged", [3, 90])
def test_a_kill_amid_many_threads_loses_nothing_acknowledged(
    filled: Path, acknowledged: int, study: Callable, embedding: Callable
) -> None:
    command = [sys.executable, "-c", _WRITE_UNTIL_KILLED, str(filled), str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(acknowledged)]
        process.kill()
        told += [int(line) for line in process.stdout.read().splitlines()]
    with Corpus.open(filled, FINGERPRINT) as corpus:
        stored = set(corpus.list_studies(page_size=1000)[0])
        for number in told:
            assert (study(number).study_id in stored) == (number % 3 != 2), number
        kept = [number for number in told if number % 3 != 2]
        rows = corpus.rows([study(number).study_id for number in kept])
        found = corpus.search(np.stack([embedding(number)["ecg"] for number in kept]), 1)
        np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
        assert found.rows[:, 0].tolist() == rows.tolist()
        assert corpus.stats().embeddings == dict.fromkeys(MODALITIES, len(stored))


def test_a_table_that_could_not_follow_a_deletion_is_no_witness_of_damage(
    corpus: Corpus, study: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(corpus._caches["ecg"].index, "remove", fail)
    gone = study(0)
    with pytest.raises(NotReadyError, match="the indexes could not follow"):
        corpus.delete(gone.study_id)
    with pytest.raises(StudyNotFoundError):
        corpus.get([gone.study_id])
    assert gone.study_id not in corpus.list_studies(page_size=1000)[0]
    assert corpus.get([study(1).study_id])
    assert corpus.readable
