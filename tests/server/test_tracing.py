"""Traces through the OpenTelemetry SDK, request ids, and what neither may tell."""

import json
import re
import sys
import threading
import time
import uuid
from dataclasses import replace

import grpc
import pytest
from mmecg_pb.v1 import corpus_service_pb2, corpus_service_pb2_grpc, search_service_pb2, search_service_pb2_grpc
from mmecg_server.call import Call, on_behalf_of, stage
from mmecg_server.config import ServerConfig, TracingConfig
from mmecg_server.server import Server
from mmecg_server.tracing import export_to, open_tracing

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import ConfigError, QueryError
from mmecg.report import Report

memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

CANARY = "Zvulon"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter():
    return memory.InMemorySpanExporter()


@pytest.fixture
def traced(config, retriever, exporter):
    """A channel to a server whose spans go to the exporter when it stops."""
    server = Server(config, tracing=export_to(exporter))
    server.serve(retriever)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield server, channel
    server.stop()


def finished(server, exporter):
    server.stop()
    return exporter.get_finished_spans()


def search(channel, text, **metadata):
    request = search_service_pb2.SearchRequest(query={"text": text}, top_k=3)
    stub = search_service_pb2_grpc.SearchServiceStub(channel)
    return stub.Search.with_call(request, metadata=tuple(metadata.items()), timeout=60)


def test_a_call_is_a_span_and_each_stage_one_inside_it(traced, exporter, retriever, make_study):
    server, channel = traced
    retriever.ingest([make_study(1)])
    search(channel, "sinus rhythm", **{"x-request-id": ULID})
    spans = finished(server, exporter)
    (call,) = [span for span in spans if span.name == "mmecg.v1.SearchService/Search"]
    assert dict(call.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "mmecg.v1.SearchService",
        "rpc.method": "Search",
        "rpc.grpc.status_code": 0,
        "mmecg.request_id": ULID,
    }
    stages = [span for span in spans if span is not call]
    assert {span.name for span in stages} == {
        f"mmecg {name}" for name in ("decode", "queue", "encode", "search", "store")
    }
    for span in stages:
        assert span.parent.span_id == call.context.span_id
        assert call.start_time - 1e6 <= span.start_time <= span.end_time <= call.end_time + 1e6
    assert abs(call.end_time / 1e9 - time.time()) < 600


def test_a_callers_trace_is_continued(traced, exporter):
    server, channel = traced
    search(channel, "a", traceparent=f"00-{TRACE}-{PARENT}-01")
    search(channel, "b", traceparent=f"00-{'1' * 32}-{PARENT}-00")
    search(channel, "c", traceparent="nonsense")
    spans = [span for span in finished(server, exporter) if span.name.startswith("mmecg.v1")]
    assert [span.parent and f"{span.parent.span_id:016x}" for span in spans] == [PARENT, None]
    assert f"{spans[0].context.trace_id:032x}" == TRACE
    assert f"{spans[1].context.trace_id:032x}" not in (TRACE, "1" * 32)


def test_sampling_leaves_calls_out(config, retriever, exporter):
    with Server(config, tracing=export_to(exporter, sample_ratio=0.0)) as server:
        server.serve(retriever)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            search(channel, "a")
            search(channel, "b", traceparent=f"00-{TRACE}-{PARENT}-01")
    assert {f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans()} == {TRACE}


def test_nothing_private_is_in_a_span(traced, exporter, make_study):
    server, _ = traced
    study = replace(
        make_study(1), study_id=f"{CANARY}-1", subject_id=f"{CANARY}-2", report=Report.from_text(CANARY), site=CANARY
    )
    with Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
        assert next(iter(client.upsert([study]))).error is None
        client.search(text=CANARY)
        with pytest.raises(QueryError):
            client.search(text=CANARY, page_token=CANARY)
    spans = finished(server, exporter)
    failed = [span for span in spans if dict(span.attributes).get("rpc.grpc.status_code") == 3]
    assert [span.status.is_ok for span in failed] == [False]
    assert CANARY not in "".join(span.to_json() for span in spans)


