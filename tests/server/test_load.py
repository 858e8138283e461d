"""The short form of overload and soak (the long one: benchmarks/bench_load.py). No time is asserted."""

import collections
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
def address(config, encoder, corpus, make_study):
    limits = replace(config.limits, max_in_flight=CALLS, max_streams=STREAMS)
    with Server(replace(config, limits=limits)) as server:
        retriever = Retriever(encoder, corpus)
        retriever.ingest(make_study(number) for number in range(12))
        server.serve(retriever)
        yield f"127.0.0.1:{server.port}"


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
