"""What can go wrong in the storage engine.

Rules: out of space is not fatal (the batch is kept and committed later); everything else that a commit meets is, because a failed fsync
proves nothing afterwards (durability.md).
"""

from __future__ import annotations

from pathlib import Path

from kvserver.errors import CorruptError, FatalError, KvError


class StorageError(KvError):
    """Base of the engine's errors that don't stop the node."""


class StorageNoSpaceError(StorageError):
    """A commit met a full disk or a full map; the batch is kept and tried again. Retryable."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"no space left for the store {path}: {reason}; writes are paused and resume by themselves once there is space")


class ViewExpiredError(StorageError):
    """A read view lived longer than it may, or the store was replaced or closed under it. Retryable with a new view."""

    def __init__(self) -> None:
        super().__init__("the read view has expired; read again with a new one")


class StoreFailedError(FatalError):
    """A commit failed for another reason than space; the store takes no more."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        self.path = path
        super().__init__(f"the store {path} failed: {cause}; nothing after the last commit is durable; check the disk, then start again")


class StoreUnreadableError(FatalError):
    """The store's file can't be opened or isn't one of ours."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"the store {path} can't be opened: {reason}")


class DamagedRowError(CorruptError):
    """A row of the file isn't what was written: it is never served. To a client it is CorruptError; the text is for the log."""

    def __init__(self, path: str, table: int, key: bytes, reason: str) -> None:
        super().__init__(f"the row {key[:40].hex() or '(first)'} of table {table}", reason)
        self.table = table
        self.key = key
        self.text = f"{path}: {self.row} {reason}"
