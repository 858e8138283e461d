"""Over the wire, a caller sees and changes what its scope allows; the audit trail tells what everybody did."""

import json
import threading
from dataclasses import replace

import pytest
from mmecg_index.audit import select
from mmecg_index.calls import CallTrail
from mmecg_server.config import AuthConfig
from mmecg_server.principals import ROLES, new_token
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import PermissionDeniedError, StudyNotFoundError, SubjectNotFoundError, UnauthenticatedError
from mmecg.retriever import Query
from mmecg.search import Filter


@pytest.fixture
def clients(config, retriever, make_study, tmp_path):
    """Clients who may do everything: ``whole``, with ``north`` only at that site, and ``two`` for two subjects.

    Studies 0, 2, 4 are of site north and subjects 0, 1, 2; the others of south.
    """
    tokens, entries = {}, []
    for name, limits in {
        "whole": {},
        "north": {"sites": ["north"]},
        "two": {"subjects": ["subject-0", "subject-1"]},
    }.items():
        tokens[name], entry = new_token(name, ROLES, **limits)
        entries.append(entry)
    (tmp_path / "p.toml").write_text("\n".join(entries))
    with Server(replace(config, auth=AuthConfig(principals=tmp_path / "p.toml"))) as server:
        server.serve(retriever, trail=CallTrail(retriever.corpus))
        made = {
            name: Client(
                f"127.0.0.1:{server.port}", ChannelOptions(token=token, retry=RetryPolicy(attempts=1), timeout_s=120)
            )
            for name, token in tokens.items()
        }
        made["nobody"] = Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1)))
        studies = [replace(make_study(number), site=("north", "south")[number % 2]) for number in range(6)]
        assert {outcome.error for outcome in made["whole"].upsert(studies)} == {None}
        yield made
        for client in made.values():
            client.close()


def found(result) -> list[str]:
    return [hit.study_id for hit in result.hits]


def test_every_read_ends_at_the_border(clients, make_study):
    north, whole = clients["north"], clients["whole"]
    inside = ["study-0", "study-2", "study-4"]
    assert north.stats().studies == 3
    assert whole.stats().studies == 6
    assert sorted(found(north.search(text="rhythm", target="text"))) == inside
    assert found(north.search(text="rhythm", where=Filter(sites=frozenset(["south"])))) == []
    assert [study.study_id for study in north.list_studies()] == inside
    assert [study.study_id for study in north.list_studies("subject-0")] == ["study-0"]
    assert [study.study_id for study in clients["two"].list_studies()] == [f"study-{number}" for number in range(4)]
    assert north.mine_labels(study_id="study-0")
    (one,) = north.search_many([Query(study_id="study-0")], exclude_same_subject=False)
    assert sorted(found(one.value)) == ["study-2", "study-4"]
    with pytest.raises(SubjectNotFoundError):
        list(clients["two"].list_studies("subject-2"))


def test_what_is_outside_is_not_there(clients):
    north = clients["north"]
    for name in ("study-1", "study-nowhere"):
        for call in (
            lambda name=name: north.get_study(name),
            lambda name=name: north.search(study_id=name),
            lambda name=name: north.embed(Query(study_id=name)),
            lambda name=name: north.mine_labels(study_id=name),
            lambda name=name: north.delete_study(name),
        ):
            with pytest.raises(StudyNotFoundError) as caught:
                call()
            assert str(caught.value).replace(name, "X") == "study 'X' is not in the corpus; list the studies it holds"
        (outcome,) = north.embed_many([Query(study_id=name)])
        assert isinstance(outcome.error, StudyNotFoundError)
    assert clients["whole"].get_study("study-1").site == "south"


def test_writes_end_at_the_border(clients, make_study):
    north, whole = clients["north"], clients["whole"]
    mine = replace(make_study(20), site="north")
    theirs, unplaced = replace(make_study(21), site="south"), replace(make_study(22), site=None)
    taken = replace(make_study(1), site="north")  # the id is one of a study outside
    errors = [type(outcome.error) for outcome in north.upsert([mine, theirs, unplaced, taken])]
    assert errors == [type(None), *[PermissionDeniedError] * 3]
    assert whole.stats().studies == 7
    assert whole.get_study("study-1").site == "south"
    north.delete_study("study-20")
    assert whole.stats().studies == 6


