"""End to end: real server, real client, real corpus."""

import asyncio
import queue
from datetime import datetime

import numpy as np
import pytest

from mmecg.client import AsyncClient, Client
from mmecg.errors import StudyNotFoundError, SubjectNotFoundError
from mmecg.retriever import Query
from mmecg.search import Filter
from mmecg.vitals import Vitals

FINGERPRINT = "f" * 64


def assert_same_study(got, expected) -> None:
    assert np.abs(got.ecg.signal - expected.ecg.signal).max() <= 0.0005 + 1e-6
    assert got.ecg.leads == expected.ecg.leads
    assert got.ecg.sampling_rate_hz == expected.ecg.sampling_rate_hz
    for name in ("study_id", "subject_id", "acquired_at", "report", "notes", "vitals", "site", "device"):
        assert getattr(got, name) == getattr(expected, name), name
    assert dict(got.labels) == dict(expected.labels)
    assert dict(got.attributes) == dict(expected.attributes)


def test_upsert_search_get_delete(filled: Client, make_study):
    result = filled.search(ecg=make_study(4).ecg, top_k=3)
    assert result.hits[0].study_id == "study-4"
    assert result.hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert set(result.hits[0].modality_scores) == {"ecg", "text", "vitals"}
    assert result.hits[0].study.vitals == make_study(4).vitals
    assert result.hits[0].study.ecg is None
    assert result.plan.exact
    assert result.plan.rows_total == result.plan.rows_passing == 12
    assert_same_study(filled.get_study("study-4"), make_study(4))
    before = filled.stats()
    assert filled.delete_study("study-4") > before.sequence
    with pytest.raises(StudyNotFoundError):
        filled.get_study("study-4")
    assert "study-4" not in [hit.study_id for hit in filled.search(ecg=make_study(4).ecg, top_k=12).hits]
    assert filled.stats().studies == before.studies - 1


@pytest.mark.parametrize("query", [
    {"text": "atrial fibrillation", "target": "text"},
    {"vitals": Vitals(age_years=45, sex="female"), "target": "vitals"},
    {"study_id": "study-3"},
    {"text": "infarction", "vitals": Vitals(age_years=45), "weights": {"text": 2.0, "vitals": 0.5}},
])  # fmt: skip
def test_search_agrees_with_the_retriever_in_process(filled: Client, retriever, query):
    options = {name: query[name] for name in ("target",) if name in query}
    parts = {name: value for name, value in query.items() if name != "target"}
    expected = retriever.search([Query(**parts)], 5, **options)[0]
    got = filled.search(top_k=5, **query)
    assert [hit.study_id for hit in got.hits] == [hit.study_id for hit in expected.hits]
    assert [hit.score for hit in got.hits] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
    assert got.plan == expected.plan


def test_search_by_embedding_round_trips(filled: Client, make_study):
    vector = filled.embed_ecg([make_study(7).ecg])[0]
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    hits = filled.search(embedding=vector, fingerprint=FINGERPRINT, top_k=1).hits
    assert hits[0].study_id == "study-7"


def test_same_subject_is_left_out_by_default(filled: Client):
    subjects = {hit.study.subject_id for hit in filled.search(study_id="study-3", top_k=12).hits}
    assert "subject-1" not in subjects
    with_own = filled.search(study_id="study-3", top_k=12, exclude_same_subject=False).hits
    assert "study-2" in [hit.study_id for hit in with_own]
    assert "study-3" not in [hit.study_id for hit in with_own]


def test_filter_reaches_the_search(filled: Client, make_study):
    where = Filter(sex="female", age_min_years=43, age_max_years=47, acquired_before=datetime(2020, 1, 7))
    result = filled.search(ecg=make_study(0).ecg, top_k=12, where=where)
    assert sorted(hit.study_id for hit in result.hits) == ["study-3", "study-5"]
    assert result.plan.rows_passing == 2


def test_pages_join_to_the_whole(filled: Client, make_study):
    ecg = make_study(0).ecg
    whole = [hit.study_id for hit in filled.search(ecg=ecg, top_k=12).hits]
    joined, token = [], ""
    while True:
        page = filled.search(ecg=ecg, top_k=5, page_token=token)
        joined += [hit.study_id for hit in page.hits]
        token = page.next_page_token
        if not token:
            break
    assert joined == whole


def test_hits_carry_what_was_asked_for(filled: Client, make_study):
    bare = filled.search(ecg=make_study(2).ecg, top_k=1, with_studies=False).hits[0]
    assert bare.study is None
    full = filled.search(ecg=make_study(2).ecg, top_k=1, with_signal=True).hits[0]
    assert_same_study(full.study, make_study(2))


def test_list_by_subject_and_all(filled: Client):
    assert [study.study_id for study in filled.list_studies("subject-2")] == ["study-4", "study-5"]
    assert len({study.study_id for study in filled.list_studies(page_size=5)}) == 12
    with pytest.raises(SubjectNotFoundError):
        list(filled.list_studies("nobody"))


def test_a_study_deleted_while_it_is_listed_is_skipped(filled: Client, retriever, monkeypatch):
    corpus, listed = retriever.corpus, retriever.corpus.list_studies

    def list_and_delete(**options):
        found = listed(**options)
        corpus.delete("study-4")
        return found

    monkeypatch.setattr(corpus, "list_studies", list_and_delete)
    assert [study.study_id for study in filled.list_studies("subject-2")] == ["study-5"]


def test_a_study_without_signal_in_the_answer_is_no_empty_study(filled: Client, make_study):
    from dataclasses import replace

    bare = replace(make_study(30), report=None, notes=(), vitals=Vitals())
    assert next(iter(filled.upsert([bare]))).error is None
    assert filled.get_study("study-30", with_signal=False).ecg is None


