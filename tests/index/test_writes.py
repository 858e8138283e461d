"""What a second write of the same does, who is told that somebody was faster, and how many pass a filter."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mmecg_index import requests
from mmecg_index.audit import select
from mmecg_index.calls import CallTrail
from mmecg_index.corpus import Corpus
from mmecg_server.audit import CallRecord

from mmecg.ecg import Ecg
from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import AlreadyExistsError, ConflictError, PermissionDeniedError, QueryError, StudyNotFoundError
from mmecg.report import Report
from mmecg.search import Filter, Scope, WriteRequest
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

DIM = 8
FINGERPRINT = "a" * 64


def make_study(number: int, **changes: object) -> Study:
    counts = np.random.default_rng(number).integers(-900, 900, (12, 100))
    acquired = datetime(2020, 1, 1) + timedelta(days=number)
    values: dict = {
        "study_id": f"study-{number}",
        "subject_id": f"patient-{number // 3}",
        "acquired_at": acquired,
        "ecg": Ecg.from_array(counts / 1000, sampling_rate_hz=100),
        "report": Report.from_text("Sinus rhythm"),
        "notes": (ClinicalNote("chest pain", "triage", acquired - timedelta(hours=1)),),
        "vitals": Vitals(age_years=20 + number % 60, sex="female"),
        "labels": {"NORM": 80.0},
        "site": ["north", "south", None][number % 3],
        "device": "cart",
        "attributes": {"fold": "1"},
    }
    return Study(**(values | changes))


def make_embedding(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1000 + number)
    return {modality: normalise(random.standard_normal(DIM)) for modality in MODALITIES}


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with Corpus.create(tmp_path / "corpus", FINGERPRINT, dim=DIM, reserve_bytes=0) as made:
        made.upsert([make_study(i) for i in range(30)], [make_embedding(i) for i in range(30)])
        yield made


def columns(corpus: Corpus, study_id: str) -> tuple[int, bytes, str]:
    with corpus._database.reading() as connection:
        query = "SELECT sequence, content_hash, recipe FROM studies WHERE study_id = ?"
        return connection.execute(query, (study_id,)).fetchone()


def test_what_is_stored_just_so_is_not_written_again(corpus: Corpus) -> None:
    table, before = corpus.metadata(), corpus.sequence
    assert corpus.store([make_study(i) for i in range(30)], [make_embedding(i) for i in range(30)]) == [before] * 30
    assert corpus.sequence == before
    assert corpus.metadata() is table


@pytest.mark.parametrize(
    "changes",
    [
        {"subject_id": "other"},
        {"acquired_at": None},
        {"report": None},
        {"labels": {"NORM": 81.0}},
        {"notes": ()},
        {"device": None},
        {"site": "west"},
        {"attributes": {}},
        {"ecg": None},
        {"ecg": make_study(0, ecg=make_study(1).ecg).ecg},
        {"vitals": make_study(9).vitals},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_part_of_a_study_counts(corpus: Corpus, changes: dict) -> None:
    name = make_study(0).study_id
    ((_, tag),) = corpus.tagged([name])
    (sequence,) = corpus.store([make_study(0, **changes)], [make_embedding(0)])
    assert sequence == corpus.sequence == 2
    ((_, changed),) = corpus.tagged([name])
    assert changed != tag
    assert corpus.store([make_study(0)], [make_embedding(0)]) == [3]
    assert corpus.tagged([name])[0][1] == tag


def test_other_embeddings_are_written(corpus: Corpus) -> None:
    assert corpus.upsert([make_study(0)], [make_embedding(99)]) == 2
    assert corpus.upsert([make_study(0)], [{"ecg": make_embedding(99)["ecg"]}]) == 3
    assert corpus.stats().embeddings == {"ecg": 30, "text": 29, "vitals": 29}
    assert corpus.search(make_embedding(99)["ecg"][None], 1).rows[0] == corpus.rows([make_study(0).study_id])


def test_of_a_batch_only_what_changed_is_written(corpus: Corpus) -> None:
    studies = [make_study(i) for i in range(10)]
    studies[4] = make_study(4, site="west")
    studies.append(make_study(5, site="east"))  # a second version in one batch: the last counts
    numbers = corpus.store(studies, [make_embedding(i) for i in range(10)] + [make_embedding(5)])
    assert numbers == [1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2]
    assert [each.site for each in corpus.get([make_study(4).study_id, make_study(5).study_id])] == ["west", "east"]


def test_a_study_that_comes_three_times_in_one_write_is_stored_as_the_last(corpus: Corpus) -> None:
    other = replace(make_study(40), site="elsewhere")
    studies = [make_study(40), other, make_study(41), other]
    vectors = [make_embedding(1), make_embedding(2), make_embedding(3), make_embedding(2)]
    named = [WriteRequest(request_id=name) for name in "abcb"]
    numbers = corpus.store(studies, vectors, requests=named)
    assert len(set(numbers)) == 1
    assert [each.site for each in corpus.get(["study-40"])] == ["elsewhere"]
    (stored,) = corpus.embeddings(corpus.rows(["study-40"]))
    assert {name: vector.tolist() for name, vector in stored.items()} == {
        name: vector.tolist() for name, vector in make_embedding(2).items()
    }
    before = corpus.sequence
    assert corpus.store(studies[2:], vectors[2:]) == numbers[2:]  # found there just so
    assert corpus.sequence == before
    assert corpus.store(studies[:1], vectors[:1], requests=named[:1]) == numbers[:1]
    with pytest.raises(AlreadyExistsError):
        corpus.store([make_study(42), make_study(43)], vectors[:2], requests=[named[0], None])
    with pytest.raises(AlreadyExistsError):
        corpus.store([make_study(42), make_study(43)], vectors[:2], requests=[WriteRequest(request_id="x")] * 2)
    assert corpus.sequence == before


def test_a_recipe_stands_for_the_embeddings(corpus: Corpus) -> None:
    study, name = make_study(0), make_study(0).study_id
    assert corpus.unchanged([study], ["earlier notes"]) == [False]  # nobody said how they were made
    assert corpus.store([study], [make_embedding(0)], recipes=["earlier notes"]) == [2]
    assert columns(corpus, name)[2] == "earlier notes"
    assert corpus.unchanged([study, make_study(99)], ["earlier notes", "earlier notes"]) == [True, False]
    assert corpus.unchanged([study], ["all notes"]) == [False]
    assert corpus.unchanged([replace(study, site="west")], ["earlier notes"]) == [False]
    # A tower computes a little differently in another batch: that is no change.
    assert corpus.store([study], [make_embedding(99)], recipes=["earlier notes"]) == [2]
    assert corpus.store([study], [None], recipes=["earlier notes"]) == [2]
    assert corpus.search(make_embedding(0)["ecg"][None], 1).rows[0] == corpus.rows([name])
    assert corpus.store([study], [make_embedding(99)], recipes=["all notes"]) == [3]
    with pytest.raises(ConflictError, match="changed meanwhile; send it again"):
        corpus.store([study], [None], recipes=["earlier notes"])


def test_a_request_is_done_once(corpus: Corpus) -> None:
    mine, other = (WriteRequest(request_id="req-7f3a", principal=each) for each in ("me", "you"))
    study = make_study(100)
    assert corpus.store([study], [make_embedding(100)], requests=[mine]) == [2]
    assert corpus.store([replace(study, site="west")], [make_embedding(100)]) == [3]
    # A late retry gets its answer, and does not undo what came after.
    assert corpus.store([study], [make_embedding(100)], requests=[mine]) == [2]
    assert corpus.get([study.study_id])[0].site == "west"
    with pytest.raises(AlreadyExistsError, match="request_id was used for another request") as caught:
        corpus.store([make_study(101)], [make_embedding(101)], requests=[mine])
    assert "req-7f3a" not in str(caught.value)
    with pytest.raises(AlreadyExistsError):
        corpus.delete(study.study_id, request=mine)
    assert corpus.store([make_study(101)], [make_embedding(101)], requests=[other]) == [4]
    path = corpus.path
    corpus.close()
    with Corpus.open(path, FINGERPRINT) as again:
        assert again.store([study], [make_embedding(100)], requests=[mine]) == [2]
    assert b"req-7f3a" not in (path / "corpus.sqlite").read_bytes()


def test_a_delete_that_is_sent_again_is_answered(corpus: Corpus) -> None:
    name, request = make_study(3).study_id, WriteRequest(request_id="d")
    assert corpus.delete(name, request=request) == 2
    assert corpus.delete(name, request=request) == 2
    corpus.upsert([make_study(3)], [make_embedding(3)])
    assert corpus.delete(name, request=request) == 2  # and the new one stays
    assert corpus.get([name])
    with pytest.raises(AlreadyExistsError):
        corpus.delete(make_study(4).study_id, request=request)
    corpus.delete(name)
    with pytest.raises(StudyNotFoundError):
        corpus.delete(name)


def test_an_erasure_leaves_the_requests_of_others_answered(corpus: Corpus) -> None:
    """Who was in one write with the erased subject is answered as before, and told of another content."""
    studies, embeddings = [make_study(101), make_study(201)], [make_embedding(101), make_embedding(201)]
    requests = [WriteRequest(request_id=each) for each in ("of the erased", "of another")]
    assert corpus.store(studies, embeddings, requests=requests) == [2, 2]
    corpus.erase_subject(studies[0].subject_id)
    after = corpus.sequence
    assert corpus.store(studies, embeddings, requests=requests) == [2, 2]
    assert corpus.sequence == after  # and nobody came back
    with pytest.raises(AlreadyExistsError):
        corpus.store([make_study(202)], [make_embedding(202)], requests=requests[1:])
    with pytest.raises(StudyNotFoundError):
        corpus.get([studies[0].study_id])


def test_an_erasure_leaves_no_digest_of_what_was_replaced_or_deleted(corpus: Corpus) -> None:
    """Whoever has the file and its key could test against it what a study of the subject once said, or its id."""
    mine, other = make_study(101), make_study(201)
    for number, study in enumerate((mine, other, make_study(101, device="another"), make_study(101, device="third"))):
        corpus.store([study], [make_embedding(1)], requests=[WriteRequest(request_id=f"r{number}")])
    corpus.delete(mine.study_id, request=WriteRequest(request_id="d"))
    corpus.store([mine], [make_embedding(1)], requests=[WriteRequest(request_id="again")])
    corpus.erase_subject(mine.subject_id)
    with corpus._database.reading() as connection:
        digests = [digest for (digest,) in connection.execute("SELECT digest FROM requests")]
    assert len(digests) == 6
    assert len([digest for digest in digests if digest]) == 1
    assert corpus.store([other], [make_embedding(1)], requests=[WriteRequest(request_id="r1")]) == [3]
    assert corpus.delete(mine.study_id, request=WriteRequest(request_id="d")) == 6


def test_an_erasure_blanks_what_an_earlier_release_answered(corpus: Corpus) -> None:
    corpus.store([make_study(101)], [make_embedding(1)], requests=[WriteRequest(request_id="r")])
    corpus._database.writer.execute("UPDATE requests SET digest = substr(digest, 1, 16)")
    assert corpus.store([make_study(101)], [make_embedding(1)], requests=[WriteRequest(request_id="r")]) == [2]
    corpus.erase_subject(make_study(101).subject_id)
    with corpus._database.reading() as connection:
        assert connection.execute("SELECT digest FROM requests").fetchall() == [(b"",)]


def test_requests_are_bounded(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 5)
    monkeypatch.setattr(requests, "_TRIM_EVERY", 1)
    for number in range(12):
        corpus.store([make_study(100 + number)], [{}], requests=[WriteRequest(request_id=f"r{number}")])
    with corpus._database.reading() as connection:
        assert connection.execute("SELECT sequence FROM requests ORDER BY 1").fetchall() == [(n,) for n in range(9, 14)]
    monkeypatch.setattr(requests.time, "time", lambda: 2e9)
    corpus.store([make_study(200)], [{}], requests=[WriteRequest(request_id="late")])
    with corpus._database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (1,)


@pytest.mark.parametrize("request_id", ["", "x" * 129])
def test_a_bad_request_id_is_refused(corpus: Corpus, request_id: str) -> None:
    with pytest.raises(QueryError, match=r"request_id has \d+ characters, expected 1 to 128") as caught:
        corpus.store([make_study(100)], [{}], requests=[WriteRequest(request_id=request_id)])
    assert caught.value.field == "request_id"


def test_a_call_is_entered_with_its_write_or_at_its_end(corpus: Corpus) -> None:
    trail, touched = CallTrail(corpus), {("", "study-0"): None}
    for _ in range(2):  # the second one is answered as the first, and writes nothing
        call = CallRecord("Delete", "", principal="ward", outcome="OK", touched=touched)
        with trail.acting(call):
            corpus.delete("study-0", request=WriteRequest(request_id="once"))
            trail.enter(call)
    with trail.acting(CallRecord("Erase", "", principal="ward")):
        corpus.erase_subject("patient-0")
    with corpus._database.reading() as connection:
        assert [each.method for each in select(connection, corpus._database.secret)] == ["Delete", "Erase"]
    corpus.audit.flush()
    with corpus._database.reading() as connection:
        methods = [each.method for each in select(connection, corpus._database.secret)]
    assert methods == ["Delete", "Erase", "Delete"]


def test_an_etag_guards_against_other_writers(corpus: Corpus) -> None:
    ((study, tag),) = corpus.tagged([make_study(0).study_id])
    assert study.ecg is not None
    ((bare, same),) = corpus.tagged([study.study_id], with_signal=False)
    assert bare.ecg is None
    assert same == tag
    corpus.store([replace(study, site="west")], [make_embedding(0)], etags=[tag])
    with pytest.raises(ConflictError, match="changed since it was read"):
        corpus.store([replace(study, site="east")], [make_embedding(0)], etags=[tag])
    assert corpus.get([study.study_id])[0].site == "west"
    with pytest.raises(StudyNotFoundError):
        corpus.store([make_study(100)], [{}], etags=[tag])


def test_what_an_older_release_stored_has_a_tag_too(corpus: Corpus) -> None:
    name = make_study(0).study_id
    ((_, tag),) = corpus.tagged([name])
    connection = sqlite3.connect(corpus.path / "corpus.sqlite")
    connection.execute("UPDATE studies SET content_hash = NULL, recipe = NULL")
    connection.commit()
    connection.close()
    for with_signal in (True, False):
        ((study, found),) = corpus.tagged([name], with_signal=with_signal)
        assert found == tag
        assert (study.ecg is not None) == with_signal
    with pytest.raises(ConflictError):
        corpus.store([make_study(0, site="west")], [make_embedding(0)], etags=["0" * 32])
    assert corpus.store([make_study(0)], [make_embedding(0)], etags=[tag]) == [2]
    assert columns(corpus, name)[1].hex() == tag


def test_tags_of_two_corpora_differ(corpus: Corpus, tmp_path: Path) -> None:
    with Corpus.create(tmp_path / "other", FINGERPRINT, dim=DIM) as other:
        other.upsert([make_study(0)], [make_embedding(0)])
        name = make_study(0).study_id
        assert corpus.tagged([name])[0][1] != other.tagged([name])[0][1]  # hashes say nothing without the key


def test_lists_that_do_not_fit_are_refused(corpus: Corpus) -> None:
    for extra in ({"recipes": ["x"]}, {"etags": [None] * 3}, {"requests": []}):
        with pytest.raises(QueryError, match=f"got 2 studies and . {next(iter(extra))}, expected one each"):
            corpus.store([make_study(0), make_study(1)], [{}, {}], **extra)
    with pytest.raises(QueryError, match="modality 'egc' is unknown"):
        corpus.store([make_study(0)], [{"egc": make_embedding(0)["ecg"]}])


def test_count(corpus: Corpus) -> None:
    assert corpus.count() == corpus.count(Filter()) == 30
    assert corpus.count(Filter(sites=frozenset({"north"}))) == 10
    assert corpus.count(Filter(exclude_subject_ids=frozenset({make_study(0).subject_id, "nobody"}))) == 27
    corpus.delete(make_study(0).study_id)
    assert corpus.count(Filter(sites=frozenset({"north"}))) == 9


def test_a_scope_is_checked_where_it_is_written(corpus: Corpus) -> None:
    north = corpus.within(Scope(sites=frozenset({"north"})))
    inside, outside = make_study(0), make_study(1)
    assert (inside.site, outside.site) == ("north", "south")
    assert north.store([replace(inside, device="new")], [make_embedding(0)]) == [2]
    for study in (outside, replace(outside, site="north"), replace(inside, site="south")):
        with pytest.raises(PermissionDeniedError):
            north.store([study], [make_embedding(0)])
    assert north.unchanged([outside], ["x"]) == [False]
    with pytest.raises(StudyNotFoundError):
        north.delete(outside.study_id)
    assert (north.count(), corpus.count()) == (10, 30)
    north.delete(inside.study_id)
    assert (north.count(), corpus.count(), north.sequence) == (9, 29, 3)


class CorpusMachine(RuleBasedStateMachine):
    """A corpus beside a dict, through every kind of write, retries and openings."""

    numbers = st.integers(0, 5)
    sites = st.sampled_from([None, "a", "b"])
    request_ids = st.none() | st.sampled_from(["r1", "r2", "r3"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mmecg-"))
        self.model: dict[str, tuple[Study, int, int]] = {}
        self.answered: dict[str, tuple[object, int]] = {}
        self.sequence = 0

    @initialize()
    def create(self) -> None:
        self.corpus = Corpus.create(self.folder / "corpus", FINGERPRINT, dim=DIM, reserve_bytes=0)

    @rule(number=numbers, site=sites, vector=numbers, request_id=request_ids)
    def store(self, number: int, site: str | None, vector: int, request_id: str | None) -> None:
        study = make_study(number, site=site, ecg=None)
        asked = ("store", number, site, vector)

        def call() -> int:
            request = None if request_id is None else WriteRequest(request_id=request_id)
            return self.corpus.store([study], [make_embedding(vector)], requests=[request])[0]

        def expected() -> int:
            before = self.model.get(study.study_id)
            if before is None or (before[0].site, before[1]) != (site, vector):
                self.sequence += 1
                self.model[study.study_id] = study, vector, self.sequence
            return self.model[study.study_id][2]

        self.once(request_id, asked, call, expected)

    @rule(number=numbers, request_id=request_ids)
    def delete(self, number: int, request_id: str | None) -> None:
        name = make_study(number).study_id
        request = None if request_id is None else WriteRequest(request_id=request_id)
        if name not in self.model and request_id not in self.answered:
            with pytest.raises(StudyNotFoundError):
                self.corpus.delete(name, request=request)
            return

        def expected() -> int:
            del self.model[name]
            self.sequence += 1
            return self.sequence

        self.once(request_id, ("delete", number), lambda: self.corpus.delete(name, request=request), expected)

    def once(self, request_id: str | None, asked: object, call: Callable[[], int], expected: Callable[[], int]) -> None:
        if request_id not in self.answered:
            number = expected()
            assert call() == number
            if request_id is not None:
                self.answered[request_id] = asked, number
        elif self.answered[request_id][0] == asked:
            assert call() == self.answered[request_id][1]
        else:
            with pytest.raises(AlreadyExistsError):
                call()

    @rule(number=numbers, site=sites, stale=st.booleans())
    def replace_under_a_tag(self, number: int, site: str | None, stale: bool) -> None:
        name = make_study(number).study_id
        if name not in self.model:
            return
        study, vector, sequence = self.model[name]
        ((_, tag),) = self.corpus.tagged([name])
        changed = replace(study, site=site)
        if stale:
            with pytest.raises(ConflictError):
                self.corpus.store([changed], [make_embedding(vector)], etags=[tag[::-1]])
            return
        if study.site != site:
            self.sequence += 1
            sequence = self.sequence
        assert self.corpus.store([changed], [make_embedding(vector)], etags=[tag]) == [sequence]
        self.model[name] = changed, vector, sequence

    @rule()
    def open_again(self) -> None:
        self.corpus.close()
        self.corpus = Corpus.open(self.folder / "corpus", FINGERPRINT, reserve_bytes=0)

    @rule()
    def compact(self) -> None:
        self.corpus.compact()

    @invariant()
    def holds_the_model(self) -> None:
        if not hasattr(self, "corpus"):
            return
        assert self.corpus.sequence == self.sequence
        ids = list(self.model)
        assert set(self.corpus.list_studies()[0]) == set(ids)
        assert [study.site for study in self.corpus.get(ids)] == [study.site for study, *_ in self.model.values()]
        assert self.corpus.count(Filter(sites=frozenset({"a"}))) == sum(s.site == "a" for s, *_ in self.model.values())
        for modality in MODALITIES:
            stored = [each[modality] for each in self.corpus.embeddings(self.corpus.rows(ids))]
            for vector, (_, number, _) in zip(stored, self.model.values(), strict=True):
                np.testing.assert_array_equal(vector, make_embedding(number)[modality])
            found = self.corpus.search(make_embedding(0)[modality][None], 10, target=modality).rows[0]
            assert {name for name in self.corpus.study_ids(found) if name} == set(ids)

    def teardown(self) -> None:
        if hasattr(self, "corpus"):
            self.corpus.close()
        shutil.rmtree(self.folder)


TestCorpusMachine = CorpusMachine.TestCase
TestCorpusMachine.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
