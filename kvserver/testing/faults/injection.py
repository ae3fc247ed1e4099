"""Which file operation fails, and how: the plan of a test, apart from any file system.

Rules
- An operation has the name of its method in `wal.Files` or `wal.File` (`OPERATIONS`), and is counted before it is done.
- A `Fault` strikes an operation if its names, its path pattern and its trigger file allow it, and `after` such operations have passed;
  it strikes `count` times (None: from then on). The first fault of the list that strikes wins.
- Thread-safe: the log and the snapshots are written on threads of their own.

Caveat: what does not go through `Files` is out of reach: above all the store's file, which LMDB writes itself (docs/adr/0006).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import Final

SYNCS: Final = frozenset({"fdatasync", "fsync", "fsync_dir"})
WRITES: Final = frozenset({"pwritev", "preallocate", "create", "make_directory"})
"""What a full disk refuses."""

OPERATIONS: Final = (
    SYNCS
    | WRITES
    | {
        "free_bytes",
        "names",
        "open_read",
        "open_write",
        "pread",
        "remove",
        "remove_directory",
        "rename",
        "truncate",
    }
)
"""Every operation that can fail. `size`, `close`, `is_directory` and `random_u32` can't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to fail. `path` is a pattern for the file's name (fnmatch), `partial` the share, in [0, 1), of a failing write that is done.

    `when`: only while this file exists, so that another process can begin and end the trouble.
    """

    operations: frozenset[str] = OPERATIONS
    errno: int = errno.EIO
    after: int = 0
    count: int | None = None
    path: str = "*"
    when: Path | None = None
    partial: float | None = None

    def __post_init__(self) -> None:
        unknown = self.operations - OPERATIONS
        if unknown or not self.operations:
            raise ValueError(f"no file operations: {sorted(unknown)}; there are {', '.join(sorted(OPERATIONS))}")
        if self.after < 0 or (self.count is not None and self.count < 1):
            raise ValueError(f"after ({self.after}) must be at least 0, count ({self.count}) at least 1")
        if self.partial is not None and not 0 <= self.partial < 1:
            raise ValueError(f"partial ({self.partial}) must lie in [0, 1)")

    def concerns(self, operation: str, path: Path) -> bool:
        """Whether this operation is one of those that may fail now."""
        return operation in self.operations and fnmatch(path.name, self.path) and (self.when is None or self.when.exists())

    def error(self, path: Path) -> OSError:
        """What the operation raises."""
        return OSError(self.errno, f"{os.strerror(self.errno)} (injected)", str(path))


@dataclass(slots=True)
class _Tally:
    """How often a fault's operations came, and how often it struck."""

    seen: int = 0
    struck: int = 0


@dataclass(slots=True)
class Faults:
    """The faults of one file system and the count of its operations.

    `history` holds (operation, file name) of every operation if it is kept; `failed` counts the strikes.
    """

    faults: Sequence[Fault] = ()
    history: list[tuple[str, str]] | None = None
    count: int = 0
    failed: int = 0
    _tallies: list[_Tally] = field(init=False)
    _lock: Lock = field(init=False, default_factory=Lock)

    def __post_init__(self) -> None:
        self._tallies = [_Tally() for _ in self.faults]

    def strike(self, operation: str, path: Path) -> Fault | None:
        """Count an operation that is about to begin; the fault that it meets, if any."""
        with self._lock:
            self.count += 1
            if self.history is not None:
                self.history.append((operation, path.name))
            for fault, tally in zip(self.faults, self._tallies, strict=True):
                if not fault.concerns(operation, path):
                    continue
                tally.seen += 1
                if tally.seen > fault.after and (fault.count is None or tally.struck < fault.count):
                    tally.struck += 1
                    self.failed += 1
                    return fault
        return None

    def check(self, operation: str, path: Path) -> None:
        """Count an operation; raises OSError if it is to fail."""
        fault = self.strike(operation, path)
        if fault is not None:
            raise fault.error(path)
