"""Bounds and times of snapshot transfers, and what is told about them."""

from __future__ import annotations

from dataclasses import dataclass

from kvserver.snapshot import plan
from kvserver.types import NodeId
from raft.types import SnapshotMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """Checked on construction (ValueError).

    A transfer without progress for `stall_timeout_s` fails, on either side. `rate_limit_bytes_per_s` of 0 is no limit.
    """

    chunk_size_bytes: int = plan.DEFAULT_CHUNK_SIZE_BYTES
    max_size_bytes: int = plan.DEFAULT_MAX_SNAPSHOT_SIZE_BYTES
    stall_timeout_s: float = 30.0
    sign_of_life_s: float = 5.0
    hangup_timeout_s: float = 5.0
    rate_limit_bytes_per_s: int = 0

    def __post_init__(self) -> None:
        if not plan.MIN_CHUNK_SIZE_BYTES <= self.chunk_size_bytes <= plan.MAX_CHUNK_SIZE_BYTES:
            raise ValueError(f"chunk_size_bytes must be in {plan.MIN_CHUNK_SIZE_BYTES}..{plan.MAX_CHUNK_SIZE_BYTES}")
        if min(self.max_size_bytes, self.stall_timeout_s, self.sign_of_life_s, self.hangup_timeout_s) <= 0:
            raise ValueError("sizes and times must be above 0")
        if self.rate_limit_bytes_per_s < 0:
            raise ValueError("rate_limit_bytes_per_s must be 0 (no limit) or above")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotProgress:
    """A transfer under way: of `size_bytes`, the receiver has verified and written `received_bytes`."""

    to: NodeId
    metadata: SnapshotMetadata
    received_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOutcome:
    """How a transfer ended. `reason` is empty exactly if `ok`; `metadata` is None if no copy was made; `sent_bytes` counts what went
    out.
    """

    to: NodeId
    ok: bool
    reason: str = ""
    metadata: SnapshotMetadata | None = None
    sent_bytes: int = 0
    duration_s: float = 0.0
