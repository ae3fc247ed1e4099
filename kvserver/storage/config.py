"""What the engine is told when it is opened: when to commit, how much may wait, and whom to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvserver.errors import FatalError
from kvserver.storage.errors import StorageNoSpaceError
from kvserver.storage.reader import OnDamage, ignore_damage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """When batches are committed and how much may wait. `quota_bytes` sizes the map; negative for no quota."""

    quota_bytes: int = 2 << 30
    interval_s: float = 0.1
    commit_count: int = 5_000
    commit_bytes: int = 4 << 20
    max_buffer_bytes: int = 16 << 20
    retry_s: float = 1.0
    verify_on_open: bool = False
    """Before the file is used, check every row and not only the frames of the pages (docs/architecture/storage.md: what a check costs)."""

    def __post_init__(self) -> None:
        if not 0 < self.commit_bytes <= self.max_buffer_bytes:
            raise ValueError(f"commit_bytes must lie in (0, max_buffer_bytes], not {self.commit_bytes}")
        if self.quota_bytes == 0 or self.commit_count <= 0 or self.interval_s < 0 or self.retry_s <= 0:
            raise ValueError("commit_count and retry_s must be positive, interval_s not negative, quota_bytes not 0")


@dataclass(slots=True, kw_only=True)
class EngineHooks:
    """Whom the engine tells; called on the loop, but for `on_damage`."""

    on_durable: Callable[[int], None] = lambda mark: None
    on_commit_seconds: Callable[[float], None] = lambda seconds: None
    on_no_space: Callable[[StorageNoSpaceError | None], None] = lambda error: None
    """The error when a commit first meets a full disk, None when one has succeeded again."""
    on_fatal: Callable[[FatalError], None] = lambda error: None
    on_damage: OnDamage = ignore_damage
    """Table, key and what is wrong with a row of the file; the one hook that is called from any thread."""
