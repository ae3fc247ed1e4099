"""Receiving snapshots.

Rules
- Every chunk is verified (frame checksum, plan) before it is written; the file is verified, synced and renamed before the message is
  handed over; the sender hears of success only after the hand-over. Nothing of a snapshot is ever visible to raft before it is safe on
  the disk.
- Of one sender, the newest connection wins: an older transfer is ended first, and what it verified is kept for the new one to go on from.
- A transfer without a whole frame for `stall_timeout_s` ends; so does one whose disk fails, and the sender hears why.
- After an error the sender hangs up first (bounded), so that it can read the reason.
- From the last chunk to the decision about the file one transfer follows the other: two senders of the same snapshot end at the same file,
  and what one of them is told to remove must not be what the other was told to keep.

Bounds: one transfer per sender; memory holds a frame in the connection and the chunk being written; the file is written on a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path

from kvserver.errors import KvError
from kvserver.logs import Logger
from kvserver.peer import snapshot_frames
from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import ConnectionClosedError, FrameError
from kvserver.peer.handshake import RemoteIdentity
from kvserver.peer.snapshot_options import SnapshotOptions
from kvserver.peer.stream import FrameStream, ReceivedFrame
from kvserver.peer.tasks import TaskBag
from kvserver.snapshot import IncomingFile, SnapshotCorruptError, SnapshotError, SnapshotStorageError, discard, plan, run_to_end
from kvserver.types import NodeId
from raft.messages import Message
from wal import Files

SnapshotTaker = Callable[[Message, Path, int], bool]
"""Gets a snapshot message, the verified, durable file that belongs to it, and its size in bytes. On the loop; must not block.

True: the file is the taker's from then on. False: all is well but the file is of no use, and is removed here, on the thread. A KvError says
that it isn't wanted: it is removed likewise, and the sender hears the text."""


class SnapshotReceiver:
    """See the module. Used on one loop; `executor` writes the files into `directory`."""

    def __init__(
        self,
        *,
        directory: Path,
        files: Files,
        self_id: NodeId,
        executor: Executor,
        take: SnapshotTaker,
        options: SnapshotOptions,
        tasks: TaskBag,
        logger: Logger,
    ) -> None:
        self._directory = directory
        self._files = files
        self._self_id = self_id
        self._executor = executor
        self._take = take
        self._options = options
        self._tasks = tasks
        self._logger = logger
        self._active: dict[NodeId, asyncio.Task[None]] = {}
        self._deciding = asyncio.Lock()

    @property
    def buffer_bytes(self) -> int:
        """One chunk for each transfer under way."""
        return len(self._active) * self._options.chunk_size_bytes

    def accept(self, connection: FrameConnection, remote: RemoteIdentity) -> None:
        """Take over a connection whose hello asked for the snapshot stream."""
        connection.decoder.max_frame_size_bytes = plan.MAX_CHUNK_SIZE_BYTES + snapshot_frames.MAX_HEADER_SIZE_BYTES
        stream = FrameStream(connection)
        connection.owner = stream
        sender = remote.member_id
        previous = self._active.get(sender)
        task = self._tasks.spawn(self._serve(stream, sender, previous), name=f"snapshot-from-{sender:x}")
        self._active[sender] = task
        task.add_done_callback(lambda _: self._ended(sender, task, stream))

    def _ended(self, sender: NodeId, task: asyncio.Task[None], stream: FrameStream) -> None:
        stream.abort()
        if self._active.get(sender) is task:
            del self._active[sender]

    async def _serve(self, stream: FrameStream, sender: NodeId, previous: asyncio.Task[None] | None) -> None:
        """One connection to its end."""
        if previous is not None:
            previous.cancel()
            await asyncio.wait([previous])
        transfer = _Reception(stream, sender, self._self_id, self._directory, self._files, self._executor, self._options)
        try:
            async with transfer.filled() as (message, incoming), self._deciding:
                failure = await self._hand_over(message, await transfer.finish(), incoming)
        except ConnectionClosedError:
            self._logger.info("snapshot transfer cut off", peer_id=f"{sender:x}", received_bytes=transfer.received_bytes)
            return
        except TimeoutError:
            failure = f"no data for {self._options.stall_timeout_s:g} s"
        except (FrameError, SnapshotError) as error:
            failure = str(error)
        if failure:
            self._logger.warning("snapshot not received", peer_id=f"{sender:x}", reason=failure, received_bytes=transfer.received_bytes)
        if stream.is_open:
            stream.write(snapshot_frames.result_frame(failure, transfer.received_bytes))
            await stream.wait_hangup(self._options.hangup_timeout_s)

    async def _hand_over(self, message: Message, path: Path, incoming: IncomingFile) -> str:
        """Give the file away; returns why it isn't wanted, or an empty text."""
        try:
            is_taken = self._take(message, path, incoming.offset)
        except KvError as error:
            await run_to_end(self._executor, incoming.withdraw)
            return str(error) or type(error).__name__
        if not is_taken:
            await run_to_end(self._executor, lambda: discard(self._files, path))
        return ""


