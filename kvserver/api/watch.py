"""Watch: one stream, many watchers.

Rules
- One task reads the client's requests, the handler gives what its stream holds; a request is read only while the stream has room for its
  answer. A client that sends no more goes on being told until it leaves.
- What a request asks for is the hub's business (kvserver.watch); here are the messages, the header and the times.
- A stream that requires a leader (`hasleader`) ends with `no leader` after `LEADERLESS_TIMEOUTS` election timeouts without one. Any other
  goes on, with what this member has applied.
- The periodic progress comes every `PROGRESS_S`, give or take a tenth, so that many streams don't fall into step.

Source: etcd's v3rpc/watch.go for the messages; an empty key stands for the first possible one, a range end of one zero byte for no end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from random import Random
from typing import Final

from kvserver.api.guard import Guard
from kvserver.api.protocols import ClusterView, StreamCall
from kvserver.errors import NoLeaderError
from kvserver.pb import rpc_pb2
from kvserver.watch import KeyRange, Notice, WatchHub, WatchOptions, WatchStream
from raft.types import NO_NODE

__all__ = ["LEADERLESS_TIMEOUTS", "PROGRESS_S", "EncodedResponse", "WatchService", "options_of"]

PROGRESS_S: Final = 600.0
LEADERLESS_TIMEOUTS: Final = 3
_FIRST_KEY: Final = b"\x00"
_NO_END: Final = b"\x00"
_NO_PUT: Final = rpc_pb2.WatchCreateRequest.NOPUT
_NO_DELETE: Final = rpc_pb2.WatchCreateRequest.NODELETE


class EncodedResponse:
    """A WatchResponse whose events are encoded already; put together when it is sent."""

    __slots__ = ("_events", "_head")

    def __init__(self, head: rpc_pb2.WatchResponse, events: tuple[bytes, ...]) -> None:
        self._head = head
        self._events = events

    def SerializeToString(self) -> bytes:  # noqa: N802 - as the messages call it
        """The message on the wire: the events' field has the highest number, so they stand behind the head."""
        return b"".join((self._head.SerializeToString(), *self._events))


class WatchService:
    """The handler of `Watch`.

    Args:
        election_timeout_s: this member's.
        progress_s: for tests.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        hub: WatchHub,
        view: ClusterView,
        election_timeout_s: float,
        random: Random,
        progress_s: float = PROGRESS_S,
    ) -> None:
        self._guard = guard
        self._hub = hub
        self._view = view
        self._election_timeout_s = election_timeout_s
        self._random = random
        self._progress_s = progress_s

    async def watch(self, requests: AsyncIterator[rpc_pb2.WatchRequest], call: StreamCall) -> AsyncGenerator[EncodedResponse, None]:
        """Serve one stream until the client leaves.

        Raises:
            NoLeaderError: as above.
            StoppedError, CorruptError: the member stops, or can't read its history.
            Exception: what `requests` raises.
        """
        self._guard.admit(call)
        stream = self._hub.open_stream()
        tasks = self._begin(stream, requests, call)
        try:
            while True:
                yield self._encode(await stream.wait_next())
                self._hub.sent(stream)
        finally:
            for task in tasks:
                task.cancel()
            self._hub.close_stream(stream)
            await asyncio.wait(tasks)

    def _begin(self, stream: WatchStream, requests: AsyncIterator[rpc_pb2.WatchRequest], call: StreamCall) -> list[asyncio.Task[None]]:
        """The tasks beside the handler, which ends them (a TaskGroup must not be left open by a generator)."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._take_requests(stream, requests), name="watch-requests"),
            loop.create_task(self._tick(stream), name="watch-progress"),
        ]
        if self._guard.requires_leader(call):
            tasks.append(loop.create_task(self._cut_off_leaderless(call), name="watch-leader"))
        for task in tasks:
            task.add_done_callback(lambda ended: _pass_on(ended, stream))
        return tasks

    async def _take_requests(self, stream: WatchStream, requests: AsyncIterator[rpc_pb2.WatchRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("request_union"):
                case "create_request":
                    self._hub.create(stream, options_of(request.create_request))
                case "cancel_request":
                    self._hub.cancel(stream, request.cancel_request.watch_id)
                case "progress_request":
                    self._hub.request_progress(stream)
                case _:
                    pass  # as in etcd: what a newer client may ask for ends no stream
            await stream.wait_room()

    async def _tick(self, stream: WatchStream) -> None:
        while True:
            await asyncio.sleep(self._progress_s * self._random.uniform(0.9, 1.1))
            self._hub.tick_progress(stream)

    async def _cut_off_leaderless(self, call: StreamCall) -> None:
        """End the stream when there was no leader for long enough, also while its client takes nothing."""
        leaderless = 0
        while leaderless < LEADERLESS_TIMEOUTS:
            await asyncio.sleep(self._election_timeout_s)
            leaderless = leaderless + 1 if self._view.leader_id == NO_NODE else 0
        call.cut_off(NoLeaderError())

    def _encode(self, notice: Notice) -> EncodedResponse:
        head = rpc_pb2.WatchResponse(
            watch_id=notice.watch_id,
            created=notice.created,
            canceled=notice.canceled,
            compact_revision=notice.compact_revision,
            cancel_reason=notice.cancel_reason,
            fragment=notice.fragment,
        )
        head.header.revision = notice.revision
        self._guard.fill(head.header)
        return EncodedResponse(head, notice.events)


def _pass_on(ended: asyncio.Task[None], stream: WatchStream) -> None:
    """What has ended one of a stream's tasks ends the stream."""
    if not ended.cancelled() and (error := ended.exception()) is not None:
        stream.end(error if isinstance(error, Exception) else RuntimeError(str(error)))


def options_of(request: rpc_pb2.WatchCreateRequest) -> WatchOptions:
    """What the request asks for."""
    lo = request.key or _FIRST_KEY
    hi: bytes | None = request.range_end or lo + b"\x00"
    return WatchOptions(
        keys=KeyRange(lo, None if request.range_end == _NO_END else hi),
        start_revision=request.start_revision,
        watch_id=request.watch_id,
        no_puts=_NO_PUT in request.filters,
        no_deletes=_NO_DELETE in request.filters,
        prev_kv=request.prev_kv,
        progress_notify=request.progress_notify,
        fragment=request.fragment,
    )
