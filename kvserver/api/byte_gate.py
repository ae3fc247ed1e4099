"""A gate that bytes pass in order: at most so many behind it at a time, the others wait.

Purpose: the one way in which requests and answers are bounded. Whoever is to hold bytes takes them first and gives them back when they are
gone; what doesn't fit waits until it does.

Rules
- First come, first served: nobody passes somebody who waits, however small. So a large taker is never starved by small ones.
- What is larger than the whole gate passes alone, when nothing else is behind it.
- At most `max_waiting` wait; beyond that `TooManyRequestsError`, at once.
- `add` counts what is there already and can't wait (the result of an applied write); the next takers wait for it all the same.
- Cancelling a taker leaves no trace: what it was granted in the same moment goes to the next.

Invariants (tests/kvserver/api/test_byte_gate.py): `held_bytes` is the sum of what was taken and added and not given back; it is at most
`max_bytes`, but for one that passed alone and for what was added; somebody waits only while the first of them doesn't fit.

Belongs to the loop: nothing is locked.
"""

from __future__ import annotations

import asyncio

from kvserver.errors import TooManyRequestsError

__all__ = ["ByteGate"]


class ByteGate:
    """Bytes that may be held at a time; takers ask for one or more.

    Args:
        max_bytes: how many, positive.
        max_waiting: how many takers may wait.
    """

    __slots__ = ("_held_bytes", "_max_bytes", "_max_waiting", "_waiters", "refused", "waited")

    def __init__(self, *, max_bytes: int, max_waiting: int) -> None:
        self.waited = 0  # takers that had to wait, since the start
        self.refused = 0  # takers that were turned away, since the start
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._held_bytes = 0
        self._waiters: dict[asyncio.Future[None], int] = {}  # in the order of their coming

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._max_bytes

    @property
    def held_bytes(self) -> int:
        """What is behind the gate."""
        return self._held_bytes

    @property
    def waiting_count(self) -> int:
        """How many takers wait."""
        return len(self._waiters)

    def try_take(self, size_bytes: int) -> bool:
        """Take the bytes if nobody waits and they fit; says whether it did."""
        if self._waiters or (self._held_bytes and self._held_bytes + size_bytes > self._max_bytes):
            return False
        self._held_bytes += size_bytes
        return True

    async def take(self, size_bytes: int) -> None:
        """Take the bytes as soon as they fit and everyone who came before has passed.

        Raises:
            TooManyRequestsError: too many wait already; nothing was taken.
        """
        if self.try_take(size_bytes):
            return
        if len(self._waiters) >= self._max_waiting:
            self.refused += 1
            raise TooManyRequestsError
        self.waited += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = size_bytes
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._waiters.pop(future, None)
                self._pass_on()  # it may have stood in front
            else:
                self.give(size_bytes)  # granted and cancelled in one turn of the loop
            raise

    def add(self, size_bytes: int) -> None:
        """Count bytes that are there already, whether they fit or not."""
        self._held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what was taken or added."""
        self._held_bytes -= size_bytes
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiters:
            future, size_bytes = next(iter(self._waiters.items()))
            if not future.done():  # done: cancelled, and its task has not run since
                if self._held_bytes and self._held_bytes + size_bytes > self._max_bytes:
                    return
                self._held_bytes += size_bytes
                future.set_result(None)
            del self._waiters[future]
