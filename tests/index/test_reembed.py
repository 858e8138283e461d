"""A corpus gets the embeddings of another bundle while it is used, and is switched at once.

As a program (`test_reembed.py FOLDER FIRST EVERY`), it kills itself at every so many statements of a re-embedding.
"""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.backup import back_up, restore
from mmecg_index.corpus import Corpus
from mmecg_index.progress import CancelledError, abandon, forget_outgrown, read_progress
from mmecg_index.reading import reading
from mmecg_index.reembed import Reembedding
from mmecg_index.verify import verify

from mmecg.ecg import LEADS, Ecg
from mmecg.embedding import EMBEDDING_DIM, MODALITIES, normalise
from mmecg.errors import FingerprintMismatchError, IndexFormatError, ModelChangedError, SignalError
from mmecg.ingester import embed_studies
from mmecg.report import Report
from mmecg.retriever import Query, Retriever
from mmecg.search import Scope
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

COUNT = 40


class SmallEncoder:
    """A space of its own: random projections of crude features, drawn from the fingerprint."""

    def __init__(self, letter: str, *, refuses: str = "") -> None:
        self.fingerprint = letter * 64
        self.studies = 0
        self._refuses = refuses
        self._matrix = np.random.default_rng(ord(letter)).standard_normal((64, EMBEDDING_DIM)).astype(np.float32)

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        self.studies += len(ecgs)
        if self._refuses == "ecg" and any(ecg.signal[0, 0] > 0.6 for ecg in ecgs):
            raise SignalError("signal is too loud")
        return np.concatenate([self._project(ecg.signal.ravel()[::40]) for ecg in ecgs])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._project(_bag(text)) for text in texts])

    def encode_vitals(self, vitals: Sequence[Vitals]) -> np.ndarray:
        return np.concatenate([self._project(np.nan_to_num(item.to_array())) for item in vitals])

    def ecg_features(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return self.encode_ecg(ecgs)

    def _project(self, features: np.ndarray) -> np.ndarray:
        padded = np.zeros(64, np.float32)
        padded[: len(features[:64])] = features[:64]
        return normalise((padded @ self._matrix)[None] + np.float32(0.01))


def _bag(text: str) -> np.ndarray:
    bag = np.zeros(64, np.float32)
    for word in text.lower().split():
        bag[zlib.crc32(word.encode()) % 64] += 1
    return bag


OLD, NEW = SmallEncoder("a"), SmallEncoder("b")


def make_study(number: int, text: str = "sinus rhythm") -> Study:
    acquired = datetime(2020, 1, 1) + timedelta(days=number)
    counts = np.random.default_rng(number).integers(-900, 900, (12, 200)) / 1000
    return Study(
        study_id=f"study-{number:03d}",
        subject_id=f"subject-{number // 4:03d}",
        acquired_at=acquired,
        ecg=None if number % 7 == 6 else Ecg.from_array(counts, sampling_rate_hz=100, leads=LEADS),
        report=None if number % 5 == 4 else Report.from_text(f"{text}, case number{number} seen"),
        notes=(ClinicalNote(f"discharged{number}", "discharge", acquired + timedelta(days=2)),),
        vitals=Vitals(age_years=20 + number % 60, heart_rate_bpm=50 + number),
        site="north" if number % 2 else "south",
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "corpus"
    with Corpus.create(path, OLD.fingerprint) as corpus:
        Retriever(OLD, corpus).ingest(make_study(number) for number in range(COUNT))
    return path


@pytest.fixture
def path(template, tmp_path):
    return shutil.copytree(template, tmp_path / "corpus")


def check_complete(corpus: Corpus, expected: dict[str, Study], *, later_notes: frozenset[str] = frozenset()) -> None:
    """Every study has exactly the embeddings of the corpus's bundle, in the store and in the indexes."""
    encoder = {each.fingerprint: each for each in (OLD, NEW)}[corpus.fingerprint]
    assert sorted(corpus.list_studies(page_size=1000)[0]) == sorted(expected)
    for study_id, study in expected.items():
        row = corpus.rows([study_id])
        (wanted,) = embed_studies(encoder, [study], [study_id in later_notes])
        (stored,) = corpus.embeddings(row)
        assert stored.keys() == wanted.keys()
        for modality, vector in wanted.items():
            np.testing.assert_array_equal(stored[modality], vector)
            found = corpus.search(vector[None], len(expected), target=modality)
            assert found.scores[0][found.rows[0].tolist().index(row[0])] == pytest.approx(1, abs=1e-5)
    counts = {name: sum(name in corpus.embeddings(corpus.rows([one]))[0] for one in expected) for name in MODALITIES}
    assert corpus.stats().embeddings == counts


def originals() -> dict[str, Study]:
    return {study.study_id: study for study in map(make_study, range(COUNT))}


def stored_spaces(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path / "corpus.sqlite")) as connection:
        return dict(connection.execute("SELECT fingerprint, count(*) FROM embeddings GROUP BY 1").fetchall())


def test_the_corpus_is_switched_and_nothing_of_the_old_space_is_left(path):
    with Corpus.open(path, OLD.fingerprint) as corpus:
        before = corpus.sequence
        work = Reembedding(corpus, NEW, rest=0)
        work.run()
        assert corpus.fingerprint == NEW.fingerprint
        assert corpus.sequence == before + 1
        assert (work.state.done, work.state.studies, work.state.total, work.state.error) == (True, COUNT, COUNT, "")
        assert work.pause_s < 1
        check_complete(corpus, originals())
        assert read_progress(corpus._database.writer) is None
        assert verify(path).findings == ()
        Retriever(NEW, corpus).ingest([make_study(COUNT)])
    assert stored_spaces(path).keys() == {NEW.fingerprint}
    assert len(list((path / "index").iterdir())) == 4
    with Corpus.open(path, NEW.fingerprint) as corpus:
        check_complete(corpus, originals() | {f"study-{COUNT:03d}": make_study(COUNT)})
    with pytest.raises(FingerprintMismatchError):
        Corpus.open(path, OLD.fingerprint)


def test_what_is_written_meanwhile_is_there_afterwards(path):
    expected = originals()
    with Corpus.open(path, OLD.fingerprint) as corpus:
        retriever, numbers = Retriever(OLD, corpus), itertools.count()

        def write(count: int) -> None:
            number = next(numbers)
            changed, added = make_study(number, "atrial fibrillation"), make_study(100 + number)
            if number < 12:
                retriever.store([changed, added])
                corpus.delete(f"study-{30 - number:03d}")
                expected.update({changed.study_id: changed, added.study_id: added})
                del expected[f"study-{30 - number:03d}"]
            # What serves is whole all the while.
            vector = OLD.encode_ecg([make_study(35).ecg])
            found = corpus.search(vector, 1)
            assert (found.rows[0], found.scores[0]) == (corpus.rows(["study-035"]), pytest.approx(1, abs=1e-5))

        Reembedding(corpus, NEW, batch=4, rest=0, on_batch=write).run()
        assert next(numbers) > 12
        check_complete(corpus, expected)
    with Corpus.open(path, NEW.fingerprint) as corpus:
        check_complete(corpus, expected)


def test_writers_and_searchers_go_on_through_the_switch(path):
    """Each pair of encoder and view answers in its own space or not at all; no acknowledged write is lost."""
    queries = {encoder.fingerprint: encoder.encode_ecg([make_study(3).ecg]) for encoder in (OLD, NEW)}
    ended, wrong, answers = threading.Event(), [], {OLD.fingerprint: 0, NEW.fingerprint: 0}
    expected = originals()
    with Corpus.open(path, OLD.fingerprint) as corpus:
        views = {encoder.fingerprint: corpus.in_space(encoder.fingerprint) for encoder in (OLD, NEW)}
        row = corpus.rows(["study-003"])[0]

        def search(fingerprint: str) -> None:
            while not ended.is_set():
                try:
                    found = views[fingerprint].within(Scope()).search(queries[fingerprint], 1)
                    vector = views[fingerprint].embeddings(found.rows[0])[0]["ecg"]
                except ModelChangedError:
                    continue
                answers[fingerprint] += 1
                if found.rows[0, 0] != row or abs(float(vector @ queries[fingerprint][0]) - 1) > 1e-5:
                    wrong.append(found)

        def write() -> None:
            for number in itertools.count(200):
                study = make_study(number)
                for encoder in itertools.cycle((OLD, NEW)):
                    try:
                        Retriever(encoder, views[encoder.fingerprint]).store([study])
                    except ModelChangedError:
                        continue
                    break
                expected[study.study_id] = study
                if ended.is_set():
                    return

        threads = [threading.Thread(target=search, args=(each,)) for each in queries] + [threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        Reembedding(corpus, NEW, batch=8, rest=0).run()
        while answers[NEW.fingerprint] < 20:
            pass
        ended.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert answers[OLD.fingerprint] > 0
        check_complete(corpus, expected)


def test_a_call_that_began_with_the_old_bundle_is_sent_again(path):
    with Corpus.open(path, OLD.fingerprint) as corpus:
        old, new = (Retriever(encoder, corpus.in_space(encoder.fingerprint)) for encoder in (OLD, NEW))
        query = [Query(ecg=make_study(3).ecg)]
        with pytest.raises(ModelChangedError):
            new.search(query, 1)
        with pytest.raises(ModelChangedError):
            new.store([make_study(90)])
        assert old.search(query, 1)[0].hits[0].study_id == "study-003"
        Reembedding(corpus, NEW, rest=0).run()
        sequence = corpus.sequence
        for call in (
            lambda: old.search(query, 1),
            lambda: old.store([make_study(90)]),
            lambda: old.update("study-001", lambda study: make_study(1, "changed")),
            lambda: old.corpus.embeddings(corpus.rows(["study-001"])),
            lambda: old.corpus.within(Scope(sites=frozenset({"north"}))).search(OLD.encode_ecg([query[0].ecg]), 1),
        ):
            with pytest.raises(ModelChangedError):
                call()
        assert corpus.sequence == sequence
        assert new.search(query, 1)[0].hits[0].score == pytest.approx(1, abs=1e-5)
        assert new.store([make_study(1)]) == [1]  # stored just so
        assert old.corpus.get(["study-001"])[0].study_id == "study-001"  # nothing to do with embeddings


def test_it_goes_on_where_it_was_ended(path):
    with Corpus.open(path, OLD.fingerprint) as corpus:
        work = Reembedding(corpus, NEW, batch=8, rest=0)
        work._on_batch = lambda count: work.state.studies >= 16 and work.cancel()
        with pytest.raises(CancelledError):
            work.run()
        assert not work.state.done
        check_complete(corpus, originals())
    with reading(path) as view:
        assert read_progress(view.connection).studies == 16
    assert verify(path).findings == ()
    counting = SmallEncoder("b")
    with Corpus.open(path, OLD.fingerprint) as corpus:
        Reembedding(corpus, counting, batch=8, rest=0).run()
        check_complete(corpus, originals())
    with_ecg = [number for number in range(16, COUNT) if make_study(number).ecg is not None]
    assert counting.studies == len(with_ecg)


def test_it_can_be_given_up_or_begun_with_another_bundle(path):
    other = SmallEncoder("c")
    with Corpus.open(path, OLD.fingerprint) as corpus:
        for encoder in (other, NEW):
            work = Reembedding(corpus, encoder, batch=8, rest=0)
            work._on_batch = lambda count, work=work: work.cancel()
            with pytest.raises(CancelledError):
                work.run()
        forget_outgrown(corpus, rest=0)
        assert stored_spaces(path).keys() == {OLD.fingerprint, NEW.fingerprint}
        abandon(corpus)
        assert stored_spaces(path).keys() == {OLD.fingerprint}
        check_complete(corpus, originals())
        Reembedding(corpus, NEW, rest=0).run()
        Reembedding(corpus, OLD, rest=0).run()  # and back
        check_complete(corpus, originals())
    assert stored_spaces(path).keys() == {OLD.fingerprint}


def test_notes_are_covered_as_before_and_what_the_bundle_refuses_is_left_out(path):
    with Corpus.open(path, OLD.fingerprint) as corpus:
        Retriever(OLD, corpus).ingest([make_study(1), make_study(2)], include_later_notes=True)
        Reembedding(corpus, NEW, rest=0).run()
        check_complete(corpus, originals(), later_notes=frozenset({"study-001", "study-002"}))
        strict = SmallEncoder("d", refuses="ecg")
        Reembedding(corpus, strict, rest=0).run()
        loud = [one for one, study in originals().items() if study.ecg is not None and study.ecg.signal[0, 0] > 0.6]
        assert loud
        for study_id, study in originals().items():
            kept = corpus.embeddings(corpus.rows([study_id]))[0].keys()
            assert ("ecg" in kept) == (study.ecg is not None and study_id not in loud)
            assert ("text" in kept) == (study.report is not None or study_id in ("study-001", "study-002"))


def test_a_damaged_study_ends_it_and_the_old_bundle_serves_on(path):
    with closing(sqlite3.connect(path / "corpus.sqlite")) as connection, connection:
        connection.execute("UPDATE studies SET signal = x'00' WHERE row = 20")
    with Corpus.open(path, OLD.fingerprint) as corpus:
        work = Reembedding(corpus, NEW, batch=4, rest=0)
        with pytest.raises(IndexFormatError):
            work.run()
        assert "damaged" in work.state.error
        assert corpus.fingerprint == OLD.fingerprint
        assert corpus.search(OLD.encode_ecg([make_study(3).ecg]), 1).scores[0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("moment", ["filling", "building", "switched"])
def test_an_erased_subject_is_in_no_space(path, moment):
    """The erasure itself looks into every byte of every file, for both spaces' vectors too."""
    expected = {one: study for one, study in originals().items() if study.subject_id != "subject-002"}
    with Corpus.open(path, OLD.fingerprint, factory="HNSW8") as corpus:
        erased = []
        work = Reembedding(corpus, NEW, batch=16, rest=0)

        def erase(*_: object) -> None:
            if not erased:
                erased.append(corpus.erase_subject("subject-002", check=True))

        if moment == "filling":
            work._on_batch = erase
        elif moment == "building":
            build = work._build
            work._build = lambda caches: (build(caches), erase())
        else:
            save = work._save
            work._save = lambda since: (erase(), save(since))
        work.run()
        assert [(each.studies, each.traces) for each in erased] == [(4, ())]
        vectors = {
            modality: vector.tobytes()
            for number in (8, 9, 10, 11)
            for encoder in (OLD, NEW)
            for modality, vector in embed_studies(encoder, [make_study(number)], [False])[0].items()
        }
        for file in (one for one in path.rglob("*") if one.is_file()):
            content = file.read_bytes()
            assert not [name for name, vector in vectors.items() if vector in content], file
        check_complete(corpus, expected)
    with Corpus.open(path, NEW.fingerprint) as corpus:
        check_complete(corpus, expected)


def test_a_backup_of_that_time_is_whole_and_goes_on_too(path, tmp_path):
    with Corpus.open(path, OLD.fingerprint) as corpus:
        work = Reembedding(corpus, NEW, batch=16, rest=0)
        work._on_batch = lambda count: (tmp_path / "backup").exists() or back_up(path, tmp_path / "backup")
        work.run()
        back_up(path, tmp_path / "after")
    for name, first in (("backup", OLD), ("after", NEW)):
        assert verify(tmp_path / name).findings == ()
        restore(tmp_path / name, tmp_path / f"{name}-restored")
        with Corpus.open(tmp_path / f"{name}-restored", first.fingerprint) as corpus:
            check_complete(corpus, originals())
            Reembedding(corpus, NEW, rest=0).run()
            check_complete(corpus, originals())


def test_an_empty_corpus_is_switched(tmp_path):
    with Corpus.create(tmp_path / "corpus", OLD.fingerprint) as corpus:
        Reembedding(corpus, NEW).run()
        assert corpus.fingerprint == NEW.fingerprint
        check_complete(corpus, {})


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_statement_leaves_a_whole_corpus(template, tmp_path, every):
    shutil.copytree(template, tmp_path / "template")
    command = [sys.executable, __file__, str(tmp_path), "3", str(every)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    outcomes = dict(line.split() for line in done.stdout.splitlines())
    assert set(outcomes.values()) == {OLD.fingerprint[0], NEW.fingerprint[0]}
    assert len(outcomes) > 120 / every


def crash(folder: Path, step: int) -> bool:
    """Re-embed a copy of the template in a process that kills itself at a statement; return whether it did."""
    path = shutil.copytree(folder / "template", folder / f"crash-{step}")
    child = os.fork()
    if child == 0:
        corpus = Corpus(path)
        steps = itertools.count(1)
        kill = lambda statement: next(steps) >= step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        corpus._database.writer.set_trace_callback(kill)
        Reembedding(corpus, NEW, batch=16, rest=0).run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kill_at_statements(folder: Path, first: int, every: int) -> None:
    steps = []
    for step in itertools.count(first, every):
        steps.append(step)
        if not crash(folder, step):  # before anything starts a thread here: the children are forked
            break
    for step in steps:
        path = folder / f"crash-{step}"
        with Corpus(path) as corpus:
            found = corpus.fingerprint
            check_complete(corpus, originals())
            assert not verify(path).findings
            Reembedding(corpus, NEW, rest=0).run()
            check_complete(corpus, originals())
        assert stored_spaces(path).keys() == {NEW.fingerprint}
        shutil.rmtree(path)
        print(step, found[0])


if __name__ == "__main__":
    kill_at_statements(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
