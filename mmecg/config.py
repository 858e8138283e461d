"""Configuration: TOML into frozen dataclasses, strictly.

Every program has one dataclass here whose fields are its keys; nested dataclasses are TOML tables. An unknown key, a
wrong type or an impossible value is a :class:`mmecg.errors.ConfigError`. Nothing reads the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmecg.errors import ConfigError

T = TypeVar("T")

Precision = Literal["auto", "float32", "bfloat16"]
"""What the ECG tower computes in; ``"auto"`` is bfloat16 where the processor has instructions for it."""

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
            _require(getattr(self, name) > 0, f"limits.{name} is {getattr(self, name)}, expected more than 0")
        _require(
            self.max_queue >= self.max_batch,
            f"limits.max_queue is {self.max_queue}, expected at least limits.max_batch ({self.max_batch}); "
            "raise it, or lower limits.max_batch",
        )
        low = 64 * 1024
        _require(
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
        _require(
            (self.certificate is None) == (self.key is None),
            "tls.certificate and tls.key go together; give both or neither",
        )
        _require(
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
        _require(0 <= self.port <= 65535, f"port is {self.port}, expected 0 to 65535")
        _require(self.torch_threads >= 0, f"torch_threads is {self.torch_threads}, expected 0 or more")
        _require(self.drain_s >= 0, f"drain_s is {self.drain_s:g}, expected 0 or more")
        _require(
            self.host in LOOPBACK_HOSTS or self.tls.certificate is not None or self.allow_plaintext,
            f"host is {self.host}, which others can reach, but there is no TLS; set tls.certificate and tls.key, "
            "bind 127.0.0.1, or set allow_plaintext = true if a proxy ends TLS",
        )


def load_config(kind: type[T], path: Path | None = None, **overrides: Any) -> T:
    """Read a configuration file.

    Parameters
    ----------
    kind : type
        A frozen dataclass, for example :class:`ServerConfig`.
    path : Path, optional
        A TOML file. Without one, the defaults. Relative paths in it are relative to its folder.
    **overrides
        Values that win over the file, as a command line gives them; ``None`` means not given.

    Raises
    ------
    ConfigError
        The file cannot be read or is not TOML, a key is unknown, or a value has the wrong type or is impossible.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"configuration {path} cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration {path} is not TOML: {error}") from None
    values |= {name: value for name, value in overrides.items() if value is not None}
    return parse_config(kind, values, root=path.parent if path else Path())


def parse_config(kind: type[T], values: Mapping[str, Any], *, root: Path | None = None, prefix: str = "") -> T:
    """Build a configuration dataclass from a mapping, as :func:`load_config` does.

    Parameters
    ----------
    kind : type
        A frozen dataclass.
    values : mapping of str to value
        Keys are field names; a nested dataclass takes a mapping.
    root : Path, optional
        Folder that relative paths given as strings are relative to.
    prefix : str
        Put before the names in messages.

    Raises
    ------
    ConfigError
        See :func:`load_config`.
    """
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ConfigError(f"configuration key {prefix}{name} is unknown; {advice}")
    return kind(**{name: _convert(hints[name], value, root, prefix + name) for name, value in values.items()})


def effective_config(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, for the log: paths as strings, no secrets (keys are given as paths)."""
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = effective_config(value)
        plain[item.name] = str(value) if isinstance(value, Path) else value
    return plain


def _convert(hint: Any, value: Any, root: Path | None, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"configuration key {name} is not a table; write [{name}]")
        return parse_config(hint, value, root=root, prefix=f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"configuration key {name} has type {type(value).__name__}, expected a list")
        return tuple(_convert(arguments[0], item, root, name) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(
                f"configuration key {name} is {value!r}, expected one of {', '.join(map(repr, arguments))}"
            )
        return value
    if isinstance(hint, types.UnionType):
        choices = [choice for choice in arguments if choice is not type(None)]
        return _convert(choices[0], value, root, name)
    if hint is Path and isinstance(value, str):
        return (root or Path()) / value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"configuration key {name} has type {type(value).__name__}, expected {_type_name(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"configuration key {name} is {value}, expected a finite number")
    return value


def _type_name(hint: type) -> str:
    return "str (a path)" if hint is Path else hint.__name__


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
