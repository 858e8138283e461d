"""A real server on port 0 around the real corpus; the encoder is small and deterministic, so that tests are fast."""

import contextlib
import logging
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import corpus_service_pb2_grpc, embedding_service_pb2_grpc, search_service_pb2_grpc
from mmecg_server.config import LimitsConfig, ServerConfig, TracingConfig
from mmecg_server.interceptors import CallInterceptor
from mmecg_server.logs import OWN, JsonFormatter
from mmecg_server.server import Server
from mmecg_server.tracing import Tracing, export_to, open_tracing
from prometheus_client import generate_latest

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.ecg import LEADS, Ecg, fit_length
from mmecg.embedding import EMBEDDING_DIM, normalise
from mmecg.errors import VitalsError
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

FINGERPRINT = "f" * 64


class SmallEncoder:
    """Random projections of crude features: deterministic, the same alone and in a batch."""

    fingerprint = FINGERPRINT
    ecg_encoder = "small"

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return np.concatenate([self._project(fit_length(ecg.resample(50).signal, 100).ravel(), 1) for ecg in ecgs])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._project(self._bag(text), 2) for text in texts])

    def encode_vitals(self, vitals: Sequence[Vitals]) -> np.ndarray:
        if any(item.is_empty() for item in vitals):
            raise VitalsError("vitals are empty", field="vitals")
        return np.concatenate([self._project(np.nan_to_num(item.to_array()), 3) for item in vitals])

    def ecg_features(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return self.encode_ecg(ecgs)

    @staticmethod
    def _bag(text: str) -> np.ndarray:
        bag = np.zeros(512, np.float32)
        for word in text.lower().split():
            bag[zlib.crc32(word.encode()) % 512] += 1
        return bag

    @staticmethod
    def _project(features: np.ndarray, seed: int) -> np.ndarray:
        matrix = np.random.default_rng(seed).standard_normal((len(features), EMBEDDING_DIM)).astype(np.float32)
        return normalise((features @ matrix)[None] + np.float32(0.01))


def build_ecg(seed: int, *, leads: Sequence[str] = LEADS, rate: float = 100.0, seconds: float = 10.0) -> Ecg:
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    waves = [
        rng.uniform(0.3, 1.5) * np.sin(2 * np.pi * rng.uniform(0.8, 8) * time + rng.uniform(0, 6))
        + 0.02 * rng.standard_normal(len(time))
        for _ in leads
    ]
    return Ecg.from_array(np.stack(waves), sampling_rate_hz=rate, leads=leads)


def build_study(number: int) -> Study:
    words = ("sinus rhythm", "atrial fibrillation", "left bundle branch block", "anterior infarction")
    acquired_at = datetime(2020, 1, 1) + timedelta(days=number)
    return Study(
        study_id=f"study-{number}",
        subject_id=f"subject-{number // 2}",
        acquired_at=acquired_at,
        ecg=build_ecg(number),
        report=Report.from_text(f"{words[number % 4]}, case {number}."),
        notes=(ClinicalNote("chest pain", "triage", acquired_at - timedelta(hours=1)),),
        vitals=Vitals(
            age_years=40 + number % 60,
            sex="female" if number % 2 else "male",
            heart_rate_bpm=60 + number % 60,
            weight_kg=73.58217,
            systolic_bp_mmhg=131.71943,
        ),
        labels={"NORM" if number % 4 == 0 else "MI": 100.0},
        site="site-a",
        device="device-b",
        attributes={"fold": str(number % 10)},
    )


@pytest.fixture(scope="session")
def make_ecg():
    return build_ecg


@pytest.fixture(scope="session")
def make_study():
    return build_study


@pytest.fixture(scope="session")
def encoder() -> SmallEncoder:
    return SmallEncoder()


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with Corpus.create(tmp_path / "corpus", FINGERPRINT) as corpus:
        yield corpus


@pytest.fixture
def retriever(encoder: SmallEncoder, corpus: Corpus) -> Retriever:
    return Retriever(encoder, corpus)


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(port=0, drain_s=60.0, limits=LimitsConfig(max_message_bytes=8 * 2**20, max_batch=16))


@pytest.fixture
def server(config: ServerConfig, retriever: Retriever) -> Iterator[Server]:
    with Server(config) as server:
        server.serve(retriever)
        yield server


@pytest.fixture
def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client that tells of trouble at once."""
    with Client(address, ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
        yield client


@pytest.fixture
def filled(client: Client) -> Client:
    """A client of a server with twelve studies of six subjects."""
    outcomes = list(client.upsert(build_study(number) for number in range(12)))
    assert [outcome.error for outcome in outcomes] == [None] * 12
    return client


PRIVATE = re.compile(r"(?:study|subject)-\d|chest pain|, case \d|(?<!\d)(?:73\.582|131\.719)")
"""Canaries: what all studies of :func:`build_study` have in ids, notes, report and vitals, and no output may show."""


@pytest.fixture(autouse=True)
def nothing_private_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """After every test of this folder: no canary in any output of a server.

    That is: log lines, metrics, spans, the audit trail, and what callers are told of errors, unless they sent it. What
    was found so far, but for lines and spans, is the fixture's value.
    """
    outputs: list[str] = []
    exporters = trace_every_server(monkeypatch)
    stop, close = Server.stop, Corpus.close

    def scrape_and_stop(server: Server) -> None:
        outputs.append(generate_latest(server.metrics.registry).decode())
        stop(server)

    def close_and_read(corpus: Corpus) -> None:
        close(corpus)
        with contextlib.closing(sqlite3.connect(corpus.path / "corpus.sqlite")) as connection:
            for table in ("audit", "audit_touched", "requests", "erasures"):
                outputs.extend(map(repr, connection.execute(f"SELECT * FROM {table}")))

    monkeypatch.setattr(Server, "stop", scrape_and_stop)
    monkeypatch.setattr(Corpus, "close", close_and_read)
    monkeypatch.setattr(CallInterceptor, "intercept_service", telling_errors(outputs))
    with keeping_log_lines() as lines:
        yield outputs
    spans = [span.to_json() for exporter in exporters for span in exporter.get_finished_spans()]
    assert [text for text in (*lines, *outputs, *spans) if PRIVATE.search(text)] == []


def trace_every_server(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let servers that send traces nowhere send them to exporters that keep them; return these."""
    try:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ModuleNotFoundError:
        return []
    exporters = []

    def opened(config: TracingConfig) -> Tracing:
        if (found := open_tracing(config)) is None:
            exporters.append(InMemorySpanExporter())
            found = export_to(exporters[-1])
        return found

    monkeypatch.setattr("mmecg_server.server.open_tracing", opened)
    return exporters


def telling_errors(outputs: list[str]) -> Callable[..., Any]:
    """Return an ``intercept_service`` that reports canaries which a status holds, and the call's requests do not."""
    intercept = CallInterceptor.intercept_service

    def tell(texts: Iterable[str | bytes], sent: list[Any]) -> None:
        decoded = [text.decode("latin-1") if isinstance(text, bytes) else text for text in texts]
        found = {match.group() for text in decoded for match in PRIVATE.finditer(text)}
        if found:
            outputs.extend(f"told a caller: {canary}" for canary in found if canary not in " ".join(map(str, sent)))

    def look(answer: Message, sent: list[Any]) -> None:
        for field, value in answer.ListFields():
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                continue
            for each in value if field.is_repeated else [value]:
                if isinstance(each, status_pb2.Status):
                    tell([each.message, each.SerializeToString()], sent)
                else:
                    look(each, sent)

    def told(self: CallInterceptor, continuation: Any, details: Any) -> Any:
        handler = intercept(self, continuation, details)
        if handler is None or not details.method.startswith("/mmecg.v1."):
            return handler
        kind = ("unary", "stream")[handler.request_streaming] + ("_unary", "_stream")[handler.response_streaming]
        serve = getattr(handler, kind)

        @contextlib.contextmanager
        def hearing(request: Any, context: Any) -> Iterator[tuple[Any, list[Any]]]:
            sent: list[Any] = []
            abort = context.abort_with_status

            def tell_and_abort(status: Any) -> None:
                tell([status.details, *(value for _, value in status.trailing_metadata)], sent)
                abort(status)

            context.abort_with_status = tell_and_abort
            try:
                if handler.request_streaming:
                    yield (sent.append(each) or each for each in request), sent
                else:
                    sent.append(request)
                    yield request, sent
            finally:
                del context.abort_with_status  # it would keep the context, and the server, alive

        def unary(request: Any, context: Any) -> Any:
            with hearing(request, context) as (heard, _):
                return serve(heard, context)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            with hearing(request, context) as (heard, sent), contextlib.closing(serve(heard, context)) as answers:
                for answer in answers:
                    look(answer, sent)
                    yield answer

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        answered = stream if handler.response_streaming else unary
        answered.experimental_thread_pool = getattr(serve, "experimental_thread_pool", None)
        return make(answered, handler.request_deserializer, handler.response_serializer)

    return told


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """Every line that the process logs, of any library, as the server formats it."""
    with keeping_log_lines() as lines:
        yield lines


@contextlib.contextmanager
def keeping_log_lines() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonFormatter())
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in OWN}
    root.addHandler(handler)
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield lines
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def shared(encoder, tmp_path_factory):
    """One server for the whole table: every row proves that it survived the one before."""
    limits = LimitsConfig(max_message_bytes=32 * 2**20, max_batch=16)
    with (
        Corpus.create(tmp_path_factory.mktemp("bad") / "corpus", "f" * 64) as corpus,
        Server(ServerConfig(port=0, drain_s=5, limits=limits)) as server,
    ):
        server.serve(Retriever(encoder, corpus))
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel


@pytest.fixture(scope="module")
def embedding_stub(shared):
    return embedding_service_pb2_grpc.EmbeddingServiceStub(shared)


@pytest.fixture(scope="module")
def search_stub(shared):
    return search_service_pb2_grpc.SearchServiceStub(shared)


@pytest.fixture(scope="module")
def corpus_stub(shared):
    return corpus_service_pb2_grpc.CorpusServiceStub(shared)
