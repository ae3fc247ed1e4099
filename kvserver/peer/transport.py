"""The transport: what the node sees of the peers.

Purpose: one object that listens, dials every member, carries raft's messages both ways, and moves snapshots.

Rules
- `send` never blocks and never raises for what a peer does: a message that can't be queued is dropped and counted, and `on_unreachable`
  comes once per peer and loop turn, not from inside `send`.
- Messages to one peer leave in order within their lane (outbox); messages to oneself or to strangers are a programmer's error, dropped
  and logged.
- `on_message` comes for members only, in the order of arrival. After `pause_receiving` at most what is already in the receive buffers
  follows.
- `request` is a question to one member and its answer, outside raft; it ends exactly once, however the connection fares.
- A removed peer is hung up on in both directions, and its snapshot transfer ends.

Bounds: per peer the outbox's lanes, the connection's buffer (256 KiB and one write), one received frame (see TransportOptions), and each
way 256 requests of 4 MiB together.

Caveats: plain TCP (TLS is a later step). Delivery is at most once; raft repeats what matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from kvserver.config.urls import Url, parse_url
from kvserver.logs import Logger
from kvserver.metrics import LatencyHistogram
from kvserver.peer.answers import AnswerDesk
from kvserver.peer.codec import NO_FLOOR, encode_message
from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import PeerNotConnectedError, RefusedError
from kvserver.peer.handshake import Identity, Membership, RemoteIdentity, StreamKind
from kvserver.peer.http import PeerPages
from kvserver.peer.inbound import InboundEvents, InboundStream
from kvserver.peer.link import LinkEvents, PeerLink
from kvserver.peer.options import TransportOptions
from kvserver.peer.server import PeerServer
from kvserver.peer.snapshot_options import SnapshotOptions, SnapshotProgress
from kvserver.peer.snapshot_receive import SnapshotReceiver
from kvserver.peer.snapshot_send import SnapshotEvents, SnapshotSender
from kvserver.peer.tasks import TaskBag
from kvserver.snapshot import SnapshotCopies
from kvserver.types import NodeId
from raft.messages import Message
from raft.types import Index
from wal import Files, OsFiles


class PeerHandler(Membership, PeerPages, SnapshotEvents, Protocol):
    """What the transport needs of the node. All calls come on the loop and must not block."""

    def on_message(self, message: Message, floor: Index) -> None:
        """A message from a member arrived; `floor` is the sender's compaction floor, 0 if it said none."""

    def on_request(self, sender: NodeId, kind: int, payload: bytes) -> Awaitable[bytes]:
        """A member asks something; the result (at most 1 MiB) is the answer. Run as a task of its own.

        PeerRequestRefusedError is answered as such (`unknown_kind` for a kind that nobody knows); any other error as "internal", and
        logged. Cancelled when the time is up or the asker is gone.
        """

    def on_contact(self, member_id: NodeId) -> None:
        """Something arrived from that member, if only a ping."""

    def on_unreachable(self, member_id: NodeId) -> None:
        """Messages to that member were dropped."""

    def on_refused(self, member_id: NodeId, error: RefusedError) -> None:
        """That member refuses to talk to us, or isn't who we believe; said at every attempt."""

    def on_snapshot_received(self, message: Message, path: Path, size_bytes: int) -> bool:
        """A snapshot message whose file is whole and durable at `path`: the node's from now on if this answers True, otherwise removed. A
        KvError refuses it (and removes the file).
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotParts:
    """What snapshot transfers need: where files lie, who takes copies, and the thread for reading and writing files."""

    directory: Path
    copies: SnapshotCopies
    executor: Executor
    files: Files = field(default_factory=OsFiles)
    options: SnapshotOptions = field(default_factory=SnapshotOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStats:
    """One peer, now. Times are monotonic seconds (`connected_since_s`) or durations; byte counts since the peer was added."""

    is_connected: bool
    connected_since_s: float | None
    queued_bytes: int
    sent_bytes: int
    received_bytes: int
    rtt_s: float | None
    round_trips: LatencyHistogram
    dropped_messages: int
    remote: RemoteIdentity | None
    outstanding_requests: int
    running_answers: int


@dataclass(slots=True, kw_only=True)
class _Peer:
    """All about one peer."""

    link: PeerLink
    answers: AnswerDesk
    received_bytes: int = 0
    remote: RemoteIdentity | None = None
    inbound: InboundStream | None = None
    is_unreachable_due: bool = False


class Transport:
    """See the module. Create it on the running loop."""

    def __init__(
        self,
        identity: Identity,
        handler: PeerHandler,
        *,
        snapshots: SnapshotParts,
        logger: Logger,
        random: Random,
        options: TransportOptions | None = None,
    ) -> None:
        self._identity = identity
        self._handler = handler
        self._options = options or TransportOptions()
        self._random = random
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskBag()
        self._peers: dict[NodeId, _Peer] = {}
        self._is_paused = False
        self._is_stopped = False
        self._link_events = LinkEvents(
            on_contact=handler.on_contact, on_down=self._note_unreachable, on_up=self._note_remote, on_refused=handler.on_refused
        )
        self._inbound_events = InboundEvents(
            on_message=handler.on_message, on_contact=handler.on_contact, on_received=self._count_received, on_end=self._end_inbound
        )
        self._server = PeerServer(
            identity=identity, membership=handler, pages=handler, accept=self._accept, options=self._options, logger=logger
        )
        self._receiver = SnapshotReceiver(
            directory=snapshots.directory,
            files=snapshots.files,
            self_id=identity.member_id,
            executor=snapshots.executor,
            take=handler.on_snapshot_received,
            options=snapshots.options,
            tasks=self._tasks,
            logger=logger,
        )
        self._sender = SnapshotSender(
            identity=identity,
            copies=snapshots.copies,
            executor=snapshots.executor,
            urls_of=self._urls_of,
            events=handler,
            options=snapshots.options,
            transport_options=self._options,
            tasks=self._tasks,
            random=random,
            logger=logger,
        )

    async def start(self, listen_urls: Sequence[str]) -> tuple[str, ...]:
        """Listen; returns the addresses with ports resolved. Peers may be added before or after. Raises OSError, ValueSyntaxError."""
        await self._server.start([parse_url(url) for url in listen_urls])
        return tuple(str(url) for url in self._server.addresses)

    async def stop(self) -> None:
        """Hang up on everybody and end every task; written messages are given `stop_timeout_s` to leave. Snapshot transfers fail."""
        self._is_stopped = True
        lost = [peer.link.stop() for peer in self._peers.values()]
        await self._server.stop()
        await self._tasks.stop()
        closing = [each for each in lost if each is not None and not each.lost.done()]
        if closing:
            await asyncio.wait([each.lost for each in closing], timeout=self._options.stop_timeout_s)
        rest = [each for each in closing if not each.lost.done()]
        for connection in rest:
            connection.abort()
        if rest:
            await asyncio.wait([each.lost for each in rest])
        self._peers.clear()

    @property
    def peers(self) -> list[NodeId]:
        """The peers that are dialled, in ascending order."""
        return sorted(self._peers)

    def add_peer(self, peer_id: NodeId, urls: Sequence[str]) -> None:
        """Begin to dial a member; at least one URL. Raises ValueSyntaxError; a peer that exists is updated."""
        if peer_id in self._peers:
            self.update_peer(peer_id, urls)
            return
        assert peer_id != self._identity.member_id, "a member doesn't dial itself"
        link = PeerLink(
            peer_id,
            _parse_urls(urls),
            identity=self._identity,
            options=self._options,
            events=self._link_events,
            random=self._random,
            logger=self._logger,
        )
        answers = AnswerDesk(peer_id, self._answer, tasks=self._tasks, logger=self._logger)
        self._peers[peer_id] = _Peer(link=link, answers=answers)
        link.start(self._tasks)

    def update_peer(self, peer_id: NodeId, urls: Sequence[str]) -> None:
        """Dial a known peer at other URLs; does nothing if they are the same. KeyError for an unknown peer."""
        self._peers[peer_id].link.set_urls(_parse_urls(urls))

    def remove_peer(self, peer_id: NodeId) -> None:
        """Hang up and forget; an unknown peer is fine."""
        peer = self._peers.pop(peer_id, None)
        if peer is None:
            return
        peer.link.stop()
        self._sender.cancel(peer_id)
        if peer.inbound is not None:
            peer.inbound.abort()

    def send(self, messages: Sequence[Message], floor: Index = NO_FLOOR) -> None:
        """Queue messages to the peers they name, and write what can be written now. Never blocks. ValueError for a snapshot or a local
        message.
        """
        touched: dict[NodeId, _Peer] = {}
        for message in messages:
            peer = self._peers.get(message.to)
            if peer is None:
                self._note_unreachable(message.to)
                continue
            touched[message.to] = peer
            if not peer.link.is_up:
                peer.link.dropped_frames += 1
                self._note_unreachable(message.to)
            elif not peer.link.send(encode_message(message, floor)):
                self._note_unreachable(message.to)
        for peer in touched.values():
            peer.link.flush()

    async def request(self, peer_id: NodeId, kind: int, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer something, and wait for its answer: what its handler's `on_request` returned.

        `kind` is 1 to 2**32 - 1, `payload` at most 1 MiB, `timeout_s` above 0 and at most 60 (ValueError otherwise). Raises a leaf of
        PeerRequestError; its `retryable` says that the peer certainly has not begun. A member doesn't ask itself (PeerNotConnectedError).
        Cancelling is fine: the late answer is dropped.
        """
        peer = self._peers.get(peer_id)
        if peer is None or self._is_stopped:
            raise PeerNotConnectedError(peer_id)
        return await peer.link.request(kind, payload, timeout_s)

    def send_snapshot(self, message: Message) -> bool:
        """Begin to bring the peer the snapshot that this message asks for; the copy covers at least the message's index.

        False if a transfer to that peer is already under way (its outcome answers this one too). Otherwise `handler.on_snapshot_result`
        comes exactly once, later.
        """
        return self._sender.start(message)

    def cancel_snapshot(self, peer_id: NodeId) -> None:
        """End the transfer to this peer, if one is under way; its result is a failure."""
        self._sender.cancel(peer_id)

    @property
    def snapshot_progress(self) -> list[SnapshotProgress]:
        """The outgoing transfers under way."""
        return self._sender.progress

    @property
    def snapshot_buffer_bytes(self) -> int:
        """What the transfers under way, both directions, may hold in memory: two chunks each, whatever the size of the snapshot."""
        return 2 * (self._sender.buffer_bytes + self._receiver.buffer_bytes)

    def stats(self, peer_id: NodeId) -> PeerStats:
        """How it stands with a peer. KeyError for an unknown one."""
        peer = self._peers[peer_id]
        link = peer.link
        return PeerStats(
            is_connected=link.is_up,
            connected_since_s=link.connected_since_s,
            queued_bytes=link.queued_bytes,
            sent_bytes=link.sent_bytes,
            received_bytes=peer.received_bytes,
            rtt_s=link.rtt_s,
            round_trips=link.round_trips,
            dropped_messages=link.dropped_frames,
            remote=peer.remote,
            outstanding_requests=link.outstanding_requests,
            running_answers=len(peer.answers),
        )

    def pause_receiving(self) -> None:
        """Stop reading messages (snapshot streams go on): the node's inbox is full. Peers notice by their queues; keep it short."""
        self._is_paused = True
        for peer in self._peers.values():
            if peer.inbound is not None:
                peer.inbound.pause()

    def resume_receiving(self) -> None:
        """Read on."""
        self._is_paused = False
        for peer in self._peers.values():
            if peer.inbound is not None:
                peer.inbound.resume()

    def _urls_of(self, peer_id: NodeId) -> Sequence[Url]:
        peer = self._peers.get(peer_id)
        return () if peer is None else peer.link.urls

    def _accept(self, connection: FrameConnection, remote: RemoteIdentity, kind: StreamKind) -> None:
        """An accepted hello: the connection gets its stream."""
        peer = self._peers.get(remote.member_id)
        if peer is None or self._is_stopped:  # a member by the handler's word that nobody has added yet: it will dial again
            connection.close()
            return
        self._note_remote(remote.member_id, remote)
        peer.link.retry_now()
        if kind is StreamKind.SNAPSHOT:
            self._receiver.accept(connection, remote)
            return
        previous = peer.inbound
        peer.inbound = InboundStream(
            connection,
            remote,
            self._identity.member_id,
            answers=peer.answers,
            silence_timeout_s=2 * self._options.ping_timeout_s,
            events=self._inbound_events,
            logger=self._logger,
        )
        connection.owner = peer.inbound
        if self._is_paused:
            peer.inbound.pause()
        if previous is not None:
            previous.abort()

    async def _answer(self, sender: NodeId, kind: int, payload: bytes) -> bytes:
        return await self._handler.on_request(sender, kind, payload)

    def _end_inbound(self, stream: InboundStream) -> None:
        peer = self._peers.get(stream.remote.member_id)
        if peer is not None and peer.inbound is stream:
            peer.inbound = None

    def _count_received(self, member_id: NodeId, count_bytes: int) -> None:
        peer = self._peers.get(member_id)
        if peer is not None:
            peer.received_bytes += count_bytes

    def _note_remote(self, member_id: NodeId, remote: RemoteIdentity) -> None:
        peer = self._peers.get(member_id)
        if peer is not None:
            peer.remote = remote

    def _note_unreachable(self, member_id: NodeId) -> None:
        """Tell the handler at the next loop turn, once, however much was dropped in this one."""
        peer = self._peers.get(member_id)
        if peer is None or peer.is_unreachable_due or self._is_stopped:
            return
        peer.is_unreachable_due = True
        self._loop.call_soon(self._tell_unreachable, member_id, peer)

    def _tell_unreachable(self, member_id: NodeId, peer: _Peer) -> None:
        peer.is_unreachable_due = False
        if not self._is_stopped and self._peers.get(member_id) is peer:
            self._handler.on_unreachable(member_id)


def _parse_urls(urls: Sequence[str]) -> list[Url]:
    assert urls, "a peer needs at least one URL"
    return [parse_url(url) for url in urls]
