"""Names of snapshot files, and the steps that make them durable. Blocking: call on a thread.

    outgoing-<serial>.tmp              a copy that is being taken
    outgoing-<serial>-<id>.snap        a finished copy, on its way to peers
    incoming-<member>-<id>.part        what has arrived from a peer so far; every byte of it belongs to a verified chunk
    received-<index>-<term>.snap       a whole, verified, durable snapshot; installing or removing it is the node's

Member, id, index and term are hexadecimal with leading zeros, so that names sort as numbers.

Rules: a rename is preceded by the file's fsync and followed by the directory's. `cleanup` removes what a stopped process left; received
files stay, because a crash may have come between the rename and the marker in the WAL.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raft.types import Index, NodeId, Term

_LEFTOVER: Final = re.compile(r"outgoing-[0-9]+(-[0-9a-f]{32})?\.(tmp|snap)|incoming-[0-9a-f]{16}-[0-9a-f]{32}\.part")
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


def parts_of(directory: Path, sender: NodeId) -> list[Path]:
    """Everything that has begun to arrive from `sender`."""
    return sorted(directory.glob(f"incoming-{sender:016x}-*.part"))


def received_path(directory: Path, index: Index, term: Term) -> Path:
    """Where a whole snapshot of this position lies."""
    return directory / f"received-{index:016x}-{term:016x}.snap"


def list_received(directory: Path) -> list[ReceivedSnapshot]:
    """The whole snapshots in the directory, oldest position first."""
    found = []
    for path in directory.iterdir():
        match = _RECEIVED.fullmatch(path.name)
        if match is not None:
            found.append(ReceivedSnapshot(path=path, index=Index(int(match[1], 16)), term=Term(int(match[2], 16))))
    return sorted(found, key=lambda each: (each.index, each.term))


def cleanup(directory: Path) -> list[Path]:
    """Remove unfinished transfers and copies of an earlier process; returns what was removed. Call before anything is sent or received."""
    removed = [path for path in sorted(directory.iterdir()) if _LEFTOVER.fullmatch(path.name) is not None]
    for path in removed:
        path.unlink()
    if removed:
        sync_directory(directory)
    return removed


def sync_directory(directory: Path) -> None:
    """Make renames and removals in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
