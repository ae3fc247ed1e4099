"""The outgoing half of one peer: dial, keep alive, send, dial again.

States: down (dialling or waiting to dial) -> up (hello accepted) -> down. Only an up link takes frames; a down one refuses them, as raft
repeats what matters and old messages are worth nothing.

Rules
- One task per link, named; it ends by cancellation only. Every failure to connect leads to another attempt after a bounded, growing delay.
- Requests (requests) are answered on the connection that carried them; whatever is unanswered when it ends, fails.
- A reason for being down is logged when it changes, not per attempt.
- Writing: frames go to the socket while its buffer is below the high-water mark, the rest waits in the outbox; urgent frames first. One
  large write for each turn of the loop: the kernel copies what it takes at once, a millisecond per megabyte.
- Alive means: a pong (or a part of an answer) within `ping_timeout_s`, or, while bulk fills the buffer, bytes that leave. Otherwise the
  connection is aborted.

Invariants: the outbox is empty while the link is down. What the queue loses is counted in `dropped_frames`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from kvserver.config.urls import Url
from kvserver.logs import Logger
from kvserver.metrics import ROUND_TRIP_BUCKETS_S, LatencyHistogram
from kvserver.peer.connection import WRITE_HIGH_WATER_BYTES, FrameConnection
from kvserver.peer.dial import Backoff, dial
from kvserver.peer.errors import (
    ConnectionClosedError,
    FrameError,
    PeerNotConnectedError,
    PeerRequestOverflowError,
    PeerRequestTimeoutError,
    RefusedError,
)
from kvserver.peer.frames import HEADER_SIZE_BYTES, Frame, FrameType, encode_frame
from kvserver.peer.handshake import Identity, RemoteIdentity, StreamKind
from kvserver.peer.options import TransportOptions
from kvserver.peer.outbox import Outbox, OutFrame, out_frame
from kvserver.peer.request_frames import MAX_RESPONSE_FRAME_SIZE_BYTES, decode_response, encode_request
from kvserver.peer.requests import OutstandingRequests
from kvserver.peer.tasks import TaskBag
from kvserver.types import NodeId

PING_NONCE: Final = struct.Struct(">d")
"""A ping's meta: the sender's clock in seconds; the pong brings it back."""

_RTT_WEIGHT: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEvents:
    """Whom a link tells what; all called on the loop, none may block."""

    on_contact: Callable[[NodeId], None]
    on_down: Callable[[NodeId], None]
    on_up: Callable[[NodeId, RemoteIdentity], None]
    on_refused: Callable[[NodeId, RefusedError], None]


class PeerLink:
    """See the module. `peer_id` is the remote member, `urls` where it may be dialled, in turn."""

    def __init__(
        self,
        peer_id: NodeId,
        urls: Sequence[Url],
        *,
        identity: Identity,
        options: TransportOptions,
        events: LinkEvents,
        random: Random,
        logger: Logger,
    ) -> None:
        self.peer_id = peer_id
        self.dropped_frames = 0
        self.sent_bytes = 0
        self.connected_since_s: float | None = None
        self.rtt_s: float | None = None
        self.round_trips = LatencyHistogram(ROUND_TRIP_BUCKETS_S)
        self._urls = tuple(urls)
        self._identity = identity
        self._options = options
        self._events = events
        self._backoff = Backoff(options, random)
        self._logger = logger.bind(peer_id=f"{peer_id:x}")
        self._outbox = Outbox(options.outbox)
        self._requests = OutstandingRequests(peer_id)
        self._connection: FrameConnection | None = None
        self._next_write: asyncio.Handle | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._down_reason = ""
        self._ping_timer: asyncio.TimerHandle | None = None
        self._alive_s = 0.0
        self._drained_bytes = 0
        self._connection_bytes = 0

    @property
    def is_up(self) -> bool:
        """Frames are taken."""
        return self._connection is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for this peer, in the outbox and in the connection's buffer."""
        return self._outbox.queued_bytes + (0 if self._connection is None else self._connection.unsent_bytes)

    @property
    def outstanding_requests(self) -> int:
        """Requests sent and unanswered, those included for whose answer nobody waits any more."""
        return len(self._requests)

    @property
    def urls(self) -> tuple[Url, ...]:
        """Where the peer is dialled."""
        return self._urls

    def start(self, tasks: TaskBag) -> None:
        """Begin to dial."""
        assert self._task is None
        self._task = tasks.spawn(self.run(), name=f"peer-link-{self.peer_id:x}")

    def stop(self) -> FrameConnection | None:
        """Hang up; what is written is still sent over the connection that is returned, if there is one. The task ends in its own time."""
        connection = self._connection
        if self._task is not None:
            self._task.cancel()
        return connection

    def set_urls(self, urls: Sequence[Url]) -> None:
        """Dial there from now on; if they differ from before, a connection that exists is given up."""
        if tuple(urls) == self._urls:
            return
        self._urls = tuple(urls)
        if self._connection is not None:
            self._connection.abort()
        self.retry_now()

    def retry_now(self) -> None:
        """The peer gave a sign of life: don't wait for the next attempt's time."""
        self._wake.set()

    def send(self, frame: OutFrame) -> bool:
        """Queue the frame; False (and counted) if the link is down, the frame too large for the peer, or its lane full. `flush` writes."""
        connection = self._connection
        if connection is None:
            self.dropped_frames += 1
            return False
        if frame.size_bytes - HEADER_SIZE_BYTES > connection.send_bound_bytes:
            self.dropped_frames += 1
            self._logger.error(
                "peer message dropped: larger than the peer's frame bound",
                size_bytes=frame.size_bytes,
                bound_bytes=connection.send_bound_bytes,
            )
            return False
        if not self._outbox.push(frame):
            self.dropped_frames += 1
            return False
        return True

    def flush(self) -> None:
        """Write as much as the connection's buffer takes, or the first part of it if that is much."""
        connection = self._connection
        while connection is not None and connection.is_writable and len(self._outbox) and self._next_write is None:
            segments, size_bytes = self._outbox.take(WRITE_HIGH_WATER_BYTES)
            self.sent_bytes += size_bytes
            self._connection_bytes += size_bytes
            if size_bytes >= WRITE_HIGH_WATER_BYTES:
                self._next_write = asyncio.get_running_loop().call_soon(self._write_on)
            connection.write(segments)

    def _write_on(self) -> None:
        self._next_write = None
        self.flush()

    async def request(self, kind: int, payload: bytes, timeout_s: float) -> bytes:
        """Ask, and wait for the answer; see `Transport.request`."""
        if self._connection is None:
            raise PeerNotConnectedError(self.peer_id)
        request_id, answer = self._requests.open(len(payload))
        try:
            frame = encode_request(request_id, kind, timeout_s, payload)
            if not self.send(frame):
                raise PeerRequestOverflowError(self.peer_id, "the queue to the peer has no room for the request")
        except Exception:
            self._requests.withdraw(request_id)
            raise
        self.flush()
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await answer
        except TimeoutError:
            raise PeerRequestTimeoutError(self.peer_id, f"no answer within {timeout_s:g} s") from None
        if isinstance(outcome, bytes):
            return outcome
        raise outcome

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        """Only pongs and answers come on a dialled connection."""
        if frame.type is FrameType.RESPONSE:
            self._requests.settle(decode_response(frame))
            return
        if frame.type is not FrameType.PONG or len(frame.meta) != PING_NONCE.size:
            raise FrameError(f"{frame.type.name} came where only PONG or RESPONSE may come")
        frame.take(())
        now_s = asyncio.get_running_loop().time()
        (sent_s,) = PING_NONCE.unpack(frame.meta)
        if not 0 <= now_s - sent_s <= now_s - (self.connected_since_s or now_s):
            raise FrameError("a PONG answers a ping that was not sent")
        rtt_s = now_s - sent_s
        self.round_trips.observe(rtt_s)
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + _RTT_WEIGHT * (rtt_s - self.rtt_s)
        self._alive_s = now_s

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Something arrived from the peer; a part of a large answer is as good a sign of life as the pong that waits behind it."""
        self._alive_s = asyncio.get_running_loop().time()
        self._events.on_contact(self.peer_id)

    def on_writable(self, connection: FrameConnection) -> None:
        """Room in the connection's buffer."""
        self.flush()

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """The connection is gone, and with it what waited."""
        if self._connection is connection:
            self._go_down(str(error) if error else "closed by the peer or by this member")

    async def run(self) -> None:
        """Dial for ever; ends by cancellation."""
        try:
            attempt = 0
            while True:
                url = self._urls[attempt % len(self._urls)]
                attempt += 1
                await self._connect_and_stay(url)
                await self._wait_retry(self._backoff.next_delay_s())
        finally:
            connection = self._connection
            if connection is not None:
                self._go_down("stopped")
                connection.close()

    async def _connect_and_stay(self, url: Url) -> None:
        """One attempt; returns when it failed, or when the connection that it made is over."""
        try:
            connection, remote = await dial(
                url, self.peer_id, StreamKind.MESSAGES, identity=self._identity, options=self._options, logger=self._logger
            )
        except RefusedError as error:
            self._note_down(f"refused: {error}", url)
            self._events.on_refused(self.peer_id, error)
        except TimeoutError:
            self._note_down("no answer in time", url)
        except (OSError, ConnectionClosedError) as error:
            self._note_down(str(error), url)
        else:
            connection.owner = self
            connection.decoder.max_frame_size_bytes = MAX_RESPONSE_FRAME_SIZE_BYTES
            if connection.is_open:
                self._go_up(connection, remote, url)
            await asyncio.wait([connection.lost])  # not awaited itself: cancelling this task must not cancel what `stop` waits for

    async def _wait_retry(self, delay_s: float) -> None:
        """Until the delay has passed or the peer gave a sign of life."""
        self._wake.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _go_up(self, connection: FrameConnection, remote: RemoteIdentity, url: Url) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._down_reason = ""
        self.connected_since_s = self._alive_s = loop.time()
        self._connection_bytes = self._drained_bytes = 0
        self._logger.info("peer connected", url=str(url), peer_version=remote.server_version)
        self._events.on_up(self.peer_id, remote)
        self._events.on_contact(self.peer_id)
        self._ping()

    def _go_down(self, reason: str) -> None:
        self._connection = None
        lived_s = asyncio.get_running_loop().time() - (self.connected_since_s or 0.0)
        if lived_s >= self._options.backoff_max_s:
            self._backoff.reset()  # a connection that dies young is one more failed attempt
        self.connected_since_s = None
        self.rtt_s = None
        self.dropped_frames += self._outbox.clear()
        self._requests.fail_all(reason)
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None
        self._logger.info("peer connection lost", reason=reason)
        self._events.on_down(self.peer_id)

    def _note_down(self, reason: str, url: Url) -> None:
        """Log why the peer can't be reached, once per change."""
        if reason != self._down_reason:
            self._down_reason = reason
            self._logger.warning("peer can't be reached", url=str(url), reason=reason)

    def _ping(self) -> None:
        """Judge the connection, send the next ping, and come again."""
        loop = asyncio.get_running_loop()
        connection = self._connection
        if connection is None:
            return
        now_s = loop.time()
        drained_bytes = self._connection_bytes - connection.unsent_bytes
        if not connection.is_writable and drained_bytes > self._drained_bytes:
            self._alive_s = now_s
        self._drained_bytes = drained_bytes
        if now_s - self._alive_s > self._options.ping_timeout_s:
            self._logger.warning("peer is dead: no pong in time")
            connection.abort()
            return
        self._ping_timer = loop.call_later(self._options.ping_interval_s, self._ping)
        self.send(out_frame(encode_frame(FrameType.PING, PING_NONCE.pack(now_s)), is_urgent=True))
        self.flush()