def entries_of(retriever):
    retriever.corpus.audit.flush()
    with retriever.corpus._database.reading() as connection:
        return select(connection, retriever.corpus._database.secret)


def test_the_trail_tells_what_everybody_did(clients, retriever):
    clients["north"].get_study("study-0")
    found(clients["north"].search(text="rhythm", with_studies=False, target="text"))
    with pytest.raises(StudyNotFoundError):
        clients["north"].get_study("study-1")
    with pytest.raises(UnauthenticatedError):
        clients["nobody"].get_study("study-0")
    clients["whole"].delete_study("study-0")
    trail = []
    for entry in entries_of(retriever):
        touched = sorted((each.subject_id, each.study_id) for each in entry.touched)
        trail.append((entry.principal, entry.method, entry.outcome, touched))
    gone = ("subject-0", "")  # its subject has another study, itself it has no name any more
    writes = [entry for entry in trail if entry[1] == "CorpusService/UpsertStudies"]
    assert {entry[0] for entry in writes} == {"whole"}
    assert sum(len(entry[3]) for entry in writes) == 6
    rest = [entry for entry in trail if entry not in writes]
    assert sorted(rest, key=lambda entry: entry[1:3]) == [
        ("whole", "CorpusService/DeleteStudy", "OK", [gone]),
        ("north", "CorpusService/GetStudy", "NOT_FOUND", [("subject-0", "study-1")]),
        ("north", "CorpusService/GetStudy", "OK", [gone]),
        ("", "CorpusService/GetStudy", "UNAUTHENTICATED", []),
        ("north", "SearchService/Search", "OK", sorted([gone, ("subject-1", "study-2"), ("subject-2", "study-4")])),
    ]


def test_a_stream_that_stores_many_studies_is_entered_with_them_and_not_once_more(
    clients, retriever, make_study, monkeypatch
):
    monkeypatch.setattr("mmecg_server.audit.MAX_TOUCHED", 3)
    is_stored = threading.Event()

    def studies():
        yield make_study(50)
        assert is_stored.wait(20)
        yield from map(make_study, range(51, 60))

    for outcome in clients["whole"].upsert(studies()):
        assert outcome.error is None
        is_stored.set()
    names = [each.study_id for entry in entries_of(retriever) for each in entry.touched]
    assert sorted(name for name in names if name >= "study-50") == [f"study-{number}" for number in range(50, 60)]


def test_items_of_a_stream_that_were_refused_have_entries_of_their_own(clients, retriever, make_study):
    north = clients["north"]
    mine, theirs = replace(make_study(20), site="north"), replace(make_study(21), site="south")
    assert len(list(north.upsert([mine, theirs]))) == 2
    asked = [Query(study_id="study-0"), Query(study_id="study-1")]
    assert len(list(north.search_many(asked, exclude_same_subject=False))) == 2
    told = {
        (entry.method.rpartition("/")[2], entry.outcome, touched.study_id or touched.study_digest)
        for entry in entries_of(retriever)
        for touched in entry.touched
        if entry.principal == "north"
    }
    found = {(method, outcome): study for method, outcome, study in told}
    assert found["UpsertStudies", "OK"] == "study-20"
    assert len([each for each in told if each[:2] == ("UpsertStudies", "PERMISSION_DENIED")]) == 1
    assert {each for each in told if each[0] == "SearchStream" and each[1] != "OK"} == {
        ("SearchStream", "NOT_FOUND", "study-1")
    }
    assert ("SearchStream", "OK", "study-0") in told
    assert ("SearchStream", "OK", "study-1") not in told


def test_entries_carry_the_request_id_of_the_log(clients, retriever, log_lines):
    with pytest.raises(PermissionDeniedError):
        raise_all(clients["north"], retriever)
    logged = {json.loads(line)["request_id"] for line in log_lines if '"call"' in line}
    entered = {entry.request_id for entry in entries_of(retriever)}
    assert logged <= entered


def raise_all(client: Client, retriever) -> None:
    study = client.get_study("study-0")
    for outcome in client.upsert([replace(study, site="south")]):
        if outcome.error is not None:
            raise outcome.error
