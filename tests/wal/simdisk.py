"""The disk of the log's tests: one in memory that fails an operation, or loses power (kvserver.testing.faults does the work).

`fail_at` fails the operation of that number, `fail_when` those that it accepts; a write that fails is cut short at a sector's end.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from kvserver.testing.faults import Fault, FaultyFiles, MemoryDisk


class SimDisk(FaultyFiles):
    """`wal.Files` in memory: counts operations, fails some of them, and loses power on request."""

    def __init__(self, seed: int = 0, memory: MemoryDisk | None = None) -> None:
        self.rng = random.Random(seed)
        self.memory = memory or MemoryDisk(seed)
        self.operations: list[tuple[str, str]] = []
        self.fail_at: int | None = None
        self.fail_when: Callable[[str, Path], bool] | None = None
        self.fail_errno = errno.EIO
        self.failed = 0
        super().__init__(self.memory, self, on_failed_sync=self.memory.forget_unsynced)

    def strike(self, operation: str, path: Path) -> Fault | None:
        number = len(self.operations)
        self.operations.append((operation, path.name))
        if number != self.fail_at and (self.fail_when is None or not self.fail_when(operation, path)):
            return None
        self.failed += 1
        return Fault(errno=self.fail_errno, partial=self.rng.random())

    def check(self, operation: str, path: Path) -> None:
        fault = self.strike(operation, path)
        if fault is not None:
            raise fault.error(path)

    def find(self, path: Path) -> SimpleNamespace:
        """The file at a path, whose `content` may be exchanged; of a directory the `names`."""
        disk = self.memory.disk
        node = disk.nodes[self.memory.find(path)]
        return SimpleNamespace(names={name: disk.nodes[number] for name, number in node.names.items()}) if hasattr(node, "names") else node

    def after_power_loss(self, seed: int) -> SimDisk:
        """A new disk in one of the states that a power loss now could leave."""
        return SimDisk(seed, self.memory.after_power_loss(seed))

    def after_restart(self, seed: int) -> SimDisk:
        """The same disk for a new process: what was written is still seen, durable or not; no fault is planned."""
        return SimDisk(seed, self.memory.after_restart(seed))
