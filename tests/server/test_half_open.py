"""Calls whose client sends headers and no request, and what becomes of those of others meanwhile."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mmecg_pb.v1 import corpus_service_pb2 as corpus_pb
from mmecg_pb.v1 import corpus_service_pb2_grpc, info_service_pb2, info_service_pb2_grpc
from mmecg_server import open_services
from mmecg_server.config import AuthConfig
from mmecg_server.principals import new_token
from mmecg_server.server import Server

INFO = "/mmecg.v1.InfoService/GetServerInfo"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
MANY = 60
SOON_S = 60  # that it happens, not how fast


@pytest.fixture
def serve(config, retriever):
    """Start a server with limits; returns it and its address."""
    started = []

    def start(auth: AuthConfig | None = None, **limits):
        started.append(Server(replace(config, limits=replace(config.limits, **limits), auth=auth or AuthConfig())))
        started[-1].serve(retriever)
        return started[-1], f"127.0.0.1:{started[-1].port}"

    yield start
    for server in started:
        server.stop()


@contextmanager
def half_open(address: str, method: str, count: int, **metadata: str):
    """Open calls that never send anything; returns them."""
    end = threading.Event()

    def nothing():
        end.wait(SOON_S)
        yield from ()

    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        open_call = channel.stream_stream(method)
        calls = [open_call(nothing(), metadata=tuple(metadata.items())) for _ in range(count)]
        try:
            yield calls
        finally:
            end.set()
            for call in calls:
                call.cancel()


def code_of(call: object) -> grpc.StatusCode:
    """Return how a call ended, which it does within some time."""
    deadline = time.monotonic() + SOON_S
    while call.code() is None if call.done() else True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return call.code()


def health_of(address: str) -> object:
    """Ask over a connection of its own."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return check(health_pb2.HealthCheckRequest(), timeout=SOON_S).status


def info_of(address: str, **metadata: str) -> Message:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = info_service_pb2_grpc.InfoServiceStub(channel)
        request = info_service_pb2.GetServerInfoRequest()
        return stub.GetServerInfo(request, timeout=SOON_S, metadata=tuple(metadata.items()))


def running(server: Server) -> float:
    """Return how many places of unary calls are taken."""
    return server.metrics.registry.get_sample_value("mmecg_calls_in_flight", {"kind": "unary"})


def until(condition) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("method", [CHECK, WATCH, "/grpc.health.v1.Health/List", "/mmecg.v1.No/Such", "/a"])
def test_strangers_with_half_open_calls_hold_nothing_that_others_need(serve, method):
    server, address = serve()
    with half_open(address, method, MANY):
        for _ in range(3):
            assert health_of(address) == SERVING
            assert info_of(address).fingerprint
        assert running(server) == 0


def test_a_caller_with_half_open_calls_holds_its_share_of_the_places_and_no_more(serve, tmp_path):
    token, entry = new_token("a", ["reader"])
    other, another = new_token("b", ["reader"])
    (tmp_path / "p.toml").write_text(entry + another)
    principals = AuthConfig(principals=tmp_path / "p.toml")
    server, address = serve(principals, max_in_flight=4, max_in_flight_per_principal=2)
    with half_open(address, INFO, MANY) as strangers:
        assert {code_of(call) for call in strangers} == {grpc.StatusCode.UNAUTHENTICATED}
    with half_open(address, INFO, MANY, authorization=f"Bearer {token}") as calls:
        until(lambda: sum(call.done() for call in calls) == MANY - 2)
        assert running(server) == 2
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert info_of(address, authorization=f"Bearer {other}").fingerprint
        assert health_of(address) == SERVING
    until(lambda: running(server) == 0)
    assert info_of(address, authorization=f"Bearer {token}").fingerprint


def test_half_open_calls_beyond_the_places_are_refused_and_those_in_them_end_by_themselves(serve):
    server, address = serve(max_in_flight=3, default_deadline_s=2.0)
    with half_open(address, INFO, MANY) as calls:
        until(lambda: sum(call.done() for call in calls) >= MANY - 3)
        assert health_of(address) == SERVING
        codes = [code_of(call) for call in calls]
        assert codes.count(grpc.StatusCode.CANCELLED) == 3
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == MANY - 3
        until(lambda: running(server) == 0)
        assert info_of(address).fingerprint


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_a_half_open_question_about_health_ends_by_itself(serve, monkeypatch, method):
    monkeypatch.setattr(open_services, "OPEN_S", 0.5)
    _, address = serve()
    with half_open(address, method, 3) as calls:
        assert {code_of(call) for call in calls} == {grpc.StatusCode.CANCELLED}


def test_the_oldest_half_open_question_gives_its_thread_to_the_newest(serve):
    _, address = serve()
    with half_open(address, CHECK, open_services.OPEN_THREADS + 5) as calls:
        until(lambda: sum(call.done() for call in calls) == 5)
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("method", [INFO, CHECK])
def test_a_unary_call_takes_one_request(serve, method):
    """None is an error of its caller's; what follows the first is not read. Both ends still call it unary."""
    server, address = serve()
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=SOON_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert call(iter([b"", b"\xff"]), timeout=SOON_S)
        assert channel.unary_unary(method)(b"", timeout=SOON_S)
    assert running(server) == 0


def test_health_is_watched_by_a_bounded_number_without_a_thread(config, retriever):
    limits = replace(config.limits, max_connections=open_services.OPEN_THREADS + 20)
    request = health_pb2.HealthCheckRequest()
    with Server(replace(config, limits=limits)) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = [stub.Watch(request) for _ in range(limits.max_connections)]
        assert {next(call).status for call in watched} == {NOT_SERVING}
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.serve(retriever)
        assert {next(call).status for call in watched} == {SERVING}
        for call in watched:
            call.cancel()

        def is_free() -> bool:
            again = stub.Watch(request)
            try:
                return next(again).status == SERVING
            except grpc.RpcError:
                return False
            finally:
                again.cancel()

        until(is_free)


def test_reflection_says_unary(serve):
    _, address = serve()
    with grpc.insecure_channel(address) as channel:
        ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="mmecg.v1.InfoService")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([ask]), timeout=SOON_S)
    assert len(answer.file_descriptor_response.file_descriptor_proto) >= 1
    method = info_service_pb2.DESCRIPTOR.services_by_name["InfoService"].methods_by_name["GetServerInfo"]
    assert not method.client_streaming


def test_a_large_request_of_an_admitted_call_comes_whole(serve, make_study):
    _, address = serve(max_message_bytes=32 * 2**20)
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
        request = corpus_pb.GetStudyRequest(study_id="x" * (20 * 2**20))
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetStudy(request, timeout=SOON_S)
        assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
