"""Label mining over gRPC: the real miner behind a real server, asked through both clients."""

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest
from mmecg_server.config import ServerConfig
from mmecg_server.server import Server

from mmecg.client import AsyncClient, Client
from mmecg.errors import InvalidInputError, QueryError, ReportError, StudyNotFoundError
from mmecg.labels.assertion import Resolution, SerialResolution, Status
from mmecg.labels.report_miner import ReportMiner
from mmecg.report import MAX_TEXT_CHARS, Report
from mmecg.retriever import Retriever

TEXT = "Sinus rhythm. Possible inferior infarct, no évidence of it before. No left bundle branch block."


@pytest.fixture(scope="module")
def miner() -> ReportMiner:
    return ReportMiner()


@pytest.fixture
def server(config: ServerConfig, retriever: Retriever, miner: ReportMiner) -> Iterator[Server]:
    with Server(config) as server:
        server.serve(retriever, miner)
        yield server


def test_the_server_says_what_the_library_says(client: Client, miner: ReportMiner):
    got = client.mine_labels(TEXT)
    assert got == miner.mine_report(TEXT)
    said = {assertion.finding: assertion for assertion in got.assertions}
    assert said["SR"].status is Status.PRESENT
    assert said["IMI"].status is Status.POSSIBLE
    assert said["CLBBB"].status is Status.NEGATED
    assert TEXT[said["CLBBB"].start : said["CLBBB"].end].lower() == "left bundle branch block"
    values = {label.finding: label.value for label in got.labels}
    assert (values["SR"], values["IMI"], values["CLBBB"]) == (True, None, False)
    assert "AFIB" not in values


def test_labels_come_in_the_code_system_asked_for(client: Client):
    labels = client.mine_labels("atrial fibrillation", vocabulary="snomed").labels
    # The exact code first; "atrial fibrillation and flutter" is broader, so it holds too.
    assert [(label.finding, label.code) for label in labels] == [("AFIB", "164889003"), ("AFIB", "195080001")]


def test_the_report_of_a_study_is_mined(client: Client, make_study):
    raw = "Vorhofflimmern. Edit: LVH 50"
    study = dataclasses.replace(make_study(1), report=Report.from_ptb_xl(raw))
    assert [outcome.error for outcome in client.upsert([study])] == [None]
    got = client.mine_labels(study_id=study.study_id)
    assert {assertion.finding for assertion in got.assertions} == {"AFIB"}
    (assertion,) = got.assertions
    assert raw[assertion.start : assertion.end] == "Vorhofflimmern"


def test_serial_statements_of_a_study_are_looked_up(client: Client, make_study):
    report = Report.from_text("Sinus rhythm has replaced atrial fibrillation. No significant change in QT.")
    before, now = (dataclasses.replace(make_study(number), labels={}) for number in (0, 1))
    later = dataclasses.replace(make_study(2), subject_id=now.subject_id, labels={"AFIB": 100.0})
    now = dataclasses.replace(now, report=report)
    assert [outcome.error for outcome in client.upsert([now, later])] == [None] * 2
    alone = {one.finding: one.serial for one in client.mine_labels(study_id=now.study_id).assertions}
    assert alone["AFIB"] == SerialResolution(Resolution.NEEDS_PRIOR, "no_prior", False, True)
    before = dataclasses.replace(before, report=Report.from_text("Atrial fibrillation."))
    assert [outcome.error for outcome in client.upsert([before])] == [None]
    found = {one.finding: one for one in client.mine_labels(study_id=now.study_id).assertions}
    assert (found["AFIB"].change, found["SR"].change) == ("disappeared", "appeared")
    assert found["AFIB"].serial == SerialResolution(
        Resolution.CONSISTENT, "", False, True, True, before.study_id, days_since_prior=1.0
    )
    assert found["SR"].serial == SerialResolution(
        Resolution.CONSISTENT, "", True, False, False, before.study_id, days_since_prior=1.0
    )
    assert all(one.serial is None for one in client.mine_labels(report.raw).assertions)


def test_a_stream_answers_every_item_in_its_place(client: Client):
    texts = ["sinus rhythm", "bad \x00 text", "vorhofflimmern", "sinus \udcff rhythm", ""]
    outcomes = list(client.mine_labels_many(texts))
    assert [outcome.item for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert isinstance(outcomes[1].error, ReportError)
    assert isinstance(outcomes[3].error, ReportError)
    assert "surrogate" in str(outcomes[3].error)
    findings = [[one.finding for one in outcome.value.assertions] for outcome in outcomes if outcome.value]
    assert findings == [["SR"], ["AFIB"], []]


def test_the_async_client_mines_too(client: Client, address: str):
    async def ask():
        async with AsyncClient(address) as other:
            one = await other.mine_labels(TEXT)
            return one, [outcome async for outcome in other.mine_labels_many([TEXT, "\udcff", TEXT])]

    one, many = asyncio.run(ask())
    expected = client.mine_labels(TEXT)
    assert [one, *(outcome.value for outcome in many)] == [expected, expected, None, expected]
    assert isinstance(many[1].error, ReportError)


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"text": TEXT, "language": "fr"}, InvalidInputError, "language"),
        ({"text": TEXT, "vocabulary": "icd9"}, InvalidInputError, "vocabulary"),
        ({"text": "x" * (MAX_TEXT_CHARS + 1)}, ReportError, "text"),
        ({"study_id": "nobody"}, StudyNotFoundError, None),
        ({"text": "sinus \udcff"}, ReportError, "text"),
        ({}, QueryError, "text"),
    ],
    ids=["language", "vocabulary", "long", "study", "surrogate", "nothing"],
)
def test_what_cannot_be_mined_is_refused(client: Client, arguments, error, field):
    with pytest.raises(error) as caught:
        client.mine_labels(**arguments)
    assert getattr(caught.value, "field", None) == field
    assert TEXT not in str(caught.value)
