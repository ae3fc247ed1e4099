"""A memory cgroup for one process at a time: the hard limit that a container gives a member, for tests.

Purpose: show that a member's budget holds where exceeding it means being killed. Every page counts here that a container's limit counts:
anonymous memory, the page cache of what the process wrote and read, sockets' buffers.

Rules: root only; version 1 and version 2 hierarchies; a process is put in before its first instruction (`launcher`), as pages stay with the
group that touched them first; the group is removed at the end, when its processes are gone.

Source: the kernel's documentation of the memory controller (admin-guide/cgroup-v1/memory, admin-guide/cgroup-v2).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["CgroupUnavailableError", "MemoryCgroup"]

_ROOT: Final = Path("/sys/fs/cgroup")
_ENTER: Final = 'echo $$ > "$0" && exec "$@"'


class CgroupUnavailableError(Exception):
    """This machine lets us make no memory cgroup; the text says why."""


class MemoryCgroup:
    """A group with a limit on all memory. A context manager; leave it when its processes have ended.

    Args:
        name: of the new group; must not exist.
        limit_bytes: a multiple of the page size, or the kernel rounds it down.

    Raises:
        CgroupUnavailableError: no memory controller, or no right to use it.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self._is_v1 = (_ROOT / "memory").is_dir()
        self._path = (_ROOT / "memory" if self._is_v1 else _ROOT) / name
        try:
            self._path.mkdir()
        except OSError as error:
            raise CgroupUnavailableError(f"{self._path} can't be made: {error.strerror}") from error
        try:
            self._limit(limit_bytes)
        except OSError as error:
            self._path.rmdir()
            raise CgroupUnavailableError(f"{self._path} takes no limit: {error}") from error

    def _limit(self, limit_bytes: int) -> None:
        if self._is_v1:
            (self._path / "memory.limit_in_bytes").write_text(str(limit_bytes))
            return
        (self._path / "memory.max").write_text(str(limit_bytes))
        (self._path / "memory.oom.group").write_text("1")

    @property
    def launcher(self) -> list[str]:
        """What to put in front of a command, so that it runs within the group from its start, under the same process id."""
        return ["/bin/sh", "-c", _ENTER, str(self._path / "cgroup.procs")]

    @property
    def kills(self) -> int:
        """How many processes the kernel killed here because of the limit."""
        rows = (self._path / ("memory.oom_control" if self._is_v1 else "memory.events")).read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.split()[0] == "oom_kill")

    @property
    def peak_bytes(self) -> int:
        """The most that was charged; with files being written it reaches the limit, as the kernel takes cached pages back only then."""
        return int((self._path / ("memory.max_usage_in_bytes" if self._is_v1 else "memory.peak")).read_text())

    def __enter__(self) -> MemoryCgroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.rmdir(self._path)
