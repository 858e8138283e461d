"""The short form of overload and soak (the long one: benchmarks/bench_load.py). No time is asserted."""

import collections
import json
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mmecg_pb.v1 import corpus_service_pb2 as corpus_pb
from mmecg_pb.v1 import corpus_service_pb2_grpc, search_service_pb2_grpc
from mmecg_server.interceptors import SPARE_THREADS
from mmecg_server.server import Server

from mmecg.client.corpus_requests import upsert_request
from mmecg.client.requests import search_request
from mmecg.retriever import Query, Retriever

CALLS, STREAMS = 4, 2
CALLERS = 3 * CALLS
SECONDS = 1.0
HANDLES = Path("/proc/self/fd")


@pytest.fixture
def server(config, encoder, corpus, make_study):
    limits = replace(config.limits, max_in_flight=CALLS, max_streams=STREAMS)
    with Server(replace(config, limits=limits)) as server:
        retriever = Retriever(encoder, corpus)
        retriever.ingest(make_study(number) for number in range(12))
        server.serve(retriever)
        yield server


@pytest.fixture
def metric(server):
    """Return the value of a metric by name and labels."""
    return lambda name, **labels: server.metrics.registry.get_sample_value(name, labels)


def outcome_of(call) -> str:
    """Return the name of a call's status, and whether a refusal says when to try again."""
    try:
        call()
    except grpc.RpcError as error:
        details = rpc_status.from_call(error).details
        says_when = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
        return f"{error.code().name}{', retry later' if says_when else ''}"
    return "OK"


def load(address: str, make_ecg, make_study) -> collections.Counter:
    """Search, store and delete from three times as many callers as there are places; return what became of it."""
    outcomes: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + SECONDS
    with grpc.insecure_channel(address) as channel:
        search = search_service_pb2_grpc.SearchServiceStub(channel).Search
        corpus = corpus_service_pb2_grpc.CorpusServiceStub(channel)
        request = search_request(Query(ecg=make_ecg(0)), {"top_k": 3})

        def store_and_delete(number: int) -> None:
            study = replace(make_study(number), study_id=f"study-9{number}")
            (answer,) = corpus.UpsertStudies(iter([upsert_request(study, "")]))
            assert answer.sequence
            while outcome_of(lambda: corpus.DeleteStudy(corpus_pb.DeleteStudyRequest(study_id=study.study_id))) != "OK":
                time.sleep(0.001)

        def caller(place: int) -> None:
            for turn in count():
                if time.monotonic() > end:
                    return
                stores = place % CALLERS < 2 * STREAMS
                number = 100 * turn + place
                call = partial(store_and_delete, number) if stores else partial(search, request)
                outcomes[outcome_of(call)] += 1

        callers = [threading.Thread(target=caller, args=(place,)) for place in range(CALLERS + 2 * STREAMS)]
        for each in callers:
            each.start()
        for each in callers:
            each.join()
    return outcomes


def test_a_refusal_reads_nothing_and_many_alike_are_counted_and_shown_once(address, metric, log_lines, make_ecg):
    """While calls without a request hold every place; each refusal is counted, few of them make a line."""
    request = search_request(Query(ecg=make_ecg(0)), {"top_k": 3})
    left = threading.Event()

    def nothing():
        left.wait(120)
        yield from ()

    refused = 200
    with grpc.insecure_channel(address) as channel:
        half_open = channel.stream_stream("/mmecg.v1.InfoService/GetServerInfo")
        held = [half_open(nothing()) for _ in range(CALLS)]
        while metric("mmecg_calls_in_flight", kind="unary") < CALLS:
            time.sleep(0.01)
        search = search_service_pb2_grpc.SearchServiceStub(channel).Search
        outcomes = collections.Counter(outcome_of(partial(search, request)) for _ in range(refused))
        assert outcomes == {"RESOURCE_EXHAUSTED, retry later": refused}
        left.set()
        for call in held:
            call.cancel()
    method = "SearchService/Search"
    assert metric("mmecg_calls_total", method=method, code="RESOURCE_EXHAUSTED") == refused
    assert metric("mmecg_calls_refused_total", reason="calls") == refused
    assert metric("mmecg_received_bytes_total", method=method) == 0

    def shown() -> tuple[int, int]:
        lines = [line for line in map(json.loads, log_lines) if line.get("code") == "RESOURCE_EXHAUSTED"]
        return sum(line.get("more", 1) for line in lines), len(lines)

    deadline = time.monotonic() + 60
    while shown()[0] < refused and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shown()[0] == refused
    assert shown()[1] < refused / 2


def handles() -> int:
    """Return how many file handles the process has open."""
    return len(list(HANDLES.iterdir()))


def threads() -> collections.Counter:
    """Return the threads of the server by kind."""
    return collections.Counter(each.name.rpartition("_")[0] or each.name for each in threading.enumerate())


@pytest.mark.skipif(not HANDLES.is_dir(), reason="counts file handles by /proc")
def test_too_much_load_is_refused_and_leaves_nothing_behind(address, make_ecg, make_study) -> None:
    before, idle = handles(), threads()["call"]  # those of servers of earlier tests may still be ending
    for _ in range(3):
        outcomes = load(address, make_ecg, make_study)
        assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED, retry later"}
    deadline = time.monotonic() + 30
    while threads() & collections.Counter(["stream-ahead", "stream-reader"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = threads()
    assert not left["stream-ahead"] + left["stream-reader"]
    assert left["call"] <= idle + CALLS + STREAMS + SPARE_THREADS
    # Connections to the database stay open for the next readers: three handles each, however many calls there were.
    assert sum(outcomes.values()) > 5 * CALLS
    assert handles() <= before + 3 * (CALLS + STREAMS)
    with grpc.insecure_channel(address) as channel:
        found = search_service_pb2_grpc.SearchServiceStub(channel).Search(
            search_request(Query(ecg=make_ecg(0)), {"top_k": 3})
        )
        stats = corpus_service_pb2_grpc.CorpusServiceStub(channel).GetStats(corpus_pb.GetStatsRequest())
    assert (len(found.hits), stats.studies) == (3, 12)
