"""Prediction over gRPC: the real predictor behind a real server, asked through both clients.

It stands beside the tests of the predictor for their heads, whose weights are drawn at random.
"""

import asyncio
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import prediction_service_pb2 as pb
from mmecg_pb.v1 import prediction_service_pb2_grpc
from mmecg_server.__main__ import open_predictor, warm_up
from mmecg_server.config import AuthConfig, LimitsConfig, ServerConfig
from mmecg_server.prediction_service import MAX_EXPLANATIONS
from mmecg_server.principals import new_token
from mmecg_server.server import Server
from mmecg_server.service import PREDICTION, SERVICES

from mmecg.bundle import load_bundle
from mmecg.client import AsyncClient, ChannelOptions, Client, RetryPolicy
from mmecg.client.prediction_messages import MAX_EXTRA_HISTORY, render_ecg, render_prediction
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.errors import BundleError, InvalidInputError, OverloadedError, QueryError, StudyNotFoundError
from mmecg.labels.report_miner import ReportMiner
from mmecg.prediction.heads import HEADS_FILE, write_heads
from mmecg.prediction.predictor import Predictor
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import PredictionOptions
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.study import Study

NOW = datetime(2024, 5, 1)
ONCE = ChannelOptions(retry=RetryPolicy(attempts=1))


def make_ecg(seed, rate=100.0):
    """A recording of whole microvolts, which the wire carries as it is."""
    made = synthetic_ecg(sampling_rate_hz=rate, seed=seed)
    return Ecg.from_array(np.rint(made.signal * 1000) / np.float32(1000), sampling_rate_hz=rate)


def make_study(number, subject="kim", **changes):
    study = Study(
        study_id=f"{subject}-{number}",
        subject_id=subject,
        acquired_at=NOW - timedelta(days=100 * number),
        ecg=make_ecg(number),
        labels={"AFIB" if number % 2 else "NORM": 100.0},
    )
    return dataclasses.replace(study, **changes)


@pytest.fixture(scope="module")
def retriever(bundle, tmp_path_factory):
    """Four studies of kim, of which the last is of today, and 24 of others."""
    stored = [
        make_study(1),
        make_study(2, labels={}, report=Report.from_text("Atrial fibrillation.")),
        make_study(3, labels={}),
        make_study(0),
        *(make_study(number, f"other{number}") for number in range(10, 34)),
    ]
    with Corpus.create(tmp_path_factory.mktemp("prediction") / "corpus", bundle.fingerprint) as corpus:
        retriever = Retriever(bundle.encoder, corpus)
        retriever.ingest(stored)
        yield retriever


@pytest.fixture(scope="module")
def predictor(bundle, heads, retriever):
    return Predictor(bundle, retriever.corpus, heads=heads)


@pytest.fixture(scope="module")
def address(retriever, predictor):
    limits = LimitsConfig(max_message_bytes=8 * 2**20, max_batch=8)
    with Server(ServerConfig(port=0, drain_s=5, limits=limits)) as server:
        server.serve(retriever, None, predictor)
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def client(address):
    with Client(address, ONCE) as client:
        yield client


def health_of(address):
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return {name: stub.Check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", *SERVICES)}


@pytest.mark.parametrize("options", [PredictionOptions(), PredictionOptions(labels=("AFIB", "BBB"), use_cohort=False)])
@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_the_server_says_what_the_library_says(client, predictor, options, rate):
    asked = {"subject_id": "kim", "as_of": NOW, "options": options}
    got, wanted = client.predict(make_ecg(7, rate), **asked), predictor.predict(make_ecg(7, rate), **asked)
    assert render_prediction(got) == render_prediction(wanted)
    assert [one.study_id for one in got.priors] == ["kim-1", "kim-2", "kim-3"]
    assert [one.source for one in got.priors] == ["labels", "report", "ecg"]
    assert bool(got.neighbours) is options.use_cohort
    assert len(got.labels) == (76 if options.labels is None else 2)


def test_a_study_of_the_corpus_is_predicted_as_if_it_were_sent(client):
    sent = client.predict(make_study(1))
    assert render_prediction(client.predict(study_id="kim-1")) == render_prediction(sent)
    assert [one.study_id for one in sent.priors] == ["kim-2", "kim-3"]
    assert sent.as_of == make_study(1).acquired_at
    assert all(one.days_before > 0 for one in sent.priors)


def test_the_caller_adds_history(client):
    added = [make_study(1, labels={"CLBBB": 100.0}), make_study(9)]
    got = client.predict(make_study(0), extra_history=added)
    assert [one.study_id for one in got.priors] == ["kim-1", "kim-2", "kim-3", "kim-9"]
    assert (got.history_found, got.history_used) == (4, 4)
    with pytest.raises(QueryError, match="another subject") as caught:
        client.predict(make_study(0), extra_history=[make_study(1, "other")])
    assert caught.value.field == "extra_history"
    with pytest.raises(QueryError, match=f"has {MAX_EXTRA_HISTORY + 1} studies, expected at most"):
        client.predict(make_study(0), extra_history=[make_study(1, ecg=None)] * (MAX_EXTRA_HISTORY + 1))
    assert client.info().limits["max_extra_history"] == MAX_EXTRA_HISTORY


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"subject_id": "nobody", "as_of": NOW}, "unknown_subject"),
        ({"subject_id": "kim", "as_of": NOW - timedelta(days=1000)}, "no_history"),
        ({"subject_id": "kim"}, "no_as_of"),
        ({"subject_id": "kim", "as_of": datetime(2999, 1, 1)}, "as_of_in_future"),
        ({"as_of": NOW}, "no_subject"),
    ],
)
def test_what_is_odd_is_flagged(client, arguments, flag):
    got = client.predict(make_ecg(7), **arguments)
    assert flag in got.flags
    assert (got.history_used == 0) or flag == "as_of_in_future"
    assert all(one.probability == one.single for one in got.labels if not got.history_used)


