"""Names of snapshot files, and the steps that make them durable. Blocking: call on a thread.

    outgoing-<serial>.tmp              a copy that is being taken
    outgoing-<serial>-<id>.snap        a finished copy, on its way to peers
    incoming-<member>-<id>.part        what has arrived from a peer so far; every byte of it belongs to a verified chunk
    received-<index>-<term>.snap       a whole, verified, durable snapshot; installing or removing it is the node's
    received-<index>-<term>.snap-lock  LMDB's lock file beside it, for the moment in which it is installed

Member, id, index and term are hexadecimal with leading zeros, so that names sort as numbers.

Rules
- A rename is preceded by the file's fsync and followed by the directory's.
- `cleanup` removes what a stopped process left, and makes the names that stay durable: that process may have died between a rename and the
  sync of the directory, and nothing may rely on a name that a power cut could still take back. Received files stay, because a crash may
  have come between the rename and the marker in the WAL; once the start has looked at the marker, `remove_received` clears them.
- A file that can't be removed is left for the next start (`discard`): nothing depends on its absence.
- Everything goes through `wal.Files`, except that LMDB itself writes a copy into the path it is given (docs/adr/0006).
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raft.types import Index, NodeId, Term
from wal import Files, OsFiles

OS_FILES: Final = OsFiles()

_LEFTOVER: Final = re.compile(
    r"outgoing-[0-9]+(-[0-9a-f]{32})?\.(tmp|snap)|incoming-[0-9a-f]{16}-[0-9a-f]{32}\.part|received-[0-9a-f]{16}-[0-9a-f]{16}\.snap-lock"
)
_RECEIVED: Final = re.compile(r"received-([0-9a-f]{16})-([0-9a-f]{16})\.snap")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSnapshot:
    """A whole snapshot file in the directory, and the position that its name says."""

    path: Path
    index: Index
    term: Term


def taking_path(directory: Path, serial: int) -> Path:
    """Where a copy is written."""
    return directory / f"outgoing-{serial}.tmp"


def outgoing_path(directory: Path, serial: int, snapshot_id: bytes) -> Path:
    """Where a finished copy lies while it is sent."""
    return directory / f"outgoing-{serial}-{snapshot_id.hex()}.snap"


def part_path(directory: Path, sender: NodeId, snapshot_id: bytes) -> Path:
    """Where a snapshot from `sender` grows."""
    return directory / f"incoming-{sender:016x}-{snapshot_id.hex()}.part"


def parts_of(files: Files, directory: Path, sender: NodeId) -> list[Path]:
    """Everything that has begun to arrive from `sender`."""
    beginning = f"incoming-{sender:016x}-"
    return [directory / name for name in sorted(files.names(directory)) if name.startswith(beginning) and _LEFTOVER.fullmatch(name)]


def received_path(directory: Path, index: Index, term: Term) -> Path:
    """Where a whole snapshot of this position lies."""
    return directory / f"received-{index:016x}-{term:016x}.snap"


def list_received(directory: Path, *, files: Files = OS_FILES) -> list[ReceivedSnapshot]:
    """The whole snapshots in the directory, oldest position first."""
    found = []
    for name in files.names(directory):
        match = _RECEIVED.fullmatch(name)
        if match is not None:
            found.append(ReceivedSnapshot(path=directory / name, index=Index(int(match[1], 16)), term=Term(int(match[2], 16))))
    return sorted(found, key=lambda each: (each.index, each.term))


def cleanup(directory: Path, *, files: Files = OS_FILES) -> list[Path]:
    """Remove unfinished transfers and copies of an earlier process; returns what was removed. Then the directory's names are durable.

    Call before anything is sent, received or installed. Raises OSError.
    """
    removed = [directory / name for name in sorted(files.names(directory)) if _LEFTOVER.fullmatch(name) is not None]
    for path in removed:
        files.remove(path)
    files.fsync_dir(directory)
    return removed


def remove_received(directory: Path, through: Index | None = None, *, files: Files = OS_FILES) -> None:
    """Remove received files, all of them or those at or below a position: installed ones have moved away, the rest is of no use."""
    for found in list_received(directory, files=files):
        if through is None or found.index <= through:
            discard(files, found.path)


def discard(files: Files, path: Path) -> None:
    """Remove a file if it is there and the system lets us; otherwise the next start does."""
    with suppress(OSError):
        files.remove(path)


def sync_file(files: Files, path: Path) -> None:
    """Make the file's content durable. Raises OSError."""
    file = files.open(path, writable=False)
    try:
        file.fsync()
    finally:
        file.close()
