"""What can go wrong in the storage engine.

Rules: out of space is not fatal (the batch is kept and committed later); everything else that a commit meets is, because a failed fsync
proves nothing afterwards (durability.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kvserver.errors import CorruptError, FatalError, KvError
from wal import guide

DAMAGE_ADVICE: Final = (
    "nothing was changed; `kvserver check` lists all the damage; in a cluster replace this member, restore a single node from a backup: "
    f"{guide('corruption')}"
)
"""What to do about a damaged store; fits a cluster and a single node."""


class StorageError(KvError):
    """Base of the engine's errors that don't stop the node."""


class StorageNoSpaceError(StorageError):
    """A commit met a full disk or a full map; the batch is kept and tried again. Retryable.

    `is_doubtful`: it was an IO error where space had been tight but is not wanting now: somebody has freed some, or the disk fails.
    """

    def __init__(self, path: Path, reason: str, *, is_doubtful: bool = False) -> None:
        self.path = path
        self.reason = reason
        self.is_doubtful = is_doubtful
        super().__init__(f"no space left for the store {path}: {reason}; writes are paused and resume by themselves once there is space")


class ViewExpiredError(StorageError):
    """A read view lived longer than it may, or the store was replaced or closed under it. Retryable with a new view."""

    def __init__(self) -> None:
        super().__init__("the read view has expired; read again with a new one")


class ViewTooOldError(ViewExpiredError):
    """A read view lived longer than it may: what was read through it takes that long, and would again."""


class CheckStoppedError(StorageError):
    """A check was stopped before its end: it says nothing about the file."""

    def __init__(self) -> None:
        super().__init__("the check of the store was stopped")


class StoreFailedError(FatalError):
    """A commit failed for another reason than space; the store takes no more."""

    def __init__(self, path: Path, cause: BaseException | str) -> None:
        self.path = path
        super().__init__(f"the store {path} failed: {cause}; nothing after the last commit is durable; check the disk, then start again")


class SwapFailedError(FatalError):
    """A store could not be replaced by a snapshot. Which of the two the next start finds is open; both are whole."""

    def __init__(self, path: Path, source: Path, cause: BaseException) -> None:
        self.path = path
        super().__init__(
            f"the store {path} can't be replaced by the snapshot {source}: {cause}; nothing is lost: check the disk, then start again, "
            "which finishes it"
        )


class StoreUnreadableError(FatalError):
    """The store's file can't be opened or isn't one of ours. `reason` is the text without the file and without advice."""

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"the store {path} can't be opened: {reason}{f'; {advice}' if advice else ''}")


class StoreDamagedError(StoreUnreadableError):
    """Bytes of the store's file aren't what was written. `place` says where: file, offset and what, of the first such place; there are
    `more`."""

    def __init__(self, path: Path, what: str, offset_bytes: int | None = None, more: int = 0) -> None:
        super().__init__(path, what)
        self.offset_bytes = offset_bytes
        at = "" if offset_bytes is None else f"at offset {offset_bytes}: "
        text = f"{at}{what}{f' (and {more} more)' if more else ''}"
        self.place = f"{path}: {text}"
        self.args = (f"the store {path} is damaged: {text}; {DAMAGE_ADVICE}",)


class DamagedRowError(CorruptError):
    """A row of the file isn't what was written: it is never served. To a client it is CorruptError; the text is for the log."""

    def __init__(self, path: str, table: int, key: bytes, reason: str) -> None:
        super().__init__(f"the row {key[:40].hex() or '(first)'} of table {table}", reason)
        self.table = table
        self.key = key
        self.text = f"{path}: {self.row} {reason}"
