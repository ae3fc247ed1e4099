"""A small disk of its own, for filling it up: a tmpfs that is mounted for the length of a block.

    with small_disk(tmp_path / "disk", size_mib=64) as disk:
        filler = fill(disk)      # not a byte is left
        filler.unlink()          # and there is space again

Rules: mounting needs root; `SmallDiskError` otherwise (a test skips then). The mount goes when the block ends, also while a process that
was killed still holds files on it.

Caveat: a tmpfs takes memory for what is on it, and it has no delayed allocation: a write that has no room fails at once, not at the sync.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 64 << 10
_COMMAND_TIMEOUT_S: Final = 10.0


class SmallDiskError(Exception):
    """No disk could be mounted here; the text says why."""


@contextmanager
def small_disk(path: Path, *, size_mib: int) -> Iterator[Path]:
    """Mount an empty disk of `size_mib` mebibytes at `path`, which is made if it isn't there.

    Raises:
        SmallDiskError: this process may not mount, or there is no mount command.
    """
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "kvserver-test", str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


def fill(disk: Path, *, leave_bytes: int = 0, name: str = "filler") -> Path:
    """Write a file that leaves `leave_bytes` free (rounded to pages) and return it."""
    filler = disk / name
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        while free_bytes(disk) > leave_bytes:
            chunk_bytes = min(_CHUNK_BYTES, free_bytes(disk) - leave_bytes)
            try:
                os.write(descriptor, b"\xff" * chunk_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
    finally:
        os.close(descriptor)
    return filler


def free_bytes(disk: Path) -> int:
    """What is left on it."""
    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SmallDiskError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise SmallDiskError(f"{' '.join(command)}: {done.stderr.strip()}")