def test_embed_agrees_with_the_encoder(client: Client, encoder, make_ecg):
    ecgs = [make_ecg(1), make_ecg(2, leads=("II", "V1"), rate=250, seconds=4)]
    assert client.embed_ecg(ecgs) == pytest.approx(encoder.encode_ecg(ecgs), abs=2e-3)
    texts = ["normal ECG", "Vorhofflimmern"]
    assert client.embed_text(texts) == pytest.approx(encoder.encode_text(texts), abs=1e-6)
    vitals = [Vitals(age_years=50), Vitals(sex="male", heart_rate_bpm=72)]
    assert client.embed_vitals(vitals) == pytest.approx(encoder.encode_vitals(vitals), abs=1e-6)
    mixed = client.embed(Query(text=texts[0], vitals=vitals[0]))
    expected = encoder.encode_text(texts[:1])[0] + encoder.encode_vitals(vitals[:1])[0]
    assert mixed == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_array_and_wfdb_path_are_taken(filled: Client, make_study, tmp_path):
    ecg = make_study(6).ecg
    shuffled = list(reversed(ecg.leads))
    array = np.stack([ecg.signal[ecg.leads.index(lead)] for lead in shuffled])
    hits = filled.search(ecg=array, leads=shuffled, sampling_rate_hz=100, top_k=1).hits
    assert hits[0].study_id == "study-6"
    counts = np.rint(ecg.signal * 1000).astype("<i2")
    (tmp_path / "r.dat").write_bytes(counts.T.tobytes())
    lines = [f"r.dat 16 1000(0)/mV 16 0 {counts[i, 0]} {int(counts[i].sum()) % 65536} 0 {lead}"
             for i, lead in enumerate(ecg.leads)]  # fmt: skip
    (tmp_path / "r.hea").write_text(f"r 12 100 {counts.shape[1]}\n" + "\n".join(lines) + "\n")
    assert filled.search(ecg=tmp_path / "r", top_k=1).hits[0].study_id == "study-6"


def test_streams_answer_in_order_and_go_on_after_a_bad_item(filled: Client, make_study):
    queries = [Query(ecg=make_study(n).ecg) if n != 3 else Query(text=" ") for n in range(10)]
    found = list(filled.search_many(queries, top_k=1))
    assert [outcome.item for outcome in found] == list(range(10))
    assert [outcome.value and outcome.value.hits[0].study_id for outcome in found] == [
        None if n == 3 else f"study-{n}" for n in range(10)
    ]
    assert type(found[3].error).__name__ == "ReportError"
    embedded = list(filled.embed_many(queries))
    assert embedded[3].value is None
    assert embedded[5].value == pytest.approx(filled.embed(queries[5]), abs=1e-6)


def test_a_conversation_over_a_stream(filled: Client):
    answers = queue.Queue()

    def conversation():
        yield Query(text="sinus rhythm")
        yield Query(study_id=answers.get(timeout=60))

    for outcome in filled.search_many(conversation(), top_k=1):
        answers.put(outcome.value.hits[0].study_id)
    assert outcome.item == 1
    assert outcome.error is None


def test_upsert_replaces_and_the_last_of_two_wins(filled: Client, make_study):
    from dataclasses import replace

    first, second = replace(make_study(1), site="first"), replace(make_study(1), site="second")
    outcomes = list(filled.upsert([first, make_study(2), second]))
    assert all(outcome.error is None for outcome in outcomes)
    assert outcomes[2].value > outcomes[0].value
    assert filled.get_study("study-1").site == "second"
    assert filled.stats().studies == 12


def test_info_publishes_the_limits(client: Client, config):
    info = client.info()
    assert info.fingerprint == FINGERPRINT
    assert info.embedding_dim == 256
    assert info.limits["max_message_bytes"] == config.limits.max_message_bytes
    assert info.limits["max_in_flight"] == config.limits.max_in_flight
    assert "not for diagnosis" in info.intended_use.lower()


def test_asyncio_client_does_the_same(filled: Client, address: str, make_study):
    async def use() -> None:
        async with AsyncClient(address) as client:
            assert (await client.info()).fingerprint == FINGERPRINT
            results = await asyncio.gather(*(client.search(ecg=make_study(n).ecg, top_k=1) for n in range(12)))
            assert [result.hits[0].study_id for result in results] == [f"study-{n}" for n in range(12)]
            sequences = [outcome.value async for outcome in client.upsert([make_study(20), make_study(21)])]
            assert len(sequences) == 2
            assert (await client.stats()).studies == 14
            assert [study.study_id async for study in client.list_studies("subject-10")] == ["study-20", "study-21"]
            assert_same_study(await client.get_study("study-20"), make_study(20))
            assert await client.delete_study("study-20") > sequences[-1]
            with pytest.raises(StudyNotFoundError):
                await client.get_study("study-20")
            vector = (await client.embed_ecg([make_study(3).ecg]))[0]
            many = [outcome.value async for outcome in client.embed_many([Query(ecg=make_study(3).ecg)])]
            assert many[0] == pytest.approx(vector, abs=1e-6)
            assert (await client.embed_text(["sinus rhythm"])).shape == (1, 256)
            assert (await client.embed_vitals([Vitals(age_years=3)])).shape == (1, 256)
            assert (await client.embed(Query(text="sinus rhythm"))).shape == (256,)
            async for outcome in client.search_many([Query(text="sinus rhythm")], top_k=2):
                assert len(outcome.value.hits) == 2

            answered = asyncio.Event()

            async def conversation():
                yield Query(text="sinus rhythm")
                await answered.wait()
                yield Query(text="atrial fibrillation")

            found = []
            async for outcome in client.search_many(conversation(), top_k=1):
                found.append(outcome.value)
                answered.set()
            assert len(found) == 2

    asyncio.run(use())