def test_spans_reach_a_collector_over_otlp(config, retriever):
    """A real collector's service on a real port, if the exporter is installed."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    came, names = threading.Event(), []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    names.extend(span.name for span in scope.spans)
            came.set()
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        with Server(replace(config, tracing=TracingConfig(endpoint=f"http://127.0.0.1:{port}"))) as server:
            server.serve(retriever)
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                search(channel, "a")
        assert came.wait(60)
    finally:
        collector.stop(None).wait()
    assert "mmecg.v1.SearchService/Search" in names


def test_without_the_extra_tracing_is_refused_by_name(monkeypatch, config):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"mmecg\[otel\]"):
        open_tracing(TracingConfig(endpoint="http://127.0.0.1:4317"))
    assert open_tracing(TracingConfig()) is None
    with pytest.raises(ConfigError, match=r"mmecg\[otel\]"):
        Server(replace(config, tracing=TracingConfig(endpoint="http://127.0.0.1:4317")))


@pytest.mark.parametrize(
    "values",
    [{"endpoint": "127.0.0.1:4317"}, {"endpoint": "http://user:secret@host:4317"}, {"sample_ratio": 1.5}],
    ids=["scheme", "password", "ratio"],
)
def test_what_cannot_be_an_endpoint_is_refused(values):
    with pytest.raises(ConfigError, match="tracing") as caught:
        TracingConfig(**values)
    assert "secret" not in str(caught.value)


def test_an_authority_that_is_not_there_is_refused(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    with pytest.raises(ConfigError, match=r"tracing\.ca"):
        open_tracing(TracingConfig(endpoint="https://127.0.0.1:4317", ca=tmp_path / "none.pem"))


def request_ids(call) -> list[str]:
    return [value for key, value in call.trailing_metadata() if key == "x-request-id"]


@pytest.mark.parametrize("given", [str(uuid.uuid4()), uuid.uuid4().hex.upper(), ULID])
def test_a_request_id_comes_back_and_is_logged(channel, log_lines, given):
    _, call = search(channel, "a", **{"x-request-id": given})
    assert request_ids(call) == [given]
    (line,) = [json.loads(line) for line in log_lines if '"call"' in line]
    assert line["request_id"] == given
    assert line["code"] == "OK"
    assert line["received_bytes"] > 0
    assert line["sent_bytes"] > 0
    assert line["duration_ms"] > 0


@pytest.mark.parametrize(
    "given",
    ["", "x" * 65, "two words", 'quote"', "order-17", "4711", "4711" * 6 + "47", ULID[:-1], ULID.lower(), "f" * 33],
)
def test_what_cannot_be_a_request_id_is_replaced(channel, log_lines, given):
    _, call = search(channel, "a", **{"x-request-id": given})
    (new,) = request_ids(call)
    assert re.fullmatch("[0-9a-f]{32}", new)
    assert json.loads(next(line for line in log_lines if '"call"' in line))["request_id"] == new
    assert not given or [line for line in log_lines if given in line] == []


def test_an_error_carries_the_request_id_beside_its_details(channel):
    stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetStudy(
            corpus_service_pb2.GetStudyRequest(study_id="nobody"), metadata=(("x-request-id", ULID),), timeout=60
        )
    assert request_ids(caught.value) == [ULID]
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata())


def test_a_stream_logs_how_much_it_carried(log_lines, filled):
    deadline = time.monotonic() + 60
    while not (lines := [json.loads(line) for line in log_lines if "UpsertStudies" in line]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lines[0]["items"] == 12


def test_a_stage_within_itself_is_counted_once():
    seen = []
    with on_behalf_of(Call(float("inf"), observe=lambda name, started, ended: seen.append((name, ended >= started)))):
        with stage("decode"), stage("decode"), stage("store"):
            pass
        stage("decode")(dict)()
    with stage("decode"):
        pass
    assert seen == [("store", True), ("decode", True), ("decode", True)]


def test_defaults_trace_nothing():
    assert ServerConfig().tracing.endpoint is None