def test_a_study_of_another_subject_is_refused(client):
    with pytest.raises(QueryError, match="not the subject of the study") as caught:
        client.predict(make_study(0), subject_id="other")
    assert caught.value.field == "subject_id"


def test_a_stream_answers_every_item_in_its_place(client):
    asked = [
        PredictionQuery(study=make_study(0)),
        PredictionQuery(study=make_study(1), options=PredictionOptions(labels=("NOSUCH",))),
        PredictionQuery(study=make_study(2), options=PredictionOptions(labels=("AFIB",))),
        PredictionQuery(study=make_study(3), extra_history=[make_study(1, "other")]),
        *(PredictionQuery(study=make_ecg(number)) for number in range(20)),
    ]
    outcomes = list(client.predict_many(iter(asked)))
    assert [outcome.item for outcome in outcomes] == list(range(24))
    assert [outcome.item for outcome in outcomes if isinstance(outcome.error, QueryError)] == [1, 3]
    for place in (0, 2):
        alone = client.predict(asked[place].study, options=asked[place].options)
        for one, other in zip(outcomes[place].value.labels, alone.labels, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_the_async_client_predicts_too(address, client):
    async def ask():
        async with AsyncClient(address, ONCE) as other:
            one = await other.predict(make_study(0))
            many = [outcome async for outcome in other.predict_many([PredictionQuery(study=make_study(0))])]
            return one, many[0].value, await other.explain(study_id="kim-1", label="AFIB")

    one, many, saliency = asyncio.run(ask())
    assert render_prediction(one) == render_prediction(many) == render_prediction(client.predict(make_study(0)))
    assert saliency.values.shape == (12, 250)


def test_an_explanation_adds_up(client, predictor):
    got = client.explain(make_study(1), label="AFIB", values_per_s=10)
    whole = predictor.explain(make_study(1).ecg, "AFIB")
    assert got.values.shape == (12, 100)
    np.testing.assert_allclose(got.values.sum(axis=1), whole.values.sum(axis=1), atol=1e-3)
    np.testing.assert_allclose(got.values[:, 3], whole.values[:, 30:40].sum(axis=1), atol=1e-4)
    assert (got.logit, got.baseline_logit) == pytest.approx((whole.logit, whole.baseline_logit), abs=1e-4)
    assert client.explain(study_id="kim-1", label="AFIB", values_per_s=1000).values.shape == (12, 1000)


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"label": "all"}, QueryError, "label"),
        ({"label": ""}, QueryError, "label"),
        ({"label": "NOSUCH"}, QueryError, "options.labels"),
        ({"label": "AFIB", "values_per_s": 0.5}, QueryError, "sampling_rate_hz"),
        ({"label": "AFIB", "study_id": "nobody-7"}, StudyNotFoundError, None),
    ],
)
def test_what_cannot_be_explained_is_refused(client, arguments, error, field):
    source = None if "study_id" in arguments else make_ecg(1)
    with pytest.raises(error) as caught:
        client.explain(source, **arguments)
    assert getattr(caught.value, "field", None) == field


def test_explanations_keep_their_deadline(address, client):
    hurry = ChannelOptions(timeout_s=0.01, retry=RetryPolicy(attempts=1))
    with Client(address, hurry) as hasty, pytest.raises(TimeoutError):
        hasty.explain(make_ecg(1), label="AFIB", method="occlusion")
    assert client.predict(make_ecg(1)).labels


def test_explanations_that_wait_leave_room_for_predictions(address, client):
    short = make_ecg(1).crop(0, 2)

    def ask(_):
        try:
            return client.explain(short, label="AFIB")
        except OverloadedError as error:
            return error

    with ThreadPoolExecutor(3 * MAX_EXPLANATIONS) as pool:
        answers = list(pool.map(ask, range(3 * MAX_EXPLANATIONS)))
    refused = [one for one in answers if isinstance(one, OverloadedError)]
    assert 1 <= len(answers) - len(refused) <= len(answers) - 1
    assert "explanations run or wait" in str(refused[0])
    assert client.explain(short, label="AFIB").values.shape[0] == 12, "there is room again"


