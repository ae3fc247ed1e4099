"""One direction of a relayed connection that takes longer: what goes in comes out in the same order, each piece a delay later.

Purpose: a link with latency and without a lower rate, for the relay between members (bench/proxy.py).

Rules: a piece is due `delay_s` after it came, never before the one ahead of it. What is on its way is bounded: `HELD_BYTES` (and a piece)
while there is a delay, one piece while there is none (so that a throttled connection pushes back as it would without the line); then `put`
waits. The end of the stream travels like a piece.

Caveats: timers of asyncio are exact to about a millisecond; a rate beyond `HELD_BYTES` per delay (800 MB/s at 20 ms) is throttled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

HELD_BYTES: Final = 16 << 20


class DelayLine:
    """Pieces on their way; one task puts, one takes. `delay_s` is asked for at each piece, so that it may change."""

    def __init__(self, delay_s: Callable[[], float], held_bytes: int = HELD_BYTES) -> None:
        self._delay_s = delay_s
        self._most_bytes = held_bytes
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._last_due_s = 0.0
        self._changed = asyncio.Event()
        self._is_ended = False

    @property
    def held_bytes(self) -> int:
        """Bytes on their way."""
        return self._held_bytes

    @property
    def is_ended(self) -> bool:
        """Nobody takes any more."""
        return self._is_ended

    def end(self) -> None:
        """Say that nobody takes any more: what is on its way is dropped, and so is what is put from now on."""
        self._is_ended = True
        self._pieces.clear()
        self._held_bytes = 0
        self._changed.set()

    async def put(self, piece: bytes) -> None:
        """Send a piece, or b"" for the end; waits while the line is full."""
        delay_s = self._delay_s()
        most_bytes = self._most_bytes if delay_s else 1
        while piece and self._held_bytes >= most_bytes and not self._is_ended:
            self._changed.clear()
            await self._changed.wait()
        if self._is_ended:
            return
        self._last_due_s = max(self._last_due_s, asyncio.get_running_loop().time() + delay_s)
        self._pieces.append((self._last_due_s, piece))
        self._held_bytes += len(piece)
        self._changed.set()

    async def take(self) -> bytes:
        """The next piece, when it is due; b"" for the end."""
        while not self._pieces:
            self._changed.clear()
            await self._changed.wait()
        due_s, piece = self._pieces[0]
        if (early_s := due_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(early_s)
        self._pieces.popleft()
        self._held_bytes -= len(piece)
        self._changed.set()
        return piece
