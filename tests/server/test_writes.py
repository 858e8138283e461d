"""Writes over the wire: done once under a name; ready embeddings; updates under an etag; what was written is read."""

import asyncio
import dataclasses

import grpc
import numpy as np
import pytest
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import corpus_service_pb2 as pb
from mmecg_pb.v1 import corpus_service_pb2_grpc
from mmecg_server.server import Server
from mmecg_server.status import render_status
from mmecg_server.upserts import MAX_ITEMS

from mmecg.client import AsyncClient, ChannelOptions, Client, EmbeddedStudy, RetryPolicy
from mmecg.client.corpus_requests import UpsertStream, WriteNames, update_request, upsert_item, upsert_request
from mmecg.errors import (
    ConflictError,
    FingerprintMismatchError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    QueryError,
    StudyNotFoundError,
)
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.search import Filter
from mmecg.study import Study

FINGERPRINT = "f" * 64


@pytest.fixture
def stub(channel):
    return corpus_service_pb2_grpc.CorpusServiceStub(channel)


def send(stub, *messages):
    return list(stub.UpsertStudies(iter(messages)))


def test_a_write_sent_again_under_its_name_does_nothing(stub, filled, make_study):
    first = send(stub, upsert_request(make_study(20), "a"))[0].sequence
    later = dataclasses.replace(make_study(20), report=Report.from_text("left bundle branch block"))
    send(stub, upsert_request(later, "b"))
    # The answer to "a" was lost, and somebody else has changed the study since: the change stays.
    assert send(stub, upsert_request(make_study(20), "a"))[0].sequence == first
    assert filled.get_study("study-20").report == later.report
    refused = send(stub, upsert_request(make_study(21), "a"))[0]
    assert refused.status.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    with pytest.raises(StudyNotFoundError):
        filled.get_study("study-21")


def batch(*items):
    return pb.UpsertStudiesRequest(items=items)


def test_studies_of_one_message_are_answered_one_by_one_in_one_commit(stub, filled, make_study):
    bad = upsert_item(make_study(61), "bad")
    bad.study.vitals.heart_rate_bpm = 5000
    alone = upsert_request(make_study(64), "alone")
    items = [upsert_item(make_study(60), "a"), bad, upsert_item(make_study(62), "c"), upsert_item(make_study(60), "a")]
    first, second, third = send(stub, batch(*items), alone, batch(upsert_item(make_study(65), "e")))
    assert [each.WhichOneof("result") for each in first.outcomes] == ["sequence", "status", "sequence", "sequence"]
    assert (first.item, second.item, third.item) == (0, 4, 5)
    assert first.WhichOneof("result") is None
    assert first.outcomes[1].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert first.outcomes[0].sequence == first.outcomes[3].sequence  # the same under the same name is done once
    assert second.sequence
    assert [each.sequence > 0 for each in third.outcomes] == [True]
    stored = [study.study_id for study in filled.list_studies() if int(study.study_id[6:]) >= 60]
    assert stored == ["study-60", "study-62", "study-64", "study-65"]
    again = send(stub, batch(*items))[0]
    assert [each.sequence for each in again.outcomes] == [each.sequence for each in first.outcomes]


def test_a_message_of_too_many_items_or_of_both_kinds_is_refused_as_one(stub, filled, make_study):
    item = upsert_item(make_study(60), "")
    mixed = upsert_request(make_study(61), "")
    mixed.items.append(item)
    for message in (batch(*[item] * (MAX_ITEMS + 1)), mixed):
        first, second = send(stub, message, upsert_request(make_study(5), ""))
        assert first.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert "items" in first.status.message
        assert (second.item, second.WhichOneof("result")) == (1, "sequence")
    assert filled.stats().studies == 12


def test_a_message_with_a_field_that_is_not_known_is_refused_whole(stub, filled, make_study):
    newer = batch(upsert_item(make_study(60), ""), upsert_item(make_study(61), ""))
    newer.MergeFromString(b"\xf8\x3f\x01")  # field 1023: a later version's
    (refused,) = send(stub, newer)
    assert refused.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "does not know" in refused.status.message
    assert filled.stats().studies == 12


