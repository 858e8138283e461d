"""How to reach a server: timeout, retries, message size and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

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
    tls_ca : Path, optional
        Certificate authority, PEM, that signed the server's certificate; turns TLS on.
    tls_certificate, tls_key : Path, optional
        The client's own certificate and key, PEM, for mutual TLS.
    """

    timeout_s: float = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def arguments(self) -> list[tuple[str, int]]:
        """Return the channel arguments of gRPC."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
        ]


def credentials(options: ChannelOptions) -> grpc.ChannelCredentials | None:
    """Return the TLS credentials, None for plain text.

    Raises
    ------
    ConfigError
        A file cannot be read.
    """
    if options.tls_ca is None:
        return None
    try:
        key = None if options.tls_key is None else options.tls_key.read_bytes()
        certificate = None if options.tls_certificate is None else options.tls_certificate.read_bytes()
        return grpc.ssl_channel_credentials(options.tls_ca.read_bytes(), key, certificate)
    except OSError as error:
        raise ConfigError(f"TLS file {error.filename} cannot be read ({error.strerror})") from None


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
