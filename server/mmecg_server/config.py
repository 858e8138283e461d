"""The keys of ``python -m mmecg_server`` and ``mmecg serve``; ``server/README.md`` explains each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmecg.config import Precision, require

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""Signatures of tokens: with a public key only, so that no key can be mistaken for another kind's secret."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What the server accepts; published by ``InfoService.GetServerInfo``.

    Attributes
    ----------
    max_message_bytes : int
        Largest message in either direction.
    max_batch : int
        Most items of one unary embedding request, and of one encoder call.
    max_in_flight : int
        Unary calls served at the same time. Each holds one thread and at most one message of ``max_message_bytes``.
    max_streams : int
        Streams served at the same time.
    max_queue : int
        Items that may wait for each encoder tower; at least ``max_batch``, or a full batch could never be taken.
    default_deadline_s : float
        Time given to a call without a deadline; also the longest time that any unary call is given.
    stream_idle_s : float
        Time after which a stream ends on which nothing moves: its client neither sends nor reads.
    max_stream_s : float
        Longest time of a stream. The typed client goes on with another one; who may call is decided anew.
    max_connections : int
        Connections at the same time; further ones are closed at once. Each is a file handle.
    connection_idle_s : float
        Time after which a connection without a call is closed; clients open another one when they need it.
    rate_per_s : float
        Calls a second that one principal may start on average; 0 is no limit. A stream is one call.
    burst : int
        Calls that it may start at once after a pause.
    max_in_flight_per_principal : int
        Calls and streams of one principal at the same time; 0 is no limit but the two above.
    """

    max_message_bytes: int = 64 * 2**20
    max_batch: int = 64
    max_in_flight: int = 32
    max_streams: int = 4
    max_queue: int = 256
    default_deadline_s: float = 60.0
    stream_idle_s: float = 300.0
    max_stream_s: float = 3600.0
    max_connections: int = 1000
    connection_idle_s: float = 600.0
    rate_per_s: float = 0.0
    burst: int = 50
    max_in_flight_per_principal: int = 0

    def __post_init__(self) -> None:
        may_be_0 = ("max_message_bytes", "rate_per_s", "max_in_flight_per_principal")
        for name, value in vars(self).items():
            require(value > 0 or name in may_be_0, f"limits.{name} is {value}, expected more than 0")
            require(value >= 0, f"limits.{name} is {value}, expected 0 or more")
        require(
            self.max_queue >= self.max_batch,
            f"limits.max_queue is {self.max_queue}, expected at least limits.max_batch ({self.max_batch}); "
            "raise it, or lower limits.max_batch",
        )
        low = 64 * 1024
        require(
            low <= self.max_message_bytes < 2**31,
            f"limits.max_message_bytes is {self.max_message_bytes}, expected {low} to {2**31 - 1}",
        )


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Transport security. Without certificate and key the port speaks plain text.

    Attributes
    ----------
    certificate, key : Path, optional
        Server certificate chain and private key, PEM; both or neither.
    client_ca : Path, optional
        Certificate authority, PEM, whose signature every client certificate must bear (mutual TLS).
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        require(
            (self.certificate is None) == (self.key is None),
            "tls.certificate and tls.key go together; give both or neither",
        )
        require(
            self.client_ca is None or self.certificate is not None, "tls.client_ca needs tls.certificate and tls.key"
        )


