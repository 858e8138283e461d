"""Traces for OpenTelemetry, an optional extra: a span for each call, and one for each stage inside it.

A caller's W3C ``traceparent`` is continued. Attributes are the method, the code, the request id and names of the
program; never what a request or an answer holds, and no text of an exception.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import mmecg
from mmecg.errors import ConfigError
from mmecg_server.call import Stage
from mmecg_server.config import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_NO_EXTRA = (
    "tracing.endpoint is set, but {name} is not installed; install it with: pip install 'mmecg[otel]', or take the "
    "table [tracing] out of the configuration"
)


class CallSpan:
    """The span of one call."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def add_stage(self, name: Stage, started: float, ended: float) -> None:
        """Add a stage that ended, given as :func:`time.monotonic`; nothing if the call is not sampled."""
        if not self._span.is_recording():
            return
        from opentelemetry.trace import set_span_in_context

        # Spans carry the time of day, stages are measured by a clock that nobody sets.
        now = time.time_ns() - time.monotonic_ns()
        span = self._tracing.tracer.start_span(
            f"mmecg {name}", set_span_in_context(self._span), start_time=now + round(started * 1e9)
        )
        span.end(now + round(ended * 1e9))

    def end(self, code: str, number: int) -> None:
        """End the span with the call's status code."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.grpc.status_code", number)
        if code != "OK":
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes spans and sends them in the background; what cannot be sent is dropped.

    Parameters
    ----------
    provider : TracerProvider
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self.tracer = provider.get_tracer("mmecg_server", mmecg.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Mapping[str, str], request_id: str) -> CallSpan:
        """Start the span of a call.

        Parameters
        ----------
        method : str
            ``SearchService/Search``.
        metadata : mapping of str to str
            Of the call; only ``traceparent`` and ``tracestate`` are looked at.
        request_id : str
        """
        from opentelemetry.trace import SpanKind

        service, _, name = method.partition("/")
        span = self.tracer.start_span(
            f"mmecg.v1.{method}",
            self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": f"mmecg.v1.{service}",
                "rpc.method": name,
                "mmecg.request_id": request_id,
            },
        )
        return CallSpan(self, span)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._provider.shutdown()


def open_tracing(config: TracingConfig) -> Tracing | None:
    """Return where traces go as the configuration says, None if nowhere.

    Raises
    ------
    ConfigError
        The extra ``otel`` is not installed, or the certificate authority cannot be read.
    """
    if config.endpoint is None:
        return None
    try:
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise ConfigError(_NO_EXTRA.format(name=error.name)) from None
    secure = config.endpoint.startswith("https://")
    try:
        authority = None if config.ca is None else config.ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"tracing.ca {config.ca} cannot be read ({error.strerror})") from None
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        insecure=not secure,
        credentials=grpc.ssl_channel_credentials(authority) if secure else None,
    )
    return export_to(exporter, sample_ratio=config.sample_ratio)


def export_to(exporter: SpanExporter, *, sample_ratio: float = 1.0) -> Tracing:
    """Return tracing that sends to an exporter, in the background and in batches."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource({"service.name": "mmecg", "service.version": mmecg.__version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
