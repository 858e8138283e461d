"""Building, starting and draining the gRPC server around a backend."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mmecg.administration import Administration
from mmecg.errors import ConfigError
from mmecg.labels.report_miner import ReportMiner
from mmecg.retriever import Retriever
from mmecg.search import CorpusStore
from mmecg_server.admin_service import add_admin_service
from mmecg_server.admission import Doorkeeper
from mmecg_server.audit import Trail
from mmecg_server.auth import Authenticator
from mmecg_server.batching import BatchingEncoder
from mmecg_server.call import staged
from mmecg_server.config import ServerConfig
from mmecg_server.corpus_service import add_corpus_service
from mmecg_server.interceptors import CallInterceptor, Gate
from mmecg_server.label_service import add_label_mining_service
from mmecg_server.logs import log
from mmecg_server.memory import TRIM_EVERY_S, give_back
from mmecg_server.metrics import Measurable, Metrics, MetricsEndpoint
from mmecg_server.periodic import LOOK_EVERY_S, Periodic, probe_recall_every
from mmecg_server.prediction_service import add_prediction_service
from mmecg_server.service import CORPUS, PREDICTION, SEARCH, SERVICES, Backend, add_services
from mmecg_server.tls import ServerCertificates
from mmecg_server.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from mmecg.prediction.predictor import Predictor

CALLS_PER_PLACE = 8
"""Calls that one connection may have open for each thread; further ones were seen to wait in its client, or to end with
UNAVAILABLE. Not fewer, because a caller is better told that there is no place; not many more, because without a bound
some calls ended with CANCELLED under overload before this program saw them (see benchmarks/README.md)."""

SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter while another wants it. The thread that takes calls in, and refuses them,
wants it several times a call, against all that serve one; Python's 5 ms each time would be more than it has."""

KEEPALIVE_MS = 30_000
HANDSHAKE_MS = 10_000
"""Time for a connection to become one: a stranger that says nothing holds a file handle no longer."""


