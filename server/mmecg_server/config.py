"""The keys of ``python -m mmecg_server`` and ``mmecg serve``; ``server/README.md`` explains each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmecg.config import Precision, require

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
    """

    max_message_bytes: int = 64 * 2**20
    max_batch: int = 64
    max_in_flight: int = 32
    max_streams: int = 4
    max_queue: int = 256
    default_deadline_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_in_flight", "max_streams", "max_queue", "default_deadline_s"):
            require(getattr(self, name) > 0, f"limits.{name} is {getattr(self, name)}, expected more than 0")
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
        Address to bind. Anything but the loopback address needs ``tls``, or ``allow_plaintext``.
    port : int
        0 to 65535; 0 picks a free port, which the log names.
    allow_plaintext : bool
        Bind a public address without TLS, because something in front of the server ends it.
    precision : {"auto", "float32", "bfloat16"}
        What the ECG tower computes in; "auto" is bfloat16 where the processor has instructions for it.
    torch_threads : int
        Threads of one encoder call; 0 is half of the processor's cores, so that the others are free for the calls.
    reflection : bool
        Answer gRPC reflection, so that tools can list services and messages.
    drain_s : float
        Time given to running calls after SIGTERM.
    limits : LimitsConfig
        What the server accepts.
    tls : TlsConfig
        Transport security.
    """

    corpus: Path | None = None
    bundle: Path | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    allow_plaintext: bool = False
    precision: Precision = "auto"
    torch_threads: int = 0
    reflection: bool = True
    drain_s: float = 20.0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port is {self.port}, expected 0 to 65535")
        require(self.torch_threads >= 0, f"torch_threads is {self.torch_threads}, expected 0 or more")
        require(self.drain_s >= 0, f"drain_s is {self.drain_s:g}, expected 0 or more")
        require(
            self.host in LOOPBACK_HOSTS or self.tls.certificate is not None or self.allow_plaintext,
            f"host is {self.host}, which others can reach, but there is no TLS; set tls.certificate and tls.key, "
            "bind 127.0.0.1, or set allow_plaintext = true if a proxy ends TLS",
        )
