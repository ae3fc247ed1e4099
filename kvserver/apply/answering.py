"""How a read is answered without disturbing anybody: on the loop if it is small, on a thread if not, and only when there is room for its
answer.

Rules
- On the loop a read may touch `SCAN_BUDGET` keys and build `LOOP_ANSWER_BYTES`. It is built first and counted then: nothing else runs in
  between. If there is no room it is dropped, waits, and is built anew.
- On a thread an answer is built within the room that was taken for it before. One that turns out larger is measured (not built), and waits
  for as much; one that is larger than all the room there is waits until it is alone, and may then be as large as it is.
- No view is held while a read waits: a view stops the store from reusing its pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from kvserver.mvcc import Allowance, RangeTooLargeError, Snapshot

__all__ = ["ANSWER_FORMS", "LOOP_ANSWER_BYTES", "SCAN_BUDGET", "AnswerRoom", "AnswerSource", "Unbounded", "answer"]

ANSWER_FORMS: Final = 2
"""In how many forms an answer is in memory at a time: as a message and its encoding, then as that and the wire's copy."""
SCAN_BUDGET: Final = 500
"""Keys that a read may touch on the loop: about 2 ms."""
LOOP_ANSWER_BYTES: Final = 2 << 20
FIRST_ANSWER_BYTES: Final = 1 << 20
"""What is taken for an answer of unknown size, if it is there; many are small, and a small one must not wait for large ones."""

_Answer = TypeVar("_Answer")
Work = Callable[[Snapshot], _Answer]


class AnswerRoom(Protocol):
    """The bytes of one answer, from when it is built until it has left."""

    def try_take(self, size_bytes: int) -> bool:
        """Count an answer that is there; says whether there is room for it (otherwise nothing changes)."""

    async def wait(self, size_bytes: int) -> int:
        """Return when there is room for so many bytes, instead of those taken before; returns how large the answer may be, so many or more.

        What was granted is enough for `try_take` of the same size.

        Raises RequestError leaves.
        """

    async def wait_some(self, size_bytes: int) -> int:
        """The same for an answer of unknown size: so many bytes if they are there at once, else as many as a small answer may have."""

    def settle(self, size_bytes: int) -> None:
        """The answer is there and has this size: at most what `wait` returned."""


class Unbounded:
    """Room for everything; meets `AnswerRoom`."""

    def try_take(self, size_bytes: int) -> bool:
        """There always is."""
        del size_bytes
        return True

    async def wait(self, size_bytes: int) -> int:
        """At once, and without a limit."""
        del size_bytes
        return Allowance().limit_bytes

    async def wait_some(self, size_bytes: int) -> int:
        """As `wait`."""
        return await self.wait(size_bytes)

    def settle(self, size_bytes: int) -> None:
        """Nothing is counted."""


class AnswerSource(Protocol):
    """The store, as far as reads need it."""

    def snapshot(self, allowance: Allowance) -> Snapshot:
        """The present state, for the loop."""

    async def run_on_view(self, work: Work[_Answer], allowance: Allowance) -> _Answer:
        """Have a thread read a view, which is made when a thread is free for it. Raises RequestTimeoutError, and what `work` raises."""


async def answer(source: AnswerSource, work: Work[_Answer], room: AnswerRoom) -> _Answer:
    """What `work` reads of one state, not older than the call. Raises what `work`, `room` and `source` raise."""
    while True:
        allowance = Allowance(keys=SCAN_BUDGET, limit_bytes=LOOP_ANSWER_BYTES)
        try:
            response = work(source.snapshot(allowance))
            allowance.check()
        except RangeTooLargeError as error:
            return await _answer_on_thread(source, work, room, error.needed_bytes)
        if room.try_take(allowance.used_bytes):
            return response
        del response
        await room.wait(allowance.used_bytes)


async def _answer_on_thread(source: AnswerSource, work: Work[_Answer], room: AnswerRoom, needed_bytes: int | None) -> _Answer:
    limit_bytes = await (room.wait(needed_bytes) if needed_bytes else room.wait_some(FIRST_ANSWER_BYTES))
    while True:
        allowance = Allowance(limit_bytes=limit_bytes)
        response = await source.run_on_view(work, allowance)
        if not allowance.is_exceeded:
            room.settle(allowance.used_bytes)
            return response
        del response
        limit_bytes = await room.wait(allowance.used_bytes + allowance.used_bytes // 8)  # it may grow meanwhile


async def measure_answer(source: AnswerSource, work: Work[None], limit_bytes: int) -> int:
    """What an answer would cost that `work` measures, on the loop or on a thread as `answer`; exact up to the limit."""
    allowance = Allowance(keys=SCAN_BUDGET, limit_bytes=min(limit_bytes, LOOP_ANSWER_BYTES), builds=False)
    try:
        work(source.snapshot(allowance))
        allowance.check()
    except RangeTooLargeError:
        allowance = Allowance(limit_bytes=limit_bytes, builds=False)
        await source.run_on_view(work, allowance)
    return allowance.used_bytes
