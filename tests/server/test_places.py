"""Clients that hold places: idle and endless streams, slow readers, streams closed on one side, many connections."""

import os
import resource
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from mmecg_pb.v1 import corpus_service_pb2 as corpus_pb
from mmecg_pb.v1 import corpus_service_pb2_grpc, search_service_pb2_grpc
from mmecg_pb.v1 import search_service_pb2 as search_pb
from mmecg_pb.v1.query_pb2 import Query
from mmecg_server.config import AuthConfig
from mmecg_server.principals import new_token
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import OverloadedError, UnauthenticatedError

ONCE = ChannelOptions(retry=RetryPolicy(attempts=1))


@pytest.fixture
def serve(config, retriever):
    """Start a server with limits; returns it and a channel to it."""
    started = []

    def start(auth: AuthConfig | None = None, **limits):
        server = Server(replace(config, limits=replace(config.limits, **limits), auth=auth or AuthConfig()))
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        started.append((server, channel))
        server.serve(retriever)
        return server, channel

    yield start
    for server, channel in started:
        channel.close()
        server.stop()


def until_free(client: Client, study) -> None:
    """Wait until a stream finds a place; the end of another may still be on its way."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert [outcome.error for outcome in client.upsert([study])] == [None]
        except OverloadedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


class Held:
    """An iterator of requests that never ends by itself."""

    def __init__(self, *first) -> None:
        self._first = list(first)
        self.ended = threading.Event()

    def __iter__(self):
        yield from self._first
        self.ended.wait(120)


def test_an_idle_stream_gives_its_place_back(serve, make_study):
    server, channel = serve(max_streams=1, stream_idle_s=0.4)
    stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
    held = Held()
    call = stub.UpsertStudies(iter(held))
    with Client(f"127.0.0.1:{server.port}", ONCE) as client, pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing was sent for 0.4 s" in caught.value.details()
    held.ended.set()
    with Client(f"127.0.0.1:{server.port}", ONCE) as client:
        until_free(client, make_study(1))


def test_a_reader_that_stands_still_is_cancelled(serve, make_study):
    server, channel = serve(max_streams=1, stream_idle_s=0.5)
    with Client(f"127.0.0.1:{server.port}", ONCE) as client:
        assert {outcome.error for outcome in client.upsert(map(make_study, range(20)))} == {None}
        request = search_pb.SearchRequest(query=Query(text="rhythm"), top_k=20)
        request.read_mask.paths.append("*")
        stream = [search_pb.SearchStreamRequest(request=request)] * 60  # some 30 MB of answers
        held = Held(*stream)
        call = search_service_pb2_grpc.SearchServiceStub(channel).SearchStream(iter(held))
        assert next(call).item == 0  # it reads once, and no more
        until_free(client, make_study(1))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        held.ended.set()


def test_a_slow_but_moving_stream_is_left_alone(serve, make_study):
    server, _ = serve(stream_idle_s=0.6)

    def slowly():
        for number in range(5):
            time.sleep(0.3)
            yield make_study(number)

    with Client(f"127.0.0.1:{server.port}", ONCE) as client:
        assert [outcome.error for outcome in client.upsert(slowly())] == [None] * 5


def test_a_stream_has_an_end_and_the_client_goes_on_with_another(serve, make_study):
    server, channel = serve(max_stream_s=0.5)

    def slowly():
        for number in range(6):
            time.sleep(0.25)
            yield make_study(number)

    with Client(f"127.0.0.1:{server.port}") as client:
        outcomes = list(client.upsert(slowly()))
        assert [(outcome.item, outcome.error) for outcome in outcomes] == [(number, None) for number in range(6)]
        assert client.stats().studies == 6
    held = Held()
    with pytest.raises(grpc.RpcError) as caught:
        list(corpus_service_pb2_grpc.CorpusServiceStub(channel).UpsertStudies(iter(held)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "lasted as long as one may" in caught.value.details()
    held.ended.set()


def test_a_stream_ends_with_the_token_that_opened_it(serve, tmp_path, make_study):
    token, entry = new_token("a", ["ingester"], expires=datetime.now(UTC) + timedelta(seconds=3))
    (tmp_path / "p.toml").write_text(entry)
    server, _ = serve(AuthConfig(principals=tmp_path / "p.toml"))
    outcomes = []

    def slowly():
        for number in range(1000):
            time.sleep(0.1)
            yield make_study(number)

    with Client(f"127.0.0.1:{server.port}", replace(ONCE, token=token)) as client:
        with pytest.raises(UnauthenticatedError, match="expired"):
            outcomes.extend(client.upsert(slowly()))
        with pytest.raises(UnauthenticatedError, match="expired"):
            client.stats()


def test_streams_closed_on_one_side(serve, make_study):
    """Closed before anything was sent, with a method that wants one message, and by a client that just leaves."""
    server, channel = serve(max_streams=2, max_in_flight=2)
    stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
    assert list(stub.UpsertStudies(iter(()))) == []
    one = channel.stream_unary("/mmecg.v1.CorpusService/GetStats", lambda m: m.SerializeToString(), bytes)
    with pytest.raises(grpc.RpcError) as caught:
        one(iter(()), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a request" in caught.value.details()
    for _ in range(10):
        held = Held(corpus_pb.UpsertStudiesRequest())
        call = stub.UpsertStudies(iter(held))
        assert next(call).HasField("status")
        call.cancel()
        held.ended.set()
        with Client(f"127.0.0.1:{server.port}", ONCE) as client:
            until_free(client, make_study(1))
    with Client(f"127.0.0.1:{server.port}", ONCE) as client:
        assert client.stats().studies == 1


def is_served(line: socket.socket) -> bool:
    """A server of HTTP/2 speaks first; a connection that is hung up on is never spoken to."""
    try:
        return line.recv(1) != b""
    except ConnectionError:
        return False


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")  # noqa: PTH112
def test_connections_are_bounded(serve):
    """Ten thousand, in short: what is above the limit is hung up on, and costs no file handle."""
    limit, asked = 50, 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 2 * asked
    server, _ = serve(max_connections=limit)
    with Client(f"127.0.0.1:{server.port}") as client:
        assert client.stats().studies == 0
        before, lines = open_files(), []
        try:
            lines += (socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(asked))
            served = [is_served(line) for line in lines]
            assert 0 < sum(served) <= limit
            assert not any(served[limit:])
            assert open_files() - before - asked <= limit
            assert client.stats().studies == 0  # who was there is served
        finally:
            for line in lines:
                line.close()
    with Client(f"127.0.0.1:{server.port}") as client:
        assert client.stats().studies == 0


def test_an_idle_connection_is_closed_and_comes_back(serve):
    server, _ = serve(connection_idle_s=0.5)
    with Client(f"127.0.0.1:{server.port}") as client:
        assert client.stats().studies == 0
        before = open_files()
        deadline = time.monotonic() + 60
        while open_files() >= before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert open_files() < before
        assert client.stats().studies == 0
