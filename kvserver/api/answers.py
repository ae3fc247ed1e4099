"""The room that answers need: what is built and not yet taken by its client is bounded, the rest waits.

Purpose: `Answers` makes one `AnswerSlot` per read; the store takes room through it before it builds (apply.AnswerRoom), and it is given
back when the call is over.

Rules
- An answer counts `FORMS` times: as a message and as its encoding, then as its encoding and as the copy that the wire keeps until it is
  sent.
- Up to `FREE_BYTES` it is not counted: a call costs more than that anyway, and the number of calls is bounded.
- One that is larger than all the room waits until it is alone, and may then be as large as it is: etcd has no limit on answers.
- What a write answers is built while it is applied, which waits for nobody. If it may be much (write_answers.py) room is taken before it is
  proposed; otherwise it is counted when it is there, and the next reads wait for it.
- A client that doesn't take its answer within `PATIENCE_S` keeps it (nothing on this side can take it back), but it is not counted any more
  while others wait: it must not keep them from reading for ever.
- A read waits as long as its client does: its task is cancelled when the client leaves or its deadline passes.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kvserver.api.byte_gate import ByteGate
from kvserver.api.protocols import Call
from kvserver.apply import ANSWER_FORMS

__all__ = ["FORMS", "FREE_BYTES", "PATIENCE_S", "AnswerSlot", "Answers"]

FORMS: Final = ANSWER_FORMS
FREE_BYTES: Final = 4096
PATIENCE_S: Final = 30.0
ALONE_BYTES: Final = 1 << 62


class Answers:
    """The answers of one server.

    Args:
        gate: the bytes that all of them may hold.
        patience_s: for tests.
    """

    __slots__ = ("_gate", "_patience_s")

    def __init__(self, gate: ByteGate, *, patience_s: float = PATIENCE_S) -> None:
        self._gate = gate
        self._patience_s = patience_s

    @property
    def gate(self) -> ByteGate:
        """The gate, for showing it."""
        return self._gate

    def slot(self, call: Call) -> AnswerSlot:
        """The room of the answer to `call`; costs nothing until it is used."""
        return AnswerSlot(self._gate, call, self._patience_s)


class AnswerSlot:
    """Meets `apply.AnswerRoom`; given back when the call is over."""

    __slots__ = ("_call", "_gate", "_held_bytes", "_is_over", "_is_watched", "_patience_s", "_timer")

    def __init__(self, gate: ByteGate, call: Call, patience_s: float) -> None:
        self._gate = gate
        self._call = call
        self._patience_s = patience_s
        self._held_bytes = 0
        self._is_watched = False
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def try_take(self, size_bytes: int) -> bool:
        """See `AnswerRoom`."""
        wanted_bytes = min(self._cost(size_bytes), self._gate.max_bytes)  # as `wait` does: what it granted must be enough here
        if wanted_bytes > self._held_bytes:
            if self._held_bytes or not self._gate.try_take(wanted_bytes):
                return False
            self._hold(wanted_bytes)
        self.settle(size_bytes)
        return True

    async def wait(self, size_bytes: int) -> int:
        """See `AnswerRoom`. Raises TooManyRequestsError."""
        self._give_back()
        wanted_bytes = min(FORMS * size_bytes, self._gate.max_bytes)
        await self._gate.take(wanted_bytes)
        self._hold(wanted_bytes)
        return size_bytes if FORMS * size_bytes <= self._gate.max_bytes else ALONE_BYTES

    def settle(self, size_bytes: int) -> None:
        """See `AnswerRoom`."""
        change_bytes = self._cost(size_bytes) - self._held_bytes
        self._held_bytes += change_bytes
        if change_bytes > 0:
            self._gate.add(change_bytes)
        elif change_bytes < 0:
            self._gate.give(-change_bytes)
        if self._held_bytes and self._timer is None and not self._is_over:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._look)

    def add(self, size_bytes: int) -> None:
        """Count an answer that was made without asking."""
        if self._cost(size_bytes):
            self._watch()
            self.settle(size_bytes)

    @staticmethod
    def _cost(size_bytes: int) -> int:
        return FORMS * size_bytes if size_bytes > FREE_BYTES else 0

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes = size_bytes
        self._watch()

    def _watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._call.on_done(self._end)

    def _look(self) -> None:
        """The client has not taken its answer for a while."""
        if self._gate.waiting_count:
            self._give_back()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._look)

    def _end(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._give_back()

    def _give_back(self) -> None:
        held_bytes, self._held_bytes = self._held_bytes, 0
        if held_bytes:
            self._gate.give(held_bytes)
