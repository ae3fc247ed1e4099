"""Sending snapshots to members that fell behind.

Purpose: from raft's snapshot message to an outcome: take or share a copy, stream it, and say exactly once how it ended.

Rules
- One transfer per peer; asking again while it runs changes nothing (the running one's outcome is the answer to both).
- The message is rewritten to what the copy really covers before it leaves.
- A cut connection is dialled again with backoff, and the receiver says from where to go on; the transfer fails when `stall_timeout_s`
  passes without progress, when the receiver refuses or fails, when it is cancelled, or when the copy can't be made or read.
- `on_result` comes exactly once per started transfer, whatever happens, and the copy is released before.

Bounds: memory holds one chunk beside the connection's buffer; the file is read on a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from kvserver.config.urls import Url
from kvserver.logs import Logger
from kvserver.peer import snapshot_frames
from kvserver.peer.dial import Backoff, dial
from kvserver.peer.errors import ConnectionClosedError, FrameError, RefusedError
from kvserver.peer.frames import FrameType
from kvserver.peer.handshake import Identity, StreamKind
from kvserver.peer.options import TransportOptions
from kvserver.peer.refusal import Refusal
from kvserver.peer.snapshot_options import SnapshotOptions, SnapshotOutcome, SnapshotProgress
from kvserver.peer.stream import FrameStream, ReceivedFrame
from kvserver.peer.tasks import TaskBag
from kvserver.snapshot import OutgoingFile, SnapshotCopies, SnapshotCopy, SnapshotError, SnapshotOffer, SnapshotOfferError, plan, run_to_end
from kvserver.types import NodeId
from raft.messages import Message
from raft.types import Index, SnapshotMetadata


class SnapshotEvents(Protocol):
    """Whom the sender tells; called on the loop, must not block."""

    def on_snapshot_started(self, to: NodeId, metadata: SnapshotMetadata) -> None:
        """A copy exists and will be streamed: entries behind `metadata.index` are worth keeping."""

    def on_snapshot_result(self, outcome: SnapshotOutcome) -> None:
        """The transfer ended; exactly once per transfer that was started."""


@dataclass(slots=True, kw_only=True)
class _Transfer:
    """One transfer's state."""

    message: Message
    started_s: float
    progressed_s: float
    outcome: SnapshotOutcome | None = None
    copy: SnapshotCopy | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def to(self) -> NodeId:
        return self.message.to


