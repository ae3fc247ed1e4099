"""The transport's bounds and times, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvserver.peer.frames import MAX_FRAME_BOUND_BYTES
from kvserver.peer.outbox import OutboxLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """Checked on construction (ValueError).

    `max_frame_size_bytes` bounds what one received frame may hold, so it must exceed raft's largest message (size limit per message plus
    one largest request). A peer is dead after `ping_timeout_s` without an answer. Backoff between two dials doubles from `backoff_min_s` to
    `backoff_max_s`, less up to half by chance.
    """

    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    max_frame_size_bytes: int = 16 * 1024 * 1024
    dial_timeout_s: float = 2.0
    hello_timeout_s: float = 5.0
    ping_interval_s: float = 1.0
    ping_timeout_s: float = 3.0
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0
    stop_timeout_s: float = 1.0
    max_accepted_connections: int = 256

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, OutboxLimits) and value <= 0:
                raise ValueError(f"{name} must be above 0, it is {value}")
        if self.max_frame_size_bytes > MAX_FRAME_BOUND_BYTES:
            raise ValueError(f"max_frame_size_bytes must not exceed {MAX_FRAME_BOUND_BYTES}")
        if self.ping_timeout_s < 2 * self.ping_interval_s:
            raise ValueError("ping_timeout_s must be at least twice ping_interval_s")
        if self.backoff_min_s > self.backoff_max_s:
            raise ValueError("backoff_min_s must not exceed backoff_max_s")
