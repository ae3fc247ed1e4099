"""A new data directory from a saved snapshot: one member of a new cluster that begins with the old one's keys.

Theory of operation
- The new cluster is founded as any other is: at the founding position, with the members that the flags name. Only its store isn't empty.
  Every member is restored from the same snapshot with the same flags but its own name, URLs and directory; all are then started with the
  usual flags.
- The cluster's id is made from the members *and the snapshot*. Members restored from different snapshots, a member that was started with
  an empty directory, and members of the old cluster that still run at the same URLs all have another id, and the peers' handshake refuses
  them: stores that differ never vote together. For the same reason a restored member that loses its store is refused at its next start: it
  can't be founded again from the flags.
- Everything is built in `member.restoring` beside its place and renamed to `member` as the last step. A failure removes it; a process that
  is killed leaves it to the next restore, and a server that finds it refuses to start.

Source: etcdutl's snapshot restore for flags and order of checks; ids as in node/membership.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvserver.apply import Membership, RevisionTooLargeError, refound
from kvserver.backup.building import Building
from kvserver.backup.errors import RestoreError, SnapshotFileError
from kvserver.backup.saved_file import blocks, check_saved, check_saved_size, examine, open_saved
from kvserver.client.saved import NoChecksumError, SnapshotChecksum
from kvserver.config import ServerConfig
from kvserver.errors import KvError
from kvserver.node.bootstrap import FOUNDING, members_of
from kvserver.node.membership import conf_state_of
from kvserver.types import ClusterId, NodeId, Revision
from wal import Metadata, OsFiles, Wal, WalError

WAL_SEGMENTS: Final = 2
"""What a new WAL takes: the first segment and the spare."""

WatchStep = Callable[[str, int, int], None]
"""Told the step, and how many bytes of it are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOrder:
    """What to restore and where to. `config` is the configuration of the member as it will be started.

    `skip_hash_check` takes a store's file without a checksum, too (a copy of `member/snap/db`). `bump_revision` > 0 raises the revision by
    that and marks everything up to there as compacted.
    """

    snapshot: Path
    config: ServerConfig
    skip_hash_check: bool = False
    bump_revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was founded."""

    cluster_id: ClusterId
    member_id: NodeId
    members: tuple[NodeId, ...]
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The copied store: its length, and its SHA-256."""

    size_bytes: int
    digest: bytes


def restore(order: RestoreOrder, watch: WatchStep) -> Restored:
    """Make the data directory, whole and durable when this returns. Blocking; runs an event loop of its own.

    Raises:
        ConfigError: the flags don't name this member as --initial-cluster does.
        SnapshotFileError: the snapshot is damaged, or none.
        RestoreError: the directories aren't empty, or can't be written. In every case nothing is left behind.
    """
    config = order.config
    config.check_bootstrap()
    try:
        with open_saved(order.snapshot) as source, Building(config.data_dir, config.dedicated_wal_dir) as building:
            content = _copy(order, source, building.store, watch)
            examine(building.store, order.snapshot, content.size_bytes, lambda done, total: watch("verifying", done, total))
            restored = _found(order, building, content)
            building.finish()
            return restored
    except OSError as error:
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        raise RestoreError(f"restoring to {config.data_dir} failed: {(error.strerror or str(error)).lower()}{where}") from error
    except (WalError, RevisionTooLargeError) as error:
        raise RestoreError(f"restoring to {config.data_dir} failed: {error}") from error


def _copy(order: RestoreOrder, source: int, target: Path, watch: WatchStep) -> _Content:
    """Copy the content, durably, and verify it by its checksum. Raises OSError, SnapshotFileError, RestoreError."""
    total_bytes = os.fstat(source).st_size
    has_checksum = _has_checksum(order, total_bytes)
    _check_room(target.parent, total_bytes + WAL_SEGMENTS * order.config.wal_segment_bytes)
    checksum, whole = SnapshotChecksum(), hashlib.sha256()
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for block in blocks(source):
            checksum.update(block)
            if not has_checksum:
                whole.update(block)
            view = memoryview(block)
            while view:
                view = view[os.write(descriptor, view) :]
            watch("restoring", checksum.size_bytes, total_bytes)
        digest = _verdict(order, checksum) if has_checksum else whole.digest()
        size_bytes = checksum.content_bytes if has_checksum else checksum.size_bytes
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return _Content(size_bytes=size_bytes, digest=digest)


def _has_checksum(order: RestoreOrder, total_bytes: int) -> bool:
    """Whether the file's length is that of a content with a checksum. Raises SnapshotFileError where it must have one."""
    try:
        check_saved_size(order.snapshot, total_bytes)
    except SnapshotFileError as error:
        if order.skip_hash_check and isinstance(error.__cause__, NoChecksumError):
            return False
        raise
    return True


def _verdict(order: RestoreOrder, checksum: SnapshotChecksum) -> bytes:
    """The content's checksum; one that doesn't match is an error unless it was to be skipped."""
    if order.skip_hash_check:
        return checksum.digest()
    return check_saved(order.snapshot, checksum)


def _check_room(directory: Path, needed_bytes: int) -> None:
    free_bytes = OsFiles().free_bytes(directory)
    if free_bytes < needed_bytes:
        raise RestoreError(
            f"{directory.parents[1]}: the disk has room for {free_bytes} bytes, {needed_bytes} are needed: free some, or restore elsewhere"
        )


def _found(order: RestoreOrder, building: Building, content: _Content) -> Restored:
    """Make the copied store the founding state, and the WAL that stands behind it."""
    config = order.config
    members = members_of(config)
    own = next(member for member in members.values() if member.name == config.name)
    identity = restored_cluster_id(members, content.digest, order.bump_revision)
    membership = Membership(cluster_id=identity, members=members, cluster_token=config.initial_cluster_token)
    try:
        revision = asyncio.run(
            refound(building.store, membership, conf_state_of(members), index=FOUNDING.index, term=FOUNDING.term, bump=order.bump_revision)
        )
    except RevisionTooLargeError:
        raise
    except KvError as error:
        raise RestoreError(f"restoring to {config.data_dir} failed: {error}") from error
    with suppress(FileNotFoundError):
        building.store.with_name(building.store.name + "-lock").unlink()  # this process's readers, of no use to the server
    metadata = Metadata(cluster_id=identity, member_id=own.id)
    Wal.create(building.wal, metadata, marker=FOUNDING, segment_size_bytes=config.wal_segment_bytes).close()
    return Restored(cluster_id=identity, member_id=own.id, members=tuple(sorted(members)), revision=revision)


def restored_cluster_id(members: Iterable[NodeId], digest: bytes, bump: int) -> ClusterId:
    """The id of the cluster that these members found on the content with this SHA-256; equal on all of them, never 0."""
    joined = b"".join(member.to_bytes(8, "big") for member in sorted(members))
    found = hashlib.sha1(joined + digest + bump.to_bytes(8, "big"), usedforsecurity=False).digest()
    return ClusterId(int.from_bytes(found[:8], "big") or 1)