def test_a_client_sends_studies_together_and_counts_them_one_by_one(server, make_study, filled):
    def studies():
        yield from (make_study(number) for number in range(12, 15))
        yield dataclasses.replace(make_study(15), labels={"NORM": 101.0})
        yield from (make_study(number) for number in range(16, 150))

    outcomes = list(filled.upsert(studies()))
    assert [outcome.item for outcome in outcomes] == list(range(138))
    assert [outcome.item for outcome in outcomes if outcome.error] == [3]
    assert filled.stats().studies == 12 + 137

    async def use():
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            return [outcome async for outcome in client.upsert(studies())]

    again = asyncio.run(use())
    assert [(one.item, one.value) for one in again] == [(one.item, one.value) for one in outcomes]


def test_studies_that_a_small_message_can_hold_one_by_one_fit_together(config, retriever, make_study, make_ecg):
    limits = dataclasses.replace(config.limits, max_message_bytes=2**20)
    studies = [dataclasses.replace(make_study(number), ecg=make_ecg(number, rate=500)) for number in range(12)]
    with Server(dataclasses.replace(config, limits=limits)) as server:
        server.serve(retriever)
        with Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
            assert [outcome.error for outcome in client.upsert(studies)] == [None] * 12


def test_a_server_that_does_not_know_messages_of_several_items_refuses_each_of_them():
    stream = UpsertStream(WriteNames())
    stream.render([pb.UpsertItem()] * 3)
    stream.render([pb.UpsertItem()])
    refusal = pb.UpsertStudiesResponse(status=render_status(InvalidInputError("request has a field")))
    outcomes = stream.parse(0, refusal) + stream.parse(1, pb.UpsertStudiesResponse(item=1, sequence=7))
    assert [(one.item, one.value, type(one.error)) for one in outcomes] == [
        (0, None, InvalidInputError), (1, None, InvalidInputError), (2, None, InvalidInputError), (3, 7, type(None))
    ]  # fmt: skip


def test_a_study_that_is_stored_already_is_not_written_again(filled, make_study):
    before = filled.stats().sequence
    again = [outcome.value for outcome in filled.upsert(make_study(number) for number in range(12))]
    assert max(again) <= before
    assert filled.stats().sequence == before