class Server:
    """A gRPC server: bound and NOT_SERVING when built, SERVING after :meth:`serve`, drained by :meth:`stop`.

    Parameters
    ----------
    config : ServerConfig
    tracing : Tracing, optional
        Instead of what the configuration says.

    Attributes
    ----------
    port : int
        Where calls are answered.
    metrics : Metrics
    metrics_port : int or None
        Where the metrics are served.

    Raises
    ------
    ConfigError
        An address cannot be bound, a TLS file cannot be read, or traces are asked for without the extra.
    """

    def __init__(self, config: ServerConfig, *, tracing: Tracing | None = None) -> None:
        limits = config.limits
        self._config = config
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._gate = Gate(limits)
        self.metrics = Metrics()
        self.metrics.watch(running=self._gate.running)
        self._tracing = tracing or open_tracing(config.tracing)
        self._backend = Backend(self._gate, limits)
        self._encoder: BatchingEncoder | None = None
        self._stopped = False
        self._periodic = [Periodic("memory", lambda wait: give_back(), TRIM_EVERY_S)]
        self._writable = self._readable = True
        self._authenticator = Authenticator(config.auth)
        doorkeeper = Doorkeeper(self._authenticator, limits)
        self._interceptor = CallInterceptor(self._gate, limits, self.metrics, self._tracing, doorkeeper)
        self._certificates = ServerCertificates(config.tls) if config.tls.certificate is not None else None
        self._server = grpc.server(
            # Never more calls than threads: the interceptor refuses them, so that none waits for one.
            ThreadPoolExecutor(self._gate.threads, thread_name_prefix="call"),
            interceptors=[self._interceptor],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", limits.max_message_bytes),
                # A second server on the same port would take half of the calls without a word.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.max_concurrent_streams", CALLS_PER_PLACE * self._gate.threads),
                ("grpc.max_allowed_incoming_connections", limits.max_connections),
                ("grpc.max_connection_idle_ms", round(1000 * limits.connection_idle_s)),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ],
        )
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_services(self._server, self._backend)
        add_corpus_service(self._server, self._backend)
        add_label_mining_service(self._server, self._backend)
        add_prediction_service(self._server, self._backend)
        add_admin_service(self._server, self._backend)
        if config.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.port = self._bind()
        self._endpoint = None if config.metrics.port is None else MetricsEndpoint(config.metrics, self.metrics)
        self.metrics_port = None if self._endpoint is None else self._endpoint.port
        self._server.start()

    def serve(
        self,
        retriever: Retriever,
        miner: ReportMiner | None = None,
        predictor: Predictor | None = None,
        trail: Trail | None = None,
        administration: Administration | None = None,
    ) -> None:
        """Answer calls from now on, with concurrent calls sharing encoder batches.

        Parameters
        ----------
        retriever : Retriever
            Around the bare encoder.
        miner : ReportMiner, optional
            Without one, it is made when labels are first asked for.
        predictor : Predictor, optional
            Around the bare encoder and the same corpus. Without one, nothing is predicted.
        trail : Trail, optional
            Where every call is entered; see :mod:`mmecg_server.audit`.
        administration : Administration, optional
            What AdminService calls.
        """
        self._interceptor.trail = trail
        self._backend.administration = administration
        if miner is not None:
            self._backend.miner = miner
        self.take(retriever, predictor)
        self._set_health(health_pb2.HealthCheckResponse.SERVING, but=PREDICTION)
        self.metrics.watch(corpus=retriever.corpus)
        self._look_after(retriever.corpus)

    def take(self, retriever: Retriever, predictor: Predictor | None = None) -> None:
        """Answer with another model from now on; see :meth:`serve`. Calls that wait for the old one are refused."""
        limits, before = self._config.limits, self._encoder
        if before is not None and before.fingerprint == retriever.encoder.fingerprint:
            encoder = before
        else:
            self._encoder = encoder = BatchingEncoder(
                retriever.encoder,
                max_batch=limits.max_batch,
                max_queue=limits.max_queue,
                on_batch=self.metrics.observe_batch,
            )
        predictor = predictor and predictor.sharing(encoder.ecg_features)
        self._backend.take(Retriever(encoder, staged(retriever.corpus)), predictor)
        self.metrics.watch(waiting=encoder.waiting)
        serving = health_pb2.HealthCheckResponse
        predicts = predictor is not None and self._readable
        self._health.set(PREDICTION, serving.SERVING if predicts else serving.NOT_SERVING)
        if before is not None and before is not encoder:
            before.retire()

    def _look_after(self, corpus: CorpusStore) -> None:
        """Let health say whether the corpus takes writes and gives answers, and probe the recall of its index."""
        if not isinstance(corpus, Measurable):
            return
        every_s = self._config.metrics.recall_probe_s

        def look(wait: object) -> None:
            # Searches and reads go on without writes: the corpus alone is NOT_SERVING then.
            writable = corpus.writable
            if writable != self._writable:
                self._writable = writable
                level = logging.INFO if writable else logging.ERROR
                log("corpus_writable" if writable else "corpus_read_only", level=level)
                serving = health_pb2.HealthCheckResponse
                self._health.set(CORPUS, serving.SERVING if writable else serving.NOT_SERVING)
            if self._readable and not corpus.readable:
                self._readable = False  # until a restart
                for name in ("", SEARCH, PREDICTION):
                    self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

        self._periodic.append(Periodic("corpus-health", look, LOOK_EVERY_S, first_s=0))
        if self._endpoint is not None and every_s:
            self._periodic.append(probe_recall_every(every_s, corpus, self.metrics))

    def reload(self) -> None:
        """Read principals, keys and certificates again; a file that cannot be used is logged and passed over."""
        self._authenticator.reload()
        if self._certificates is not None:
            self._certificates.reload()

    def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, let running ones end within ``drain_s``, then close. Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        for periodic in self._periodic:
            periodic.close()
        self._health.enter_graceful_shutdown()
        self._gate.drain()
        self._server.stop(self._config.drain_s).wait()
        self._interceptor.close()
        if self._encoder is not None:
            self._encoder.close()
        if self._endpoint is not None:
            self._endpoint.close()
        if self._tracing is not None:
            self._tracing.close()
        log("stopped")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus, *, but: str | None = None) -> None:
        for name in ("", *SERVICES):
            if name != but:
                self._health.set(name, status)

    def _bind(self) -> int:
        config = self._config
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.port}"
        try:
            if self._certificates is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, self._certificates.credentials()))
        except RuntimeError:
            raise ConfigError(f"address {address} cannot be bound; is another server there?") from None
