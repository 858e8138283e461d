"""A scope's view of a corpus answers as a corpus that holds only what is inside."""

import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmecg_index import scope as scopes
from mmecg_index.corpus import Corpus

from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import NotReadyError, PermissionDeniedError, StudyNotFoundError, SubjectNotFoundError
from mmecg.report import Report
from mmecg.search import MAX_TOP_K, Filter, Scope
from mmecg.study import Study

DIM = 4
FINGERPRINT = "a" * 64
SITES = (None, "north", "south")
SUBJECTS = tuple(f"p{number}" for number in range(4))


def build(study_id: str, subject: str, site: str | None, day: int, **changes) -> Study:
    report = Report.from_text(("Sinus rhythm", "Atrial fibrillation")[day % 2])
    values = {"acquired_at": datetime(2020, 1, 1) + timedelta(days=day), "site": site, "report": report}
    return Study(**({"study_id": study_id, "subject_id": subject, **values, "labels": {"NORM": 100.0}} | changes))


def vectors(seed: int, *, ties: bool = False) -> dict[str, np.ndarray]:
    """Few directions, so that many scores are equal and their order matters, or all of them different."""
    random = np.random.default_rng(seed)
    draw = (lambda: random.integers(-1, 2, DIM) + np.float32(0.01)) if ties else (lambda: random.standard_normal(DIM))
    drawn = {name: normalise(draw()) for name in MODALITIES}
    return {name: drawn[name] for name in MODALITIES[: 1 + seed % 3]}


@pytest.fixture
def corpus(tmp_path):
    """Twelve studies: of four subjects, at two sites and none."""
    with Corpus.create(tmp_path / "corpus", FINGERPRINT, dim=DIM) as corpus:
        studies = [build(f"s{i}", SUBJECTS[i % 4], SITES[i % 3], i) for i in range(12)]
        corpus.upsert(studies, [vectors(i) for i in range(12)])
        yield corpus


def outcome(call):
    """Return what a call returns, or the error it raises, to be compared."""
    try:
        return call()
    except (StudyNotFoundError, SubjectNotFoundError) as error:
        return type(error), str(error)


def pages(corpus, subject_id, size):
    token, found = "", []
    while True:
        ids, token = corpus.list_studies(subject_id=subject_id, page_size=size, page_token=token)
        found.append(ids)
        if not token:
            return found


def names(corpus, rows):
    table = corpus.metadata()
    of = dict(zip(table["row"], table["study_id"], strict=True))
    return [[of[row] for row in each if row >= 0] for each in rows.tolist()]


def answers(corpus, where, size):
    """Yield everything that a corpus says, by names instead of rows."""
    table = corpus.metadata()
    yield table.drop("row").to_dicts()
    stats = corpus.stats()
    yield stats.studies, stats.subjects, dict(stats.embeddings)
    for one in (Filter(), where):
        yield corpus.count(one)
        for target in MODALITIES:
            queries = np.stack([normalise(np.ones(DIM)), normalise(np.arange(DIM) - np.float32(1.4))])
            for top_k in (1, 3, MAX_TOP_K):
                found = corpus.search(queries, top_k, target=target, where=one)
                kept = found.rows >= 0
                yield names(corpus, found.rows), found.scores[kept].tolist()
                yield found.plan.exact, found.plan.rows_total, found.plan.rows_passing
    for subject in (None, *SUBJECTS, "nobody"):
        yield outcome(lambda subject=subject: pages(corpus, subject, size))
    for subject in (*SUBJECTS, "nobody"):
        yield outcome(lambda subject=subject: corpus.earlier(subject, datetime(2020, 1, 9), limit=2, exclude=["s1"]))
    for number in range(14):
        ids = [f"s{number}", "s0"]
        yield outcome(lambda ids=ids: [(one.study_id, one.subject_id, one.site) for one in corpus.get(ids)])
        yield outcome(lambda ids=ids: [content for _, content in corpus.tagged(ids[:1])] and None)
        yield outcome(lambda ids=ids: [sorted(each) for each in corpus.embeddings(corpus.rows(ids))])


some_of = st.none() | st.frozensets(st.sampled_from(["north", "south", "elsewhere"]))
studies_drawn = st.lists(
    st.tuples(st.integers(0, 13), st.sampled_from(SUBJECTS), st.sampled_from(SITES), st.integers(0, 20)), max_size=24
)