@dataclass(frozen=True, kw_only=True)
class JwtConfig:
    """JSON Web Tokens of an identity provider; not accepted without ``key`` or ``jwks``.

    Attributes
    ----------
    key, jwks : Path, optional
        The issuer's public key, PEM; or its key set, JSON. One of them.
    algorithm : str
        The one algorithm that is accepted: RS256 and longer, PS256 and longer, ES256, ES384 or EdDSA.
    issuer, audience : str
        What the claims ``iss`` and ``aud`` must say.
    leeway_s : float
        How far the clocks of issuer and server may differ.
    name_claim, roles_claim : str
        Claims that hold the principal's name, and its roles (a list, or a text with spaces; unknown ones are left out).
    sites_claim, subjects_claim : str
        Claims that hold the sites and subjects a token is restricted to, ``"*"`` for no restriction; a token without
        the claim is refused. Empty: tokens are not restricted that way.
    """

    key: Path | None = None
    jwks: Path | None = None
    algorithm: Algorithm = "RS256"
    issuer: str = ""
    audience: str = ""
    leeway_s: float = 30.0
    name_claim: str = "sub"
    roles_claim: str = "roles"
    sites_claim: str = ""
    subjects_claim: str = ""

    def __post_init__(self) -> None:
        require(self.key is None or self.jwks is None, "auth.jwt has key and jwks, expected one of them")
        if self.is_on:
            for name in ("issuer", "audience", "name_claim", "roles_claim"):
                require(bool(getattr(self, name)), f"auth.jwt.{name} is not set, expected it beside the key")
        require(0 <= self.leeway_s <= 300, f"auth.jwt.leeway_s is {self.leeway_s:g}, expected 0 to 300")

    @property
    def is_on(self) -> bool:
        """True if such tokens are accepted."""
        return self.key is not None or self.jwks is not None


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Who may call. Without any of it everybody who can connect may do everything.

    Attributes
    ----------
    principals : Path, optional
        TOML file of those with a token (``mmecg token``) or a client certificate, read again when it changes.
    jwt : JwtConfig
        Tokens of an identity provider.
    allow_plaintext_tokens : bool
        Accept tokens without TLS on an address that others can reach, because a proxy in front ends TLS and nobody
        reads the network behind it.
    """

    principals: Path | None = None
    jwt: JwtConfig = field(default_factory=JwtConfig)
    allow_plaintext_tokens: bool = False

    @property
    def is_on(self) -> bool:
        """True if callers must show who they are."""
        return self.principals is not None or self.jwt.is_on


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Metrics for Prometheus over HTTP; off unless a port is given.

    Attributes
    ----------
    host : str
        Address to bind. Anything but the loopback address needs ``allow_remote``.
    port : int, optional
        1 to 65535, or 0 for a free one, which the log names.
    allow_remote : bool
        Bind an address that others can reach, although whoever reaches it may read the metrics.
    recall_probe_s : float
        Pause between two probes of the index's recall; 0 for none.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allow_remote: bool = False
    recall_probe_s: float = 300.0

    def __post_init__(self) -> None:
        require(
            self.port is None or 0 <= self.port <= 65535, f"metrics.port is {self.port}, expected 0 to 65535, or none"
        )
        require(self.recall_probe_s >= 0, f"metrics.recall_probe_s is {self.recall_probe_s:g}, expected 0 or more")
        require(
            self.host in LOOPBACK_HOSTS or self.allow_remote,
            f"metrics.host is {self.host}, which others can reach; bind 127.0.0.1, or set metrics.allow_remote = true "
            "if everybody there may read the metrics",
        )


@dataclass(frozen=True, kw_only=True)
class TracingConfig:
    """Traces for an OpenTelemetry collector; off unless an endpoint is given.

    Attributes
    ----------
    endpoint : str, optional
        Where traces go, as OTLP over gRPC: ``https://host:4317``, or ``http://`` without TLS.
    ca : Path, optional
        Certificate authority, PEM, that signed the collector's certificate; default those of the system.
    sample_ratio : float
        Share of the calls that are traced, unless the caller's ``traceparent`` has decided already.
    """

    endpoint: str | None = None
    ca: Path | None = None
    sample_ratio: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.endpoint is None or (self.endpoint.startswith(("http://", "https://")) and "@" not in self.endpoint),
            "tracing.endpoint is not an address, expected http://host:port or https://host:port",
        )
        require(0 <= self.sample_ratio <= 1, f"tracing.sample_ratio is {self.sample_ratio:g}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class AdminConfig:
    """What AdminService may use.

    Attributes
    ----------
    backup_dir : Path, optional
        Directory that backups are written into; without one, AdminService writes none.
    bundle_dir : Path, optional
        Directory of bundles that may take over: by AdminService, and at the start if the corpus was switched to one.
    """

    backup_dir: Path | None = None
    bundle_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is entered in the audit trail beside writes, refusals and an operator's calls, which always are.

    Attributes
    ----------
    reads : {"buffered", "durable", "off"}
        Calls that read and were answered: entered within a second, entered before the answer, or left out.
    """

    reads: Literal["buffered", "durable", "off"] = "buffered"


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How the corpus is written.

    Attributes
    ----------
    synchronous : {"full", "normal"}
        "full": an acknowledged write survives a power cut. "normal" syncs less often: the last writes may be lost by a
        power cut, never by the end of the process, and what is there is consistent.
    reserve_bytes : int
        Free bytes of the disk below which writes are refused; room to move the log, to delete and to save indexes.
    """

    synchronous: Literal["full", "normal"] = "full"
    reserve_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        require(self.reserve_bytes >= 0, f"storage.reserve_bytes is {self.reserve_bytes}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How vectors are indexed. What is not set stays as the corpus remembers it.

    Attributes
    ----------
    factory : str, optional
        FAISS factory string of the approximate indexes (``HNSW32``, ``HNSW32_SQ8``, ``IVF4096,PQ64``, …), or ``Flat``;
        by the number of vectors at first. Another one than before means that the indexes are built anew.
    memory_map : bool, optional
        Map the saved indexes instead of reading them into memory, for a corpus that is larger; false at first.
    """

    factory: str | None = None
    memory_map: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Configuration of ``python -m mmecg_server`` and ``mmecg serve``.

    Attributes
    ----------
    corpus : Path, optional
        Corpus directory, created if it is not there, or empty. Without one, the demo corpus is served from a temporary
        directory that is removed at the end.
    bundle : Path, optional
        Model bundle directory. Without one, the bundle that ships with mmecg.
    host : str
        Address to bind. Anything but the loopback address needs ``tls``, or ``allow_plaintext``, and ``auth``, or
        ``tls.client_ca``, or ``allow_anonymous``.
    port : int
        0 to 65535; 0 picks a free port, which the log names.
    allow_plaintext : bool
        Bind a public address without TLS, because something in front of the server ends it.
    allow_anonymous : bool
        Bind a public address although whoever reaches it may read and delete everything.
    precision : {"auto", "float32", "bfloat16"}
        What the ECG tower computes in; "auto" is bfloat16 where the processor has instructions for it.
    torch_threads : int
        Threads of one encoder call; 0 is half of the processor's cores, so that the others are free for the calls.
    reflection : bool
        Answer gRPC reflection, so that tools can list services and messages.
    drain_s : float
        Time given to running calls after SIGTERM.
    storage : StorageConfig
        How the corpus is written.
    index : IndexConfig
        How vectors are indexed.
    limits : LimitsConfig
        What the server accepts.
    tls : TlsConfig
        Transport security.
    metrics : MetricsConfig
        Metrics for Prometheus.
    tracing : TracingConfig
        Traces for an OpenTelemetry collector.
    auth : AuthConfig
        Who may call.
    admin : AdminConfig
        What AdminService may use.
    audit : AuditConfig
        What is entered in the audit trail.
    """

    corpus: Path | None = None
    bundle: Path | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    allow_plaintext: bool = False
    allow_anonymous: bool = False
    precision: Precision = "auto"
    torch_threads: int = 0
    reflection: bool = True
    drain_s: float = 20.0
    storage: StorageConfig = field(default_factory=StorageConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port is {self.port}, expected 0 to 65535")
        require(self.torch_threads >= 0, f"torch_threads is {self.torch_threads}, expected 0 or more")
        require(self.drain_s >= 0, f"drain_s is {self.drain_s:g}, expected 0 or more")
        if self.host not in LOOPBACK_HOSTS:
            self._check_public()

    def _check_public(self) -> None:
        """Refuse an address that others can reach, unless it is protected or a flag says that it is meant."""
        has_tls = self.tls.certificate is not None
        what = f"host is {self.host}, which others can reach, but"
        require(
            has_tls or self.allow_plaintext,
            f"{what} there is no TLS; set tls.certificate and tls.key, bind 127.0.0.1, or set allow_plaintext = true "
            "if a proxy ends TLS",
        )
        require(
            self.auth.is_on or self.tls.client_ca is not None or self.allow_anonymous,
            f"{what} nobody has to show who they are; set auth.principals, auth.jwt or tls.client_ca, bind 127.0.0.1, "
            "or set allow_anonymous = true if everybody who reaches it may read and delete everything",
        )
        require(
            has_tls or not self.auth.is_on or self.auth.allow_plaintext_tokens,
            f"{what} tokens would cross the network in plain text; set tls.certificate and tls.key, bind 127.0.0.1, or "
            "set auth.allow_plaintext_tokens = true if a proxy ends TLS and nobody reads the network behind it",
        )
