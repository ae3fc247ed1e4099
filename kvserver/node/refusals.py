"""Why a member can't start from what its directory holds: the texts, for the start itself and for `kvserver wal` and `kvserver check`.

Rules: pure; each text names the paths, what is lost, and what to do.
"""

from __future__ import annotations

from pathlib import Path

from raft.types import Index
from wal import WAY_OUT, Marker, guide


def wal_missing(wal: Path, store: Path, applied_index: Index) -> str:
    """There is a store that has applied entries, and no log."""
    return (
        f"the WAL directory {wal} is missing or empty, but the store {store} holds {applied_index} "
        f"applied entries: put the WAL back; if it is lost for good, {WAY_OUT}"
    )


def store_missing(store: Path, wal: Path, first_index: Index) -> str:
    """There is a log that no longer begins at the first entry, and no store."""
    return (
        f"the store {store} is missing, and the WAL {wal} begins at index "
        f"{first_index}: what came before is lost on this member. Put the store back; if it is lost for good, {WAY_OUT}"
    )


def gap(wal: Path, first_index: Index, store: Path, applied_index: Index) -> str:
    """The log begins behind the store's end."""
    return (
        f"the WAL {wal} begins at index {first_index}, the store {store} is at index "
        f"{applied_index}: what lies between is lost on this member. Put back the part that is missing; if it is lost for good, "
        f"{WAY_OUT}"
    )


def snapshot_missing(marker: Marker, store: Path, applied_index: Index, snap: Path) -> str:
    """The log's marker names a snapshot that is neither in the store nor beside it."""
    return (
        f"the WAL says that a snapshot at index {marker.index} was installed, but the store {store} is at index "
        f"{applied_index} and no such snapshot lies in {snap}: put the file back; if it is lost for good, {WAY_OUT}"
    )


def forgotten(member_id: int, name: str, root: Path, state: str) -> str:
    """The cluster knows this member as one that has taken part; `state` says what its directory is instead."""
    return (
        f"member {member_id:x} ({name}) has already been bootstrapped, and its data directory {root} {state}: what it "
        "voted and acknowledged is forgotten. Put the directory back, or remove the member "
        f"(kvctl member remove {member_id:x}), add it anew and start it with --initial-cluster-state=existing "
        f"({guide('replace-a-dead-member')})"
    )


def other_cluster(root: Path, store_cluster_id: int, wal_cluster_id: int) -> str:
    """The store and the log belong to different clusters."""
    return (
        f"data directory {root}: the store belongs to cluster {store_cluster_id:x}, the WAL to another cluster, "
        f"{wal_cluster_id:x}: put back the parts that belong together (check --data-dir and --wal-dir); if they are lost, {WAY_OUT}"
    )


def removed(root: Path, member_id: int) -> str:
    """The store says that this member was removed from the cluster."""
    return (
        f"data directory {root}: this member ({member_id:x}) has been removed from the cluster: remove the directory, add it as a new "
        f"member and start it with --initial-cluster-state=existing ({guide('replace-a-dead-member')})"
    )


def unfinished_restore(root: Path, part: Path) -> str:
    """`kvctl snapshot restore` was killed, or is at work."""
    return (
        f"data directory {root}: a restore was begun and not finished ({part}): run `kvctl snapshot restore` again, it clears up after "
        f"itself ({guide('backup-and-restore')}). Starting from here would found an empty cluster"
    )


def not_a_directory(what: str, path: Path) -> str:
    """A flag names a file, or something else that holds no files."""
    return f"{what} {path} can't be used: it is not a directory; name another one"