def test_a_delete_sent_again_under_its_name_is_answered_as_before(stub, filled):
    request = pb.DeleteStudyRequest(study_id="study-3", request_id="gone")
    assert stub.DeleteStudy(request).sequence == stub.DeleteStudy(request).sequence
    with pytest.raises(grpc.RpcError) as caught:
        stub.DeleteStudy(pb.DeleteStudyRequest(study_id="study-3"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        stub.DeleteStudy(pb.DeleteStudyRequest(study_id="study-4", request_id="gone"))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS


def test_ready_embeddings_are_stored_as_given_and_the_others_are_made(filled, make_study, encoder):
    study, other = make_study(30), make_study(31)
    given = encoder.encode_ecg([other.ecg])[0]
    ready = EmbeddedStudy(study=study, embeddings={"ecg": given}, fingerprint=FINGERPRINT)
    assert [outcome.error for outcome in filled.upsert([ready])] == [None]
    hit = filled.search(ecg=other.ecg, top_k=1).hits[0]
    assert (hit.study_id, hit.score) == ("study-30", pytest.approx(1.0, abs=1e-5))
    hit = filled.search(text=study.report.raw, target="text", top_k=1).hits[0]
    assert set(hit.modality_scores) == {"ecg", "text", "vitals"}


@pytest.mark.parametrize(("changes", "error"), [
    ({"fingerprint": "e" * 64}, FingerprintMismatchError),
    ({"embeddings": {"ecg": np.ones(3, np.float32)}}, QueryError),
    ({"embeddings": {"text": np.ones(256, np.float32) / 16}}, QueryError),
])  # fmt: skip
def test_embeddings_that_do_not_fit_are_refused_and_nothing_is_stored(filled, make_study, encoder, changes, error):
    study = dataclasses.replace(make_study(30), report=None, notes=())
    good = {"embeddings": {"ecg": encoder.encode_ecg([study.ecg])[0]}, "fingerprint": FINGERPRINT}
    (outcome,) = filled.upsert([EmbeddedStudy(study=study, **(good | changes))])
    assert isinstance(outcome.error, error)
    with pytest.raises(StudyNotFoundError):
        filled.get_study("study-30")


def test_a_report_that_comes_after_the_ecg_is_found(filled, make_study):
    early = dataclasses.replace(make_study(40), report=None, notes=())
    list(filled.upsert([early]))
    study, etag = filled.get_tagged_study("study-40")
    assert study.report is None
    report = Report.from_text("complete heart block with a wide escape rhythm")
    filled.update_study(dataclasses.replace(early, report=report, site="elsewhere"), ["report"], etag=etag)
    changed, new_etag = filled.get_tagged_study("study-40")
    assert (changed.report, changed.site, changed.vitals) == (report, early.site, early.vitals)
    assert new_etag != etag
    assert filled.search(text=report.raw, target="text", top_k=1).hits[0].study_id == "study-40"
    with pytest.raises(ConflictError, match="read it again"):
        filled.update_study(dataclasses.replace(early, report=None), ["report"], etag=etag)
    assert filled.get_study("study-40").report == report
    filled.update_study(dataclasses.replace(early, report=None), ["report"])
    assert filled.get_study("study-40").report is None


def test_an_update_sent_again_under_its_name_does_nothing(stub, filled, make_study):
    change = update_request(dataclasses.replace(make_study(5), site="ward"), ["site"], "", "moved")
    first = stub.UpdateStudy(change).sequence
    filled.update_study(dataclasses.replace(make_study(5), site="home"), ["site"])
    assert stub.UpdateStudy(change).sequence == first
    assert filled.get_study("study-5").site == "home"


@pytest.mark.parametrize("mask", [[], ["subject_id"], ["study_id"], ["nothing"], ["report.raw"]])
def test_a_mask_that_names_what_cannot_be_changed_is_refused(stub, filled, make_study, mask):
    request = update_request(make_study(5), ["site"], "", "")
    request.update_mask.paths[:] = mask
    with pytest.raises(grpc.RpcError, match="update_mask") as caught:
        stub.UpdateStudy(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_update_that_empties_a_study_is_refused(filled, make_study):
    with pytest.raises(InvalidInputError, match="empty"):
        filled.update_study(Study(study_id="study-5", subject_id="s"), ["ecg", "report", "notes", "vitals"])
    assert filled.get_study("study-5").ecg is not None


def test_counting(filled):
    assert filled.count_studies() == 12
    assert filled.count_studies(Filter(sex="female")) == 6
    assert filled.count_studies(Filter(labels_any=frozenset({"NORM"}))) == 3


def test_a_search_sees_what_was_acknowledged(filled, make_study):
    (outcome,) = filled.upsert([make_study(50)])
    found = filled.search(ecg=make_study(50).ecg, top_k=1, min_sequence=outcome.value)
    assert found.hits[0].study_id == "study-50"
    with pytest.raises(NotReadyError, match="min_sequence"):
        filled.search(ecg=make_study(50).ecg, top_k=1, min_sequence=outcome.value + 1)


def test_the_asynchronous_client_does_the_same(filled, address, make_study):
    async def run():
        async with AsyncClient(address) as client:
            study, etag = await client.get_tagged_study("study-1")
            await client.update_study(dataclasses.replace(study, device="new"), ["device"], etag=etag)
            assert (await client.get_study("study-1")).device == "new"
            assert await client.count_studies(Filter(devices=frozenset({"new"}))) == 1

    asyncio.run(run())


def test_a_full_disk_is_told_to_a_stream_at_once(config, encoder, tmp_path, make_study):
    with (
        Corpus.create(tmp_path / "full", FINGERPRINT, reserve_bytes=2**62) as corpus,
        Server(config) as server,
        Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1))) as client,
    ):
        server.serve(Retriever(encoder, corpus))
        errors = [outcome.error for outcome in client.upsert([make_study(1), make_study(2)])]
        assert [type(error) for error in errors] == [OverloadedError] * 2
        assert all("disk" in str(error) for error in errors)
        assert client.count_studies() == 0
