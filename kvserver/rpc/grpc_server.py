"""The grpcio server: listeners, limits and the stop.

Purpose: `GrpcServer` serves an `Api` on the client URLs until it is stopped.

Limits: the size of a message (`receive_limit_bytes`; grpcio's own limit is twice that, see grpc_binding), the bytes of requests from when
they are received until they are answered (intake.py), what a client may send ahead on one stream, the number of unary calls and of streams
being served (beyond it we answer `too many requests`; calls.py), the calls that gRPC holds before we see them, connections (one too many is
closed at once), streams per connection, keepalive pings (a client that pings more often than allowed is sent away).

gRPC's core takes calls off the wire faster than the loop begins to serve them. What it holds meanwhile has a bound of its own in gRPC, of
1,000 by default and random above that; what is beyond ours it cuts off, and the client sees CANCELLED. There is no other word to be had
from it, so the bound is twice that of calls being served, and one connection may not have so many open that it reaches both: what is
more waits in the client, as HTTP/2 has it.

Caveat: grpcio writes trouble of its own (a peer that does not speak HTTP/2) to stderr unless the environment says `GRPC_VERBOSITY=NONE`
before it is imported; the entry point sets that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc.aio

from kvserver.api import Api, ByteGate
from kvserver.config import PENDING_PER_REQUEST, ServerConfig, Url, other_request_bytes
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.rpc.calls import Calls
from kvserver.rpc.grpc_binding import bind_methods
from kvserver.rpc.intake import PATIENCE_S, Intake
from kvserver.rpc.ports import ListenError, check_free

__all__ = ["GrpcLimits", "GrpcServer"]

_INT_MAX: Final = 2**31 - 1
METADATA_BYTES: Final = 8 * 1024
"""Largest metadata of a call; gRPC's own limits are 8 KiB, above which it refuses at random, and 16 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcLimits:
    """What a client may take. Sizes in bytes, times in seconds; 0 s for `keepalive_interval_s` means no pings from us."""

    receive_limit_bytes: int = 2 * 1024 * 1024
    max_request_bytes_held: int = 16 * 1024 * 1024
    max_waiting_requests: int = 4096
    stream_window_bytes: int = 16 * 1024
    read_buffer_bytes: int = 64 * 1024
    max_concurrent_requests: int = 4096
    max_open_streams: int = 4096
    max_pending_calls: int = 2 * 4096
    max_connections: int = 4096
    listeners: int = 1
    max_concurrent_streams: int = _INT_MAX
    keepalive_min_time_s: float = 5.0
    keepalive_interval_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    request_timeout_s: float = 7.0
    patience_s: float = PATIENCE_S

    @classmethod
    def of(cls, config: ServerConfig) -> GrpcLimits:
        """The limits that the flags ask for."""
        return cls(
            max_connections=config.max_connections,
            listeners=len(config.listen_client_urls),
            stream_window_bytes=config.stream_window_bytes,
            max_open_streams=config.max_open_streams,
            max_pending_calls=PENDING_PER_REQUEST * config.max_concurrent_requests,
            receive_limit_bytes=config.receive_limit_bytes,
            max_request_bytes_held=config.max_inflight_bytes,
            max_waiting_requests=config.max_inflight_requests,
            max_concurrent_requests=config.max_concurrent_requests,
            max_concurrent_streams=min(config.max_concurrent_streams, config.calls_per_connection),
            request_timeout_s=config.request_timeout_s,
            keepalive_min_time_s=config.grpc_keepalive_min_time_s,
            keepalive_interval_s=config.grpc_keepalive_interval_s,
            keepalive_timeout_s=config.grpc_keepalive_timeout_s,
        )

    @property
    def message_limit_bytes(self) -> int:
        """The largest message that grpcio receives."""
        return 2 * self.receive_limit_bytes

    def intake(self) -> Intake:
        """The gates for requests."""
        others_bytes = other_request_bytes(self.receive_limit_bytes)
        return Intake(
            writes=ByteGate(max_bytes=self.max_request_bytes_held, max_waiting=self.max_waiting_requests),
            others=ByteGate(max_bytes=others_bytes, max_waiting=self.max_waiting_requests),
            message_bytes=self.receive_limit_bytes,
            wait_s=self.request_timeout_s,
            patience_s=self.patience_s,
        )

    def channel_options(self) -> list[tuple[str, int]]:
        """The same in grpcio's words."""
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.message_limit_bytes),
            ("grpc.http2.lookahead_bytes", self.stream_window_bytes),
            ("grpc.experimental.tcp_max_read_buffer_size", self.read_buffer_bytes),  # of each connection; it grows to megabytes
            ("grpc.http.overload_protection", 0),
            ("grpc.http2.bdp_probe", 0),  # it would widen the windows of streams that nobody reads from
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", max(1, self.max_connections // self.listeners)),  # each listener has its own count
            ("grpc.server.max_pending_requests", self.max_pending_calls),
            ("grpc.server.max_pending_requests_hard_limit", self.max_pending_calls),  # equal: nothing below it is cut off by chance
            ("grpc.max_concurrent_streams", min(self.max_concurrent_streams, _INT_MAX)),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(self.keepalive_min_time_s)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _milliseconds(self.keepalive_min_time_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_interval_s) or _INT_MAX),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive_timeout_s) or _INT_MAX),
        ]


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), _INT_MAX)


class GrpcServer:
    """The client API on one or several addresses. Made and used on the loop."""

    def __init__(self, api: Api, *, limits: GrpcLimits, metrics: Metrics, logger: Logger) -> None:
        self._logger = logger
        self._server = grpc.aio.server(options=limits.channel_options())
        self.intake = limits.intake()
        self.calls = Calls(max_unary=limits.max_concurrent_requests, max_streams=limits.max_open_streams)
        self._server.add_generic_rpc_handlers(
            bind_methods(
                api, metrics=metrics, logger=logger, receive_limit_bytes=limits.receive_limit_bytes, intake=self.intake, calls=self.calls
            )
        )

    async def start(self, urls: Sequence[Url]) -> tuple[Url, ...]:
        """Listen and serve; returns the URLs with the ports that were bound (for port 0).

        Raises `ListenError` when an address can't be bound; nothing is served then.
        """
        bound = tuple(self._listen(url) for url in urls)
        await self._server.start()
        for url in bound:
            self._logger.info("serving client requests", address=url.netloc, protocol="grpc", tls=False)
        return bound

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those being served `grace_s` seconds, then cancel them. May be called twice."""
        await self._server.stop(grace_s)

    def _listen(self, url: Url) -> Url:
        check_free(url)
        address = f"[{url.bind_host}]:{url.port}" if ":" in url.bind_host else f"{url.bind_host}:{url.port}"
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(f"listen tcp {url.netloc}: {error}") from error
        return Url(host=url.host, port=port)
