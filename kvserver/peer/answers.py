"""The requests of one peer that this member is answering.

Rules
- Each request that arrives is one named task, which ends in one answer: the handler's result, its refusal, "internal" for any other error,
  or "timed out" after the time that the request names. Cancelled from outside (the asker's stream is over, the transport stops) it ends
  without an answer, as there is nobody to read it.
- Over a bound a request is answered as busy at once, and not looked at. The bounds are the peer's, not a connection's: an asker that dials
  again doesn't get new ones while its cancelled requests are still ending.
- An unexpected error is a defect: logged with its traceback when it differs from the last one of its kind, not per request.

Bounds: `MAX_REQUESTS`, `MAX_REQUESTS_SIZE_BYTES`; the kinds whose last error is remembered: `_MAX_REMEMBERED_FAILURES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

from kvserver.logs import Logger
from kvserver.peer.errors import PeerRequestRefusedError
from kvserver.peer.frames import Frame
from kvserver.peer.outbox import OutFrame
from kvserver.peer.request_frames import (
    MAX_REQUESTS,
    MAX_REQUESTS_SIZE_BYTES,
    Outcome,
    Request,
    decode_request,
    encode_answer,
    encode_failure,
)
from kvserver.peer.tasks import TaskBag
from kvserver.types import NodeId

_MAX_REMEMBERED_FAILURES: Final = 64

Answerer = Callable[[NodeId, int, bytes], Coroutine[None, None, bytes]]
"""Who knows the answers: sender, kind, payload -> answer."""

Reply = Callable[[int, OutFrame], None]
"""Takes the id of a request and its answer; must not raise."""


class AnswerDesk:
    """See the module."""

    def __init__(self, peer_id: NodeId, answerer: Answerer, *, tasks: TaskBag, logger: Logger) -> None:
        self._peer_id = peer_id
        self._answerer = answerer
        self._tasks = tasks
        self._logger = logger.bind(peer_id=f"{peer_id:x}")
        self._running = 0
        self._size_bytes = 0
        self._failures: dict[int, str] = {}

    def __len__(self) -> int:
        return self._running

    def start(self, frame: Frame, reply: Reply) -> asyncio.Task[None] | None:
        """Begin to answer the request in the frame; the caller cancels the task when the answer has nowhere to go.

        None if it was answered at once. Raises FrameError for a malformed request.
        """
        request = decode_request(frame)
        if self._running >= MAX_REQUESTS or self._size_bytes + len(request.payload) > MAX_REQUESTS_SIZE_BYTES:
            text = f"the peer is busy with {self._running} requests of {self._size_bytes} bytes"
            reply(request.id, encode_failure(request.id, Outcome.BUSY, text))
            return None
        size_bytes = len(request.payload)
        self._running += 1
        self._size_bytes += size_bytes
        task = self._tasks.spawn(self._run(request, reply), name=f"peer-answer-{self._peer_id:x}-{request.id}")
        # Not in a finally of the task: one that is cancelled before its first step runs none.
        task.add_done_callback(lambda _: self._release(size_bytes))
        return task

    def _release(self, size_bytes: int) -> None:
        self._running -= 1
        self._size_bytes -= size_bytes

    async def _run(self, request: Request, reply: Reply) -> None:
        reply(request.id, await self._answer(request))

    async def _answer(self, request: Request) -> OutFrame:
        """The answer to send. Raises CancelledError if this task was cancelled, and nothing else."""
        scope = asyncio.timeout(request.timeout_s)
        try:
            async with scope:
                payload = await self._answerer(self._peer_id, request.kind, request.payload)
            answer = encode_answer(request.id, payload)
        except PeerRequestRefusedError as refused:
            try:
                return encode_failure(request.id, Outcome.REFUSED, refused.text, refused.code)
            except ValueError as error:
                return self._failed(request, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return self._failed(request, error)  # something that the handler waited for was cancelled, not this task
        except Exception as error:  # noqa: BLE001 - the edge: whatever the handler raises, the asker gets its one answer
            if isinstance(error, TimeoutError) and scope.expired():
                return encode_failure(request.id, Outcome.TIMED_OUT, f"the peer found no answer within {request.timeout_s:g} s")
            return self._failed(request, error)
        self._failures.pop(request.kind, None)
        return answer

    def _failed(self, request: Request, error: BaseException) -> OutFrame:
        """Log what a handler should not have raised, once per change; the asker learns only that it happened."""
        what = f"{type(error).__name__}: {error}"
        if self._failures.pop(request.kind, None) != what:
            self._logger.error("peer request failed", kind=request.kind, error=error)
        if len(self._failures) >= _MAX_REMEMBERED_FAILURES:
            self._failures.pop(next(iter(self._failures)))
        self._failures[request.kind] = what
        return encode_failure(request.id, Outcome.INTERNAL, "the peer failed to answer, its log says how")
