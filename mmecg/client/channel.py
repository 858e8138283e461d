"""How to reach a server: timeout, retries, message size, TLS and token."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from mmecg.client.batches import MAX_BYTES
from mmecg.client.retry import RetryPolicy
from mmecg.errors import ConfigError, InvalidInputError

Request = TypeVar("Request", bound=Message)

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """How a client talks to its server.

    Attributes
    ----------
    timeout_s : float
        Time given to a unary call with all its retries. Streams last as long as they need.
    retry : RetryPolicy
    max_message_bytes : int
        Largest message in either direction; the server publishes its own (``Client.info``).
    tls : bool
        Speak TLS, and trust the authorities that gRPC ships.
    tls_ca : Path, optional
        Certificate authority, PEM, that signed the server's certificate; turns TLS on and is the only one trusted.
    tls_certificate, tls_key : Path, optional
        The client's own certificate and key, PEM, for mutual TLS.
    tls_server_name : str, optional
        Name that the server's certificate must bear, where that is not the host of the address.
    token : str or callable, optional
        Bearer token, or what returns it: asked at every attempt, so that it can be renewed. Never shown.
    allow_plaintext_token : bool
        Send the token without TLS to another machine, where everybody on the way can read it.
    """

    timeout_s: float = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    allow_plaintext_token: bool = False

    @property
    def max_batch_bytes(self) -> int:
        """Largest message of several items: well below the limit of a message, which counts more than the items."""
        return min(MAX_BYTES, self.max_message_bytes // 2)

    def arguments(self) -> list[tuple[str, int | str]]:
        """Return the channel arguments of gRPC."""
        sizes: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
        ]
        name = self.tls_server_name
        return sizes if name is None else [*sizes, ("grpc.ssl_target_name_override", name)]

    def metadata(self) -> list[tuple[str, str]]:
        """Return what goes with every call: the token."""
        if self.token is None:
            return []
        token = self.token if isinstance(self.token, str) else self.token()
        return [("authorization", f"Bearer {token}")]


def credentials(address: str, options: ChannelOptions) -> grpc.ChannelCredentials | None:
    """Return the TLS credentials, None for plain text.

    Raises
    ------
    ConfigError
        A file cannot be read, or a token would cross the network in plain text.
    """
    if not options.tls and options.tls_ca is None:
        if options.token is not None and not options.allow_plaintext_token and not _is_loopback(address):
            raise ConfigError(
                "the token would cross the network in plain text; set tls_ca (or tls), or allow_plaintext_token if "
                "nobody can read the way"
            )
        return None
    try:
        files = (options.tls_ca, options.tls_key, options.tls_certificate)
        return grpc.ssl_channel_credentials(*(None if path is None else path.read_bytes() for path in files))
    except OSError as error:
        raise ConfigError(f"TLS file {error.filename} cannot be read ({error.strerror})") from None


def _is_loopback(address: str) -> bool:
    """Return whether an address (``host:port``, ``[::1]:port``, ``unix:path``) is on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_size(request: Request, options: ChannelOptions) -> Request:
    """Return a request that fits into a message.

    Raises
    ------
    InvalidInputError
        It does not.
    """
    if request.ByteSize() > options.max_message_bytes:
        raise InvalidInputError(
            f"the request has {request.ByteSize()} bytes, expected at most {options.max_message_bytes}; "
            "send fewer items at once, or use a stream"
        )
    return request


def checked(requests: Iterator[Request], options: ChannelOptions) -> Iterator[Request]:
    """Yield requests that fit into a message; see :func:`check_size`."""
    for request in requests:
        yield check_size(request, options)