class _Reception:
    """One transfer, from its header to a durable file."""

    def __init__(
        self,
        stream: FrameStream,
        sender: NodeId,
        self_id: NodeId,
        directory: Path,
        files: Files,
        executor: Executor,
        options: SnapshotOptions,
    ) -> None:
        self._stream = stream
        self._sender = sender
        self._self_id = self_id
        self._directory = directory
        self._files = files
        self._executor = executor
        self._options = options
        self._incoming: IncomingFile | None = None
        self.received_bytes = 0

    @asynccontextmanager
    async def filled(self) -> AsyncIterator[tuple[Message, IncomingFile]]:
        """The message and its file with every chunk in it, closed at the end of the block. Raises FrameError, SnapshotError, TimeoutError,
        ConnectionClosedError."""
        message, offer = snapshot_frames.read_header(await self._receive(), sender=self._sender, receiver=self._self_id)
        plan.check_offer(offer, max_size_bytes=self._options.max_size_bytes)
        incoming = await run_to_end(
            self._executor,
            lambda: IncomingFile.open(self._directory, self._sender, offer, files=self._files),
            discard=lambda file: file.close(keep=True),
            meanwhile=self._show_life,
            interval_s=self._options.sign_of_life_s,
        )
        self._incoming = incoming
        keep = True
        try:
            await self._fill(incoming)
            yield message, incoming
        except (SnapshotStorageError, SnapshotCorruptError):
            keep = False
            raise
        finally:
            await run_to_end(self._executor, lambda: incoming.close(keep=keep))

    async def _receive(self) -> ReceivedFrame:
        async with asyncio.timeout(self._options.stall_timeout_s):
            return await self._stream.receive()

    async def _fill(self, incoming: IncomingFile) -> None:
        """Write what is missing, chunk by chunk."""
        self.received_bytes = incoming.offset
        self._stream.write(snapshot_frames.resume_frame(incoming.offset))
        while not incoming.is_complete:
            offset, data = snapshot_frames.read_chunk(await self._receive())
            await run_to_end(self._executor, lambda offset=offset, data=data: incoming.write(offset, data))  # type: ignore[misc]
            self.received_bytes = incoming.offset
            self._show_life()

    async def finish(self) -> Path:
        """Verify the filled file and make it durable; goes on even if the sender has hung up meanwhile. Raises SnapshotError."""
        incoming = self._incoming
        assert incoming is not None, "it was filled before"
        return await run_to_end(
            self._executor,
            incoming.finish,
            discard=lambda _: incoming.withdraw(),
            meanwhile=self._show_life,
            interval_s=self._options.sign_of_life_s,
        )

    def _show_life(self) -> None:
        """Tell the sender how far we are, if it still listens."""
        if self._stream.is_open:
            self._stream.write(snapshot_frames.progress_frame(self.received_bytes))
