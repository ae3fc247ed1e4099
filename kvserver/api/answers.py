"""The room that answers need: what is built and not yet taken by its client is bounded, the rest waits.

Purpose: `Answers` makes one `AnswerSlot` per read; the store takes room through it before it builds (apply.AnswerRoom), and it is given
back when the call is over.

Rules
- An answer counts `FORMS` times: as a message and as its encoding, then as its encoding and as the copy that the wire keeps until it is
  sent.
- Up to `FREE_BYTES` it is not counted: a call costs more than that anyway, and the number of calls is bounded.
- Up to `SMALL_BYTES` it is small: if there is no room among the large ones it takes some of a reserve, which only small ones take from. So
  none waits for a large one.
- One that is larger than all the room waits until it is alone, and may then be as large as it is: etcd has no limit on answers.
- What a write answers is built while it is applied, which waits for nobody. If it may be much (write_answers.py) room is taken before it is
  proposed; otherwise it is counted when it is there, and the next reads wait for it.
- An answer is counted until it has left. Who takes nothing of it for `STALL_S` (divided by those who wait for its room, and one; down to
  `LEAST_STALL_S`) while others wait, is cut off, and so is who has not taken all of it after `PATIENCE_S` for each `PATIENCE_BYTES`
  begun: the client's connection is ended, as nothing less makes grpcio let go of an answer.
- A read waits as long as its client does: its task is cancelled when the client leaves or its deadline passes.

Caveat: what a client has taken is known of its connection (Call.connection), not of each of its calls. Where nothing is known of it nobody
is cut off, and those who wait, wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvserver.api.byte_gate import ByteGate
from kvserver.api.protocols import Call, Connection
from kvserver.apply import ANSWER_FORMS

__all__ = ["FORMS", "FREE_BYTES", "SMALL_BYTES", "AnswerLimits", "AnswerSlot", "Answers"]

FORMS: Final = ANSWER_FORMS
FREE_BYTES: Final = 4096
SMALL_BYTES: Final = 64 << 10
ALONE_BYTES: Final = 1 << 62

STALL_S: Final = 2.0
LEAST_STALL_S: Final = 0.5
PATIENCE_S: Final = 30.0
PATIENCE_BYTES: Final = 16 << 20
_LOOK_S: Final = 0.25
_RESERVE_PART: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """How long a client may take while others wait. For tests; seconds."""

    stall_s: float = STALL_S
    least_stall_s: float = LEAST_STALL_S
    patience_s: float = PATIENCE_S
    look_s: float = _LOOK_S


class Answers:
    """The answers of one server.

    Args:
        max_bytes: what all of them may hold: an eighth of it (two small answers at least) is the reserve for small ones.
        max_waiting: how many may wait for either.
        on_cut_off: told of each client that is cut off, with its address.
    """

    __slots__ = ("_limits", "_on_cut_off", "large", "small")

    def __init__(
        self, *, max_bytes: int, max_waiting: int, on_cut_off: Callable[[str], None], limits: AnswerLimits = AnswerLimits()
    ) -> None:
        reserve_bytes = max(2 * FORMS * SMALL_BYTES, max_bytes // _RESERVE_PART)
        self.large = ByteGate(max_bytes=max(1, max_bytes - reserve_bytes), max_waiting=max_waiting)
        self.small = ByteGate(max_bytes=reserve_bytes, max_waiting=max_waiting)
        self._on_cut_off = on_cut_off
        self._limits = limits

    @property
    def held_bytes(self) -> int:
        """What all answers hold."""
        return self.large.held_bytes + self.small.held_bytes

    def slot(self, call: Call) -> AnswerSlot:
        """The room of the answer to `call`; costs nothing until it is used."""
        return AnswerSlot(self, call, self._limits, self._on_cut_off)


class AnswerSlot:
    """Meets `apply.AnswerRoom`; given back when the call is over."""

    __slots__ = ("_call", "_gate", "_held_bytes", "_is_over", "_is_watched", "_lanes", "_limits", "_on_cut_off", "_timer", "_watch")

    def __init__(self, lanes: Answers, call: Call, limits: AnswerLimits, on_cut_off: Callable[[str], None]) -> None:
        self._lanes = lanes
        self._call = call
        self._limits = limits
        self._on_cut_off = on_cut_off
        self._gate = lanes.large  # the one that holds its bytes, if any does
        self._held_bytes = 0
        self._is_watched = False
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch: _Taking | None = None

    def try_take(self, size_bytes: int) -> bool:
        """See `AnswerRoom`."""
        if not self._held_bytes:
            return self._take_first(size_bytes)
        wanted_bytes = min(self._cost(size_bytes), self._gate.max_bytes)  # as `wait` does: what it granted must be enough here
        if wanted_bytes > self._held_bytes:
            return False
        self.settle(size_bytes)
        return True

    def _take_first(self, size_bytes: int) -> bool:
        cost_bytes = self._cost(size_bytes)
        if not cost_bytes:
            return True
        lanes = self._lanes
        for gate in (lanes.large, lanes.small) if size_bytes <= SMALL_BYTES else (lanes.large,):
            wanted_bytes = min(cost_bytes, gate.max_bytes)
            if gate.try_take(wanted_bytes):
                self._hold(gate, wanted_bytes)
                self.settle(size_bytes)
                return True
        return False

    async def wait(self, size_bytes: int) -> int:
        """See `AnswerRoom`. Raises TooManyRequestsError."""
        self._give_back()
        lanes = self._lanes
        gate = lanes.small if size_bytes <= SMALL_BYTES else lanes.large
        wanted_bytes = min(FORMS * size_bytes, gate.max_bytes)
        if gate is lanes.small and lanes.large.try_take(wanted_bytes):
            gate = lanes.large
        else:
            await gate.take(wanted_bytes)
        self._hold(gate, wanted_bytes)
        return size_bytes if FORMS * size_bytes <= gate.max_bytes else ALONE_BYTES

    async def wait_some(self, size_bytes: int) -> int:
        """See `AnswerRoom`. Raises TooManyRequestsError."""
        self._give_back()
        wanted_bytes = min(FORMS * size_bytes, self._lanes.large.max_bytes)
        if not self._lanes.large.try_take(wanted_bytes):
            return await self.wait(min(size_bytes, SMALL_BYTES))
        self._hold(self._lanes.large, wanted_bytes)
        return wanted_bytes // FORMS

    def settle(self, size_bytes: int) -> None:
        """See `AnswerRoom`."""
        change_bytes = self._cost(size_bytes) - self._held_bytes
        self._held_bytes += change_bytes
        if change_bytes > 0:
            self._gate.add(change_bytes)
        elif change_bytes < 0:
            self._gate.give(-change_bytes)
        if self._held_bytes and self._watch is None and not self._is_over:
            self._watch = _Taking(size_bytes)
            self._look_later()

    def add(self, size_bytes: int) -> None:
        """Count an answer that is there, whether room was taken for it (`wait`) or not."""
        if self._cost(size_bytes):
            if not self._held_bytes:
                self._gate = self._lanes.small if size_bytes <= SMALL_BYTES else self._lanes.large
            self._end_with_call()
            self.settle(size_bytes)

    @staticmethod
    def _cost(size_bytes: int) -> int:
        return FORMS * size_bytes if size_bytes > FREE_BYTES else 0

    def _hold(self, gate: ByteGate, size_bytes: int) -> None:
        self._gate = gate
        self._held_bytes = size_bytes
        self._end_with_call()

    def _end_with_call(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._call.on_done(self._end)

    # --- who does not take its answer ----------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._limits.look_s, self._look)

    def _look(self) -> None:
        """The answer is there for a while, and has not left."""
        assert self._watch is not None
        self._watch.age_s += self._limits.look_s
        waiting = self._gate.waiting_count
        if waiting and self._is_too_slow(self._watch, waiting):
            self._cut_off(self._watch)
        else:
            self._look_later()

    def _is_too_slow(self, watch: _Taking, waiting: int) -> bool:
        if watch.connection is None:
            watch.connection = self._call.connection()
        taken_bytes = None if watch.connection is None else watch.connection.taken_bytes()
        if taken_bytes is None:
            return False
        limits = self._limits
        watch.still_s = watch.still_s + limits.look_s if taken_bytes == watch.taken_bytes else 0.0
        watch.taken_bytes = taken_bytes
        patience_s = limits.patience_s * (1 + watch.size_bytes // PATIENCE_BYTES)
        return watch.still_s >= max(limits.least_stall_s, limits.stall_s / (1 + waiting)) or watch.age_s >= patience_s

    def _cut_off(self, watch: _Taking) -> None:
        assert watch.connection is not None
        client = self._call.peer  # unknown once the connection has ended
        if watch.connection.hang_up():
            self._on_cut_off(client)
        self._look_later()  # its call ends when grpcio has seen it; until then the answer is there, and counted

    def _end(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None and self._watch.connection is not None:
            self._watch.connection.close()
        self._give_back()

    def _give_back(self) -> None:
        held_bytes, self._held_bytes = self._held_bytes, 0
        if held_bytes:
            self._gate.give(held_bytes)


class _Taking:
    """How a client takes its answer. Time is counted in looks: a loop that stood still has not given anybody the chance to be seen."""

    __slots__ = ("age_s", "connection", "size_bytes", "still_s", "taken_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.age_s = 0.0
        self.still_s = 0.0
        self.taken_bytes = -1
        self.connection: Connection | None = None
