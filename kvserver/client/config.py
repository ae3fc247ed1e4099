"""What a client needs to know before it connects.

Rules: values only; validation happens here, so that a `Client` never meets an impossible endpoint. TLS is a later step: an https endpoint
is refused with a clear error rather than silently spoken to in the clear.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from kvserver.client.errors import InvalidEndpointError, NoEndpointError

DEFAULT_ENDPOINT: Final = "127.0.0.1:2379"
MAX_REQUEST_BYTES: Final = 2 * 1024 * 1024
"""What a server receives at most; a larger request is refused here, before it is sent."""

MIN_KEEPALIVE_TIME_S: Final = 10.0
"""Servers cut connections that ping more often than every 5 s; the same floor as in gRPC for Go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server address: `text` as the user wrote it (it stands in output), `target` as gRPC wants it, `host` and `port` for diagnosis."""

    text: str
    target: str
    host: str
    port: int


def parse_endpoint(text: str) -> Endpoint:
    """`host:port`, or `http://host:port` with anything behind it ignored. Raises `InvalidEndpointError`."""
    if text.startswith(("https://", "unixs:")):
        raise InvalidEndpointError(text, "TLS is not supported by this version")
    if text.startswith("unix:"):
        raise InvalidEndpointError(text, "unix sockets are not supported")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidEndpointError(text, str(error)) from None
    if parts.scheme != "http":
        raise InvalidEndpointError(text, f'unknown scheme "{parts.scheme}"')
    if not host or port is None:
        raise InvalidEndpointError(text, "expected host:port or http://host:port")
    return Endpoint(text=text, target=_target(host, port), host=host, port=port)


def _target(host: str, port: int) -> str:
    """Literal addresses go past the name resolver: no resolver threads, no DNS round trip, no proxy lookup."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"dns:///{host}:{port}"
    return f"ipv4:{host}:{port}" if address.version == 4 else f"ipv6:[{host}]:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Where and how to connect.

    `dial_timeout_s` bounds the search for a reachable endpoint, `call_timeout_s` (None: unbounded) a call once one is found. With an empty
    `user` there is no authentication.
    """

    endpoints: tuple[Endpoint, ...]
    dial_timeout_s: float = 2.0
    call_timeout_s: float | None = 5.0
    keepalive_time_s: float = MIN_KEEPALIVE_TIME_S
    keepalive_timeout_s: float = 6.0
    user: str = ""
    password: str = ""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise NoEndpointError
        if self.dial_timeout_s <= 0 or self.keepalive_timeout_s <= 0:
            raise ValueError("timeouts must be positive")