@given(
    drawn=studies_drawn,
    deleted=st.frozensets(st.integers(0, 13), max_size=3),
    scope=st.builds(Scope, sites=some_of, subject_ids=st.none() | st.frozensets(st.sampled_from(SUBJECTS))),
    where=st.builds(
        Filter,
        subject_ids=st.none() | st.frozensets(st.sampled_from(SUBJECTS)),
        exclude_subject_ids=st.frozensets(st.sampled_from(SUBJECTS), max_size=2),
        exclude_study_ids=st.frozensets(st.sampled_from(["s0", "s3"])),
        sites=some_of,
        text_contains=st.none() | st.just("sinus"),
    ),
    size=st.integers(1, 5),
    ties=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_view_answers_as_a_corpus_of_what_is_inside(drawn, deleted, scope, where, size, ties):
    with tempfile.TemporaryDirectory() as folder:
        options = {"dim": DIM, "synchronous": "normal"}
        with (
            Corpus.create(Path(folder) / "whole", FINGERPRINT, **options) as whole,
            Corpus.create(Path(folder) / "part", FINGERPRINT, **options) as part,
        ):
            view, stored = whole.within(scope), {}
            for seed, (number, subject, site, day) in enumerate(drawn):
                study = build(f"s{number}", subject, site, day)
                if ties and study.study_id in stored:
                    continue  # until a compaction, equal scores stand in the order written, not of the rows
                stored[study.study_id] = study, vectors(seed, ties=ties)
                whole.upsert([study], [stored[study.study_id][1]])
            for number in deleted:
                if stored.pop(f"s{number}", None):
                    whole.delete(f"s{number}")
            order = [stored[name] for name in whole.list_studies()[0]]
            inside = [(study, found) for study, found in order if scope.allows(study.subject_id, study.site)]
            part.upsert([study for study, _ in inside], [found for _, found in inside])
            for got, expected in zip(answers(view, where, size), answers(part, where, size), strict=True):
                assert got == expected


@pytest.mark.parametrize("scope", [Scope(sites=frozenset()), Scope(subject_ids=frozenset())])
def test_an_empty_scope_holds_nothing(corpus, scope):
    view = corpus.within(scope)
    assert view.stats().studies == view.count() == 0
    assert (view.search(normalise(np.ones(DIM))[None], 5).rows == -1).all()


def test_a_study_outside_is_as_one_that_is_not_there(corpus):
    view = corpus.within(Scope(sites=frozenset(["north"])))
    for call in (view.get, view.rows, view.tagged, lambda ids: view.delete(ids[0])):
        outside, nowhere = (outcome(lambda call=call, name=name: call([name])) for name in ("s2", "nope"))
        assert outside == (nowhere[0], nowhere[1].replace("nope", "s2"))
    assert corpus.get(["s2"])


def test_writes_are_held_inside(corpus):
    view = corpus.within(Scope(sites=frozenset(["north"])))
    own, other = build("s1", "p1", "north", 3), build("s2", "p2", "north", 3)
    assert view.upsert([own], [vectors(1)]) == corpus.sequence
    sequence = corpus.sequence
    for study in (build("s1", "p1", "south", 3), build("new", "p1", None, 3), other):
        with pytest.raises(PermissionDeniedError) as caught:
            view.upsert([build("also", "p1", "north", 4), study], [vectors(1)] * 2)
        assert not any(name in str(caught.value) for name in ("s2", "p1", "south"))
    assert corpus.sequence == sequence
    assert corpus.get(["s2"])[0].site == "south"
    ((_, etag),) = view.tagged(["s1"])
    for study, tag in ((build("s1", "p1", "south", 3), etag), (other, corpus.tagged(["s2"])[0][1])):
        with pytest.raises(PermissionDeniedError):
            view.store([study], [vectors(1)], etags=[tag])
    view.delete("s1")
    with pytest.raises(StudyNotFoundError):
        corpus.get(["s1"])


def test_a_study_that_leaves_the_scope_is_gone_at_once(corpus):
    view = corpus.within(Scope(sites=frozenset(["north"])))
    assert view.get(["s1"])
    corpus.upsert([build("s1", "p1", "south", 1)], [vectors(1)])
    with pytest.raises(StudyNotFoundError):
        view.get(["s1"])
    assert "s1" not in view.metadata()["study_id"]
    assert view.embeddings(corpus.rows(["s1"])) == [{}]


def test_every_table_of_studies_is_covered(corpus):
    """A view stands in front of each table that says something of a study; what it has beside them says nothing."""
    view = corpus.within(Scope(sites=frozenset(["north"])))
    with view._database.reading() as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
        views = {name for (name,) in connection.execute("SELECT name FROM temp.sqlite_master WHERE type = 'view'")}
        columns = {
            table: [column for _, column, *_ in connection.execute(f"PRAGMA main.table_info({table})")]
            for table in tables
        }
        private = {"study_id", "subject_id", "document", "signal", "vector", "site"}
        assert {table for table, found in columns.items() if private.intersection(found)} <= views
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM main.studies")


def test_scopes_within_scopes_only_narrow(corpus):
    north = corpus.within(Scope(sites=frozenset(["north"])))
    assert north.within(Scope(sites=frozenset(["south"]))).stats().studies == 0
    one = north.within(Scope(subject_ids=frozenset(["p1"])))
    assert {study.subject_id for study in one.get(one.list_studies()[0])} == {"p1"}
    assert one.scope == Scope(sites=frozenset(["north"]), subject_ids=frozenset(["p1"]))


def test_views_and_their_connections_are_bounded(corpus, monkeypatch):
    monkeypatch.setattr(scopes, "MAX_VIEWS", 3)
    first = corpus.within(Scope(sites=frozenset(["0"])))
    for number in range(8):
        view = corpus.within(Scope(sites=frozenset([str(number), "north"])))
        with ThreadPoolExecutor(6) as pool:
            assert len(set(pool.map(lambda _, view=view: view.stats().studies, range(12)))) == 1
        assert view._database._idle.qsize() <= 2
    assert len(corpus._views._views) == 3
    assert first.stats().studies == 0  # who holds one that was dropped can use it on


def test_a_closed_corpus_has_no_open_view(corpus):
    view = corpus.within(Scope(sites=frozenset(["north"])))
    corpus.close()
    with pytest.raises(NotReadyError):
        view.get(["s1"])