class SnapshotSender:
    """See the module. Used on one loop; `executor` reads the file."""

    def __init__(
        self,
        *,
        identity: Identity,
        copies: SnapshotCopies,
        executor: Executor,
        urls_of: Callable[[NodeId], Sequence[Url]],
        events: SnapshotEvents,
        options: SnapshotOptions,
        transport_options: TransportOptions,
        tasks: TaskBag,
        random: Random,
        logger: Logger,
    ) -> None:
        self._identity = identity
        self._copies = copies
        self._executor = executor
        self._urls_of = urls_of
        self._events = events
        self._options = options
        self._transport_options = transport_options
        self._tasks = tasks
        self._random = random
        self._logger = logger
        self._transfers: dict[NodeId, _Transfer] = {}

    @property
    def progress(self) -> list[SnapshotProgress]:
        """The transfers whose copy is made, by peer id."""
        return [
            SnapshotProgress(to=each.to, metadata=each.copy.metadata, received_bytes=each.received_bytes, size_bytes=each.copy.size_bytes)
            for _, each in sorted(self._transfers.items())
            if each.copy is not None
        ]

    @property
    def buffer_bytes(self) -> int:
        """One chunk for each transfer that streams."""
        return len(self.progress) * self._options.chunk_size_bytes

    def start(self, message: Message) -> bool:
        """Begin the transfer that this snapshot message asks for; False, and nothing more, if one to that peer is under way."""
        assert message.snapshot is not None
        if message.to in self._transfers:
            return False
        now_s = asyncio.get_running_loop().time()
        transfer = _Transfer(message=message, started_s=now_s, progressed_s=now_s)
        self._transfers[message.to] = transfer
        transfer.task = self._tasks.spawn(self._run(transfer), name=f"snapshot-to-{message.to:x}")
        # A callback, not a `finally`: a task that is cancelled before its first step never runs.
        transfer.task.add_done_callback(lambda task: self._settle(transfer, task))
        return True

    def cancel(self, to: NodeId) -> None:
        """End the transfer to this peer, if there is one; its result is a failure."""
        transfer = self._transfers.get(to)
        if transfer is not None and transfer.task is not None:
            transfer.task.cancel()

    def _settle(self, transfer: _Transfer, task: asyncio.Task[None]) -> None:
        """The transfer's task has ended: tell how."""
        del self._transfers[transfer.to]
        outcome = transfer.outcome or self._failure(transfer, "cancelled" if task.cancelled() else "internal error, see the log")
        self._events.on_snapshot_result(outcome)

    def _failure(self, transfer: _Transfer, reason: str) -> SnapshotOutcome:
        return replace(self._success(transfer), ok=False, reason=reason)

    def _success(self, transfer: _Transfer) -> SnapshotOutcome:
        return SnapshotOutcome(
            to=transfer.to,
            ok=True,
            metadata=None if transfer.copy is None else transfer.copy.metadata,
            sent_bytes=transfer.sent_bytes,
            duration_s=asyncio.get_running_loop().time() - transfer.started_s,
        )

    async def _run(self, transfer: _Transfer) -> None:
        """From the copy to the outcome."""
        assert transfer.message.snapshot is not None
        try:
            copy = await self._copies.acquire(Index(transfer.message.snapshot.metadata.index))
        except SnapshotError as error:
            transfer.outcome = self._failure(transfer, str(error))
            return
        transfer.copy = copy
        try:
            self._events.on_snapshot_started(transfer.to, copy.metadata)
            failure = await self._read_and_deliver(transfer, copy)
            transfer.outcome = self._failure(transfer, failure) if failure else self._success(transfer)
        finally:
            await self._copies.release(copy)

    async def _read_and_deliver(self, transfer: _Transfer, copy: SnapshotCopy) -> str:
        """Open the copy and stream it; returns why it failed, or an empty text."""
        try:
            file = await run_to_end(self._executor, lambda: self._copies.open(copy), discard=OutgoingFile.close)
        except SnapshotError as error:
            return str(error)
        try:
            return await self._deliver(transfer, copy, file)
        finally:
            await run_to_end(self._executor, file.close)

    async def _deliver(self, transfer: _Transfer, copy: SnapshotCopy, file: OutgoingFile) -> str:
        """Try until there is a verdict or too long no progress; returns why it failed, or an empty text."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._transport_options, self._random)
        transfer.progressed_s = loop.time()
        attempt = 0
        while True:
            urls = self._urls_of(transfer.to)
            if not urls:
                return "the peer was removed"
            received_before = transfer.received_bytes
            try:
                return await self._attempt(transfer, copy, file, urls[attempt % len(urls)])
            except RefusedError as error:
                if error.reason is not Refusal.BUSY:
                    return f"refused: {error}"
                reason = str(error)
            except SnapshotError as error:
                return str(error)
            except TimeoutError:
                reason = "no answer in time"
            except (OSError, ConnectionClosedError, FrameError) as error:
                reason = str(error)
            attempt += 1
            if transfer.received_bytes > received_before:
                backoff.reset()
            if loop.time() - transfer.progressed_s >= self._options.stall_timeout_s:
                return f"no progress for {self._options.stall_timeout_s:g} s: {reason}"
            await asyncio.sleep(backoff.next_delay_s())

    async def _attempt(self, transfer: _Transfer, copy: SnapshotCopy, file: OutgoingFile, url: Url) -> str:
        """One connection; returns the receiver's verdict. Raises what ends the connection before there is one."""
        connection, _ = await dial(
            url,
            transfer.to,
            StreamKind.SNAPSHOT,
            identity=self._identity,
            options=self._transport_options,
            logger=self._logger,
        )
        stream = FrameStream(connection)
        connection.owner = stream
        try:
            offer = copy.offer(self._options.chunk_size_bytes)
            assert transfer.message.snapshot is not None
            message = replace(transfer.message, snapshot=replace(transfer.message.snapshot, metadata=copy.metadata))
            stream.write(snapshot_frames.header_frame(message, offer))
            pump = _Pump(stream, transfer, offer, file, self._executor, self._options)
            return await pump.run()
        finally:
            stream.abort()


