"""What Prometheus is told: one registry a server, served over HTTP where ``[metrics]`` says.

No label ever holds what a caller sent: methods, codes, stages, towers, modalities and reasons are names of the program.
Numbers that something else keeps (queue depth, the corpus) are read when they are asked for: they cost a call nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import mmecg
from mmecg.client.status import reason_of
from mmecg.errors import ConfigError, MmecgError, OverloadedError
from mmecg_server.call import STAGES, Stage
from mmecg_server.config import MetricsConfig

CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, *CALL_BUCKETS[:13])
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REFUSALS = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED"})
"""Codes of calls that the server did not want to serve, whatever they asked for."""


class IndexGauges(Protocol):
    """What the index of one modality says of itself."""

    @property
    def rows(self) -> int:
        """Vectors that can be found."""

    @property
    def tombstones(self) -> int:
        """Vectors that were removed or replaced and still take room."""

    @property
    def tail_rows(self) -> int:
        """Vectors outside the approximate index, which are scanned."""

    @property
    def unsaved_commits(self) -> int:
        """Commits that the newest snapshot lacks; a start has to replay them."""

    @property
    def snapshot_at(self) -> float | None:
        """When the newest snapshot was written, seconds since 1970; None if there is none."""

    @property
    def compaction_s(self) -> float | None:
        """Duration of the last compaction since the start; None if there was none."""


class CorpusGauges(Protocol):
    """What a corpus says of itself; cheap enough to be asked every few seconds."""

    @property
    def studies(self) -> int:
        """Stored studies."""

    @property
    def sequence(self) -> int:
        """Last committed sequence number."""

    @property
    def index_lag(self) -> int:
        """Commits that a search does not see yet."""

    @property
    def writable(self) -> bool:
        """False once a fault of the disk has made it read-only."""

    @property
    def unfinished_erasures(self) -> int:
        """Subjects that are out of all answers, but not yet out of the files."""

    @property
    def refused_snapshots(self) -> int:
        """Snapshots that could not be used at the start."""

    @property
    def rebuilt(self) -> int:
        """Indexes, the metadata table among them, that the start made anew from the database."""

    @property
    def indexes(self) -> Mapping[str, IndexGauges]:
        """One a modality."""


@runtime_checkable
class Measurable(Protocol):
    """A corpus that can say more of itself than :class:`mmecg.search.CorpusStore` asks for."""

    @property
    def writable(self) -> bool:
        """False once a fault of the disk has made it read-only."""

    @property
    def readable(self) -> bool:
        """False once its database was found damaged."""

    def gauges(self) -> CorpusGauges:
        """Return its present state."""

    def probe_recall(self, modality: str, wait: Callable[[float], object]) -> float | None:
        """Return the recall of an index against an exact scan; ``wait`` pauses, and says whether to end."""


class Metrics:
    """The metrics of one server.

    Attributes
    ----------
    registry : CollectorRegistry
        What is served; nothing is registered anywhere else.
    corpus : Measurable, optional
        Whose state is published.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.corpus: Measurable | None = None
        self._running: Callable[[], Mapping[str, int]] = dict
        self._waiting: Callable[[], Mapping[str, int]] = dict
        registry.register(_Read("mmecg_calls_in_flight", "Calls being served.", "kind", lambda: self._running()))
        registry.register(_Read("mmecg_queue_items", "Items waiting for a tower.", "tower", lambda: self._waiting()))
        registry.register(_CorpusCollector(lambda: self.corpus))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        Info("mmecg_build", "Version of the program.", registry=registry).info({"version": mmecg.__version__})
        self._calls = Counter("mmecg_calls", "Calls that ended.", ["method", "code"], registry=registry)
        self._call_seconds = Histogram(
            "mmecg_call_duration_seconds",
            "Duration of unary calls, from admission to the rendered answer.",
            ["method"],
            buckets=CALL_BUCKETS,
            registry=registry,
        )
        stages = Histogram(
            "mmecg_stage_duration_seconds",
            "Duration of the stages of calls, one observation each time a stage runs.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._stages = {name: stages.labels(name) for name in STAGES}
        self._batches = Histogram(
            "mmecg_batch_items", "Items of encoder batches.", ["tower"], buckets=BATCH_BUCKETS, registry=registry
        )
        self._refused = Counter("mmecg_calls_refused", "Calls refused, and why.", ["reason"], registry=registry)
        self._received = Counter("mmecg_received_bytes", "Bytes of requests.", ["method"], registry=registry)
        self._sent = Counter("mmecg_sent_bytes", "Bytes of answers.", ["method"], registry=registry)
        self._items = Counter("mmecg_stream_items", "Requests that came in streams.", ["method"], registry=registry)
        self._recall = Gauge(
            "mmecg_index_recall_ratio",
            "Recall@10 of the served index against an exact scan, over the canary queries.",
            ["modality"],
            registry=registry,
        )
        self._probed = Gauge(
            "mmecg_index_recall_probe_timestamp_seconds", "When recall was last probed.", registry=registry
        )
        self._probe_seconds = Gauge(
            "mmecg_index_recall_probe_duration_seconds",
            "Time that the last probe of an index took, pauses included.",
            ["modality"],
            registry=registry,
        )

    def watch(
        self,
        *,
        running: Callable[[], Mapping[str, int]] | None = None,
        waiting: Callable[[], Mapping[str, int]] | None = None,
        corpus: object = None,
    ) -> None:
        """Say where to read what others keep; what is left out stays as it is.

        Parameters
        ----------
        running : callable
            Calls being served, by kind.
        waiting : callable
            Items that wait for each encoder tower.
        corpus : Measurable
            Published if it can say more of itself than every corpus.
        """
        self._running = running or self._running
        self._waiting = waiting or self._waiting
        if isinstance(corpus, Measurable):
            self.corpus = corpus

    def count_call(self, method: str, code: str, seconds: float | None) -> None:
        """Count a call that ended; a stream has no duration that says anything."""
        self._calls.labels(method, code).inc()
        if seconds is not None:
            self._call_seconds.labels(method).observe(seconds)

    def count_refusal(self, error: Exception) -> None:
        """Count a call that was refused, by the limit that was reached or else by the class of the error."""
        kind = reason_of(type(error)).lower() if isinstance(error, MmecgError) else "other"
        limit = error.limit if isinstance(error, OverloadedError) else ""
        self._refused.labels(limit or kind).inc()

    def count_traffic(self, method: str, *, received: int = 0, sent: int = 0, items: int = 0) -> None:
        """Count bytes either way, and the requests of a stream."""
        self._received.labels(method).inc(received)
        self._sent.labels(method).inc(sent)
        if items:
            self._items.labels(method).inc(items)

    def observe_stage(self, name: Stage, seconds: float) -> None:
        """Count a stage that ended."""
        self._stages[name].observe(seconds)

    def observe_batch(self, tower: str, items: int) -> None:
        """Count an encoder batch."""
        self._batches.labels(tower).observe(items)

    def observe_recall(self, modality: str, recall: float, seconds: float) -> None:
        """Publish what a probe found."""
        self._recall.labels(modality).set(recall)
        self._probe_seconds.labels(modality).set(seconds)
        self._probed.set_to_current_time()


class _Read(Collector):
    """A gauge with one label whose values are read when they are asked for."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauge without values."""
        yield GaugeMetricFamily(self._name, self._text, labels=[self._label])

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauge."""
        found = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for label, value in self._read().items():
            found.add_metric([label], value)
        yield found


_CORPUS: dict[str, tuple[str, Callable[[CorpusGauges], float]]] = {
    "mmecg_corpus_studies": ("Stored studies.", lambda corpus: corpus.studies),
    "mmecg_corpus_sequence": ("Last committed sequence number.", lambda corpus: corpus.sequence),
    "mmecg_corpus_writable": ("1, or 0 once a fault made the corpus read-only.", lambda corpus: corpus.writable),
    "mmecg_corpus_unfinished_erasures": (
        "Subjects that are out of all answers, but not yet out of the files.",
        lambda corpus: corpus.unfinished_erasures,
    ),
    "mmecg_index_refused_snapshots": (
        "Snapshots that could not be used at the start.",
        lambda corpus: corpus.refused_snapshots,
    ),
    "mmecg_index_rebuilt": (
        "Indexes that the start made anew from the database, the metadata table among them.",
        lambda corpus: corpus.rebuilt,
    ),
    "mmecg_index_lag_commits": ("Commits that a search does not see yet.", lambda corpus: corpus.index_lag),
}
_INDEX: dict[str, tuple[str, Callable[[IndexGauges], float | None]]] = {
    "mmecg_index_rows": ("Vectors that can be found.", lambda index: index.rows),
    "mmecg_index_tombstones": ("Vectors removed or replaced that still take room.", lambda index: index.tombstones),
    "mmecg_index_tail_rows": ("Vectors outside the approximate index.", lambda index: index.tail_rows),
    "mmecg_index_unsaved_commits": ("Commits that the newest snapshot lacks.", lambda index: index.unsaved_commits),
    "mmecg_index_snapshot_timestamp_seconds": ("When the newest snapshot was made.", lambda index: index.snapshot_at),
    "mmecg_index_compaction_duration_seconds": ("Duration of the last compaction.", lambda index: index.compaction_s),
}


class _CorpusCollector(Collector):
    """The state of a corpus, read once for all its gauges.

    A corpus that has been closed has none, one that cannot be read any more says so.
    """

    def __init__(self, corpus: Callable[[], Measurable | None]) -> None:
        self._corpus = corpus

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauges without values."""
        yield from (GaugeMetricFamily(name, text) for name, (text, _) in _CORPUS.items())
        yield from (GaugeMetricFamily(name, text, labels=["modality"]) for name, (text, _) in _INDEX.items())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauges."""
        corpus = self._corpus()
        if corpus is None:
            return
        try:
            found = corpus.gauges()
        except MmecgError:
            if not corpus.writable:  # else it is closed
                name = "mmecg_corpus_writable"
                yield GaugeMetricFamily(name, _CORPUS[name][0], value=0)
            return
        for name, (text, read) in _CORPUS.items():
            yield GaugeMetricFamily(name, text, value=float(read(found)))
        for name, (text, read_index) in _INDEX.items():
            family = GaugeMetricFamily(name, text, labels=["modality"])
            for modality, index in found.indexes.items():
                if (value := read_index(index)) is not None:
                    family.add_metric([modality], float(value))
            yield family


class MetricsEndpoint:
    """``http://host:port/metrics``, open until it is closed.

    Raises
    ------
    ConfigError
        The address cannot be bound.
    """

    def __init__(self, config: MetricsConfig, metrics: Metrics) -> None:
        try:
            self._server, self._thread = start_http_server(config.port or 0, config.host, metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics.host {config.host} and metrics.port {config.port} cannot be bound ({error.strerror}); "
                "is another server there?"
            ) from None
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
