"""What stops a member while it applies, beyond what a single command can say."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from kvserver.errors import CorruptError, FatalError
from kvserver.mvcc import describe_row
from kvserver.storage import DAMAGE_ADVICE, DamagedRowError
from kvserver.types import Index


class ApplyMetDamageError(FatalError):
    """A committed entry can't be applied, because a row that it reads is damaged: this member would part from the others.

    Not deterministic (it is this member's disk), and met again at every start: the member has to be replaced.

    Attributes:
        path: the store's file.
        row: which row, in words; `reason`: what is wrong with it.
        index: the entry that could not be applied; everything before it is.
    """

    def __init__(self, path: Path, row: str, reason: str, index: Index) -> None:
        self.path = path
        self.row = row
        self.reason = reason
        self.index = index
        super().__init__(
            f"the store {path} is damaged: {row} {reason}; entry {index}, which needs it, can't be applied, and a restart would meet the "
            f"same damage; {DAMAGE_ADVICE}"
        )

    @classmethod
    def met(cls, path: Path, error: CorruptError, index: Index) -> Self:
        """The damage that a read of entry `index` met."""
        row = describe_row(error.table, error.key) if isinstance(error, DamagedRowError) else error.row
        return cls(path, row or "a row", error.reason or "is damaged", index)