def test_requests_that_no_client_sends_are_refused(address):
    ecg = render_ecg(make_ecg(1))
    unknown = pb.PredictionOptions.FromString(b"\xfa\x3f\x01x")
    bad = [
        pb.PredictRequest(),
        pb.PredictRequest(ecg=ecg, options=unknown),
        pb.PredictRequest(ecg=ecg, options=pb.PredictionOptions(level=float("nan"))),
        pb.PredictRequest(ecg=ecg, subject_id=" kim"),
        pb.PredictRequest(study_id=""),
    ]
    bad[1].as_of.seconds = 2**50
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for request in bad:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            stub.ExplainPrediction(pb.ExplainPredictionRequest(ecg=ecg, label="AFIB", method=9))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            stub.ExplainPrediction(pb.ExplainPredictionRequest(label="AFIB"))
        assert "no source" in caught.value.details()


def test_a_server_without_heads_serves_the_rest(retriever, address):
    with Server(ServerConfig(port=0, drain_s=5)) as server:
        server.serve(retriever)
        lone = f"127.0.0.1:{server.port}"
        with Client(lone, ONCE) as client:
            for call in (lambda: client.predict(make_ecg(1)), lambda: client.explain(make_ecg(1), label="AFIB")):
                with pytest.raises(BundleError, match="the server's bundle has no prediction heads") as caught:
                    call()
                assert "/" not in str(caught.value)
            with pytest.raises(BundleError, match="no prediction heads"):
                list(client.predict_many([PredictionQuery(study=make_ecg(1))]))
            assert len(client.search(ecg=make_ecg(1), top_k=3).hits) == 3
        with grpc.insecure_channel(lone) as channel, pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(pb.PredictRequest(study_id="kim-1"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        serving = health_pb2.HealthCheckResponse.SERVING
        assert [name for name, status in health_of(lone).items() if status != serving] == [PREDICTION]
        assert set(health_of(address).values()) == {serving}


def test_heads_are_read_if_there_are_any(bundle, heads, retriever, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("prediction"))
    copied = dataclasses.replace(bundle, path=tmp_path / "bundle")
    miner = ReportMiner()
    assert open_predictor(copied, retriever.corpus, miner) is None
    write_heads(copied, heads)
    found = open_predictor(copied, retriever.corpus, miner)
    assert found is not None
    warm_up(retriever, found)
    (copied.path / HEADS_FILE).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="train-heads"):
        open_predictor(copied, retriever.corpus, miner)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(copied.path)


def test_a_study_without_an_ecg_cannot_be_explained(client):
    (outcome,) = client.upsert([make_study(1, "note", ecg=None, report=Report.from_text("Sinus rhythm."))])
    assert outcome.error is None
    with pytest.raises(InvalidInputError, match="study has no ECG"):
        client.explain(study_id="note-1", label="AFIB")
    assert "no_ecg" in client.predict(study_id="note-1").flags


def test_history_and_votes_end_at_the_callers_scope(predictor, retriever, tmp_path):
    """As from a corpus that holds only what the caller may see; over the wire, and without a trace of the rest."""
    allowed = frozenset(["kim", *(f"other{number}" for number in range(10, 33))]) - {"other12"}
    with Corpus.create(tmp_path / "part", retriever.corpus.fingerprint) as corpus:
        ids = [name for name in retriever.corpus.list_studies(page_size=1000)[0] if name.rpartition("-")[0] in allowed]
        rows = retriever.corpus.rows(ids)
        corpus.upsert(retriever.corpus.get(ids), retriever.corpus.embeddings(rows))
        expected = predictor.over(corpus).predict(make_ecg(77), subject_id="kim", as_of=NOW)
    token, entry = new_token("ward", ["predictor"], subjects=sorted(allowed))
    other, more = new_token("elsewhere", ["predictor"], subjects=["nobody"])
    (tmp_path / "p.toml").write_text(entry + more)
    config = ServerConfig(port=0, drain_s=5, auth=AuthConfig(principals=tmp_path / "p.toml"))
    with Server(config) as server:
        server.serve(retriever, None, predictor)
        with Client(f"127.0.0.1:{server.port}", dataclasses.replace(ONCE, token=token)) as client:
            found = client.predict(make_ecg(77), subject_id="kim", as_of=NOW)
        with Client(f"127.0.0.1:{server.port}", dataclasses.replace(ONCE, token=other)) as client:
            blind = client.predict(make_ecg(77), subject_id="kim", as_of=NOW)
            with pytest.raises(StudyNotFoundError):
                client.predict(study_id="kim-0")
    assert [one.study_id for one in found.neighbours] == [one.study_id for one in expected.neighbours]
    assert "other12-12" not in {one.study_id for one in found.neighbours}
    assert (found.history_found, found.flags) == (expected.history_found, expected.flags)
    assert [one.probability for one in found.labels] == pytest.approx([one.probability for one in expected.labels])
    assert {"unknown_subject", "no_cohort"} <= set(blind.flags)
    assert not blind.priors
    assert not blind.neighbours
