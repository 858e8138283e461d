"""Is a server ready? One call of ``grpc.health.v1``, without the packages of a server."""

from __future__ import annotations

import grpc

from mmecg.client.channel import ChannelOptions, credentials

_METHOD = "/grpc.health.v1.Health/Check"
_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def check_health(address: str, service: str = "", options: ChannelOptions | None = None) -> str:
    """Return what a server says of itself, or of one of its services.

    Parameters
    ----------
    address : str
        ``host:port``.
    service : str
        ``mmecg.v1.CorpusService``; empty for the server.
    options : ChannelOptions, optional
        Timeout, TLS and token.

    Returns
    -------
    str
        ``"SERVING"``, ``"NOT_SERVING"``, ``"SERVICE_UNKNOWN"``, or ``"UNREACHABLE"`` if no answer came in time.

    Raises
    ------
    ConfigError
        See :class:`ChannelOptions`.
    """
    options = options or ChannelOptions()
    tls = credentials(address, options)
    arguments = options.arguments()
    name = service.encode()
    # HealthCheckRequest{string service = 1}; HealthCheckResponse{enum status = 1}.
    request = b"\n" + bytes([len(name)]) + name if 0 < len(name) < 128 else b""
    with grpc.secure_channel(address, tls, arguments) if tls else grpc.insecure_channel(address, arguments) as channel:
        try:
            ask = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
            answer: bytes = ask(
                request, timeout=options.timeout_s, metadata=tuple(options.metadata()), wait_for_ready=True
            )
        except grpc.RpcError as error:
            unknown = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND
            return "SERVICE_UNKNOWN" if unknown else "UNREACHABLE"
    return _STATUSES.get(answer[1] if len(answer) == 2 else 0, "UNKNOWN")