class _Pump:
    """Moves one file over one connection, and takes in what the receiver says meanwhile."""

    def __init__(
        self,
        stream: FrameStream,
        transfer: _Transfer,
        offer: SnapshotOffer,
        file: OutgoingFile,
        executor: Executor,
        options: SnapshotOptions,
    ) -> None:
        self._stream = stream
        self._transfer = transfer
        self._offer = offer
        self._file = file
        self._executor = executor
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._offset: int | None = None
        self._verdict: str | None = None

    async def run(self) -> str:
        """Until there is a verdict: empty for success. Raises TimeoutError when the receiver is silent for too long."""
        async with asyncio.timeout(self._options.stall_timeout_s) as limit:
            while True:
                while (frame := self._stream.receive_nowait()) is not None:
                    self._take_in(frame)
                    limit.reschedule(self._loop.time() + self._options.stall_timeout_s)
                if self._verdict is not None:
                    return self._verdict
                if self._stream.is_lost:
                    raise ConnectionClosedError("connection closed by the peer")
                if self._offset is not None and self._offset < self._offer.size_bytes and self._stream.is_writable:
                    self._offset = await self._send_chunk(self._offset)
                else:
                    await self._stream.wait_changed()

    async def _send_chunk(self, offset: int) -> int:
        """Read and write one chunk, not faster than allowed; returns the next offset."""
        began_s = self._loop.time()
        length_bytes = plan.chunk_length_bytes(offset, self._offer)
        data = await run_to_end(self._executor, lambda: self._file.read(offset, length_bytes))
        self._stream.write(snapshot_frames.chunk_frame(offset, data))
        self._transfer.sent_bytes += length_bytes
        if self._options.rate_limit_bytes_per_s:
            await asyncio.sleep(length_bytes / self._options.rate_limit_bytes_per_s - (self._loop.time() - began_s))
        return offset + length_bytes

    def _take_in(self, frame: ReceivedFrame) -> None:
        """One frame from the receiver. Raises FrameError for what makes no sense."""
        if frame.type is FrameType.SNAPSHOT_PROGRESS:
            self._note_received(snapshot_frames.read_progress(frame))
        elif frame.type is FrameType.SNAPSHOT_RESULT:
            result = snapshot_frames.read_result(frame)
            self._verdict = "" if result.ok else (result.error or "the receiver failed without a reason")
            if result.ok:
                self._note_received(self._offer.size_bytes)
        elif self._offset is None:
            resume = snapshot_frames.read_resume(frame)
            if resume.refused:
                self._verdict = f"refused: {resume.error}"
                return
            try:
                plan.check_offset(resume.offset, self._offer)
            except SnapshotOfferError as error:
                raise FrameError(str(error)) from error
            self._offset = resume.offset
        else:
            raise FrameError(f"{frame.type.name} came from the receiver of a snapshot")

    def _note_received(self, received_bytes: int) -> None:
        if received_bytes > self._offer.size_bytes:
            raise FrameError(f"the receiver claims {received_bytes} of {self._offer.size_bytes} bytes")
        if received_bytes > self._transfer.received_bytes:
            self._transfer.progressed_s = self._loop.time()
        self._transfer.received_bytes = received_bytes
