"""What waits to be sent to one peer: two bounded lanes. Sans-IO.

Rules
- The urgent lane holds small messages on which leadership depends (heartbeats, votes, responses, reads, pings); the bulk lane holds what
  carries entries. Urgent frames leave first, and their bounds are their own: a slow bulk neither displaces nor delays them, beyond the
  frame that is being written.
- Within a lane the order is kept. Between lanes it isn't: raft tolerates reordered messages, and none of the urgent ones refers to an
  append that may still stand in the bulk lane.
- Over a bound `push` refuses and nothing changes; the caller counts the drop and reports the peer unreachable. A frame larger than the
  whole bulk bound is taken when the bulk lane is empty, or it could never leave.

Invariants: `queued_bytes` is the sum over both lanes; a lane never holds more than its bounds, but for that one frame.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class OutFrame(NamedTuple):
    """An encoded frame: `segments` go to the socket as they are; `size_bytes` is their sum. A tuple: built once per message."""

    segments: list[bytes]
    size_bytes: int
    is_urgent: bool


def out_frame(segments: list[bytes], *, is_urgent: bool) -> OutFrame:
    """The encoded frame `segments` with its size."""
    return OutFrame(segments, sum(map(len, segments)), is_urgent)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxLimits:
    """Bounds of one peer's queue. All above 0; checked on construction (ValueError)."""

    bulk_size_bytes: int = 32 * 1024 * 1024
    bulk_frames: int = 16_384
    urgent_size_bytes: int = 1024 * 1024
    urgent_frames: int = 8_192

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, it is {getattr(self, name)}")


class _Lane:
    """A FIFO bounded in frames and bytes."""

    __slots__ = ("frames", "max_bytes", "max_frames", "size_bytes")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self.frames: deque[OutFrame] = deque()
        self.size_bytes = 0
        self.max_frames = max_frames
        self.max_bytes = max_bytes

    def push(self, frame: OutFrame) -> bool:
        if len(self.frames) >= self.max_frames:
            return False
        if self.frames and self.size_bytes + frame.size_bytes > self.max_bytes:
            return False
        self.frames.append(frame)
        self.size_bytes += frame.size_bytes
        return True

    def pop(self) -> OutFrame:
        frame = self.frames.popleft()
        self.size_bytes -= frame.size_bytes
        return frame


class Outbox:
    """The two lanes of one peer."""

    __slots__ = ("_bulk", "_urgent")

    def __init__(self, limits: OutboxLimits) -> None:
        self._urgent = _Lane(limits.urgent_frames, limits.urgent_size_bytes)
        self._bulk = _Lane(limits.bulk_frames, limits.bulk_size_bytes)

    def __len__(self) -> int:
        return len(self._urgent.frames) + len(self._bulk.frames)

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait in both lanes."""
        return self._urgent.size_bytes + self._bulk.size_bytes

    def push(self, frame: OutFrame) -> bool:
        """Queue the frame; False if its lane is full."""
        return self._urgent.push(frame) if frame.is_urgent else self._bulk.push(frame)

    def pop(self) -> OutFrame | None:
        """The next frame to write, urgent ones first; None if nothing waits."""
        if self._urgent.frames:
            return self._urgent.pop()
        if self._bulk.frames:
            return self._bulk.pop()
        return None

    def take(self, size_bytes: int) -> tuple[list[bytes], int]:
        """The segments of the next frames, until they are at least `size_bytes` together or nothing is left; and their sum."""
        segments: list[bytes] = []
        taken_bytes = 0
        while taken_bytes < size_bytes and (frame := self.pop()) is not None:
            segments += frame.segments
            taken_bytes += frame.size_bytes
        return segments, taken_bytes

    def clear(self) -> int:
        """Drop everything; returns how many frames that were."""
        dropped = len(self)
        for lane in (self._urgent, self._bulk):
            lane.frames.clear()
            lane.size_bytes = 0
        return dropped
