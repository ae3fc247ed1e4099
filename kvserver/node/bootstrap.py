"""How a member starts: a new cluster from its flags, or a restart from its directory.

Rules
- The store is opened first: its applied index is the truth about what is applied. The WAL is opened against it and refuses what would
  lose an acknowledged entry. What the directory says wins over the flags, except where the flags show that it is another cluster's
  (docs/adr/0003).
- A cluster is founded at index 1, term 1, with the founding members as its state there: the log begins at 2, so whoever joins later
  starts from a snapshot, which holds the membership, and never from a log that does not.
- A founding member asks the others whether it was there before: an empty directory of a member that has taken part is refused. So does one
  that starts from a directory at the founding position, as `snapshot restore` makes it: a second restore is as forgetful as an empty one.
- A new member creates its WAL atomically; the store follows with its first commit (a joining member's comes first). A WAL without a store
  is applied again from its first entry, if it still has that (a crash right after the founding, or a store that was lost); otherwise the
  start is refused.
- A snapshot that the WAL's marker names but the store does not hold yet is installed before anything else; a damaged one is refused and
  the store stays as it is. A received snapshot without a marker is dropped: store and WAL reach on without it.

Errors: BootstrapError (and the WAL's and the store's own) say what is wrong with which path and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kvserver.apply import Store
from kvserver.config import ServerConfig
from kvserver.errors import KvError
from kvserver.logs import Logger
from kvserver.mvcc import FIRST_REVISION
from kvserver.node import refusals
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import DataDirectory
from kvserver.node.joining import ask_cluster, has_forgotten, has_taken_part
from kvserver.node.log_window import LogWindow
from kvserver.node.membership import cluster_id, conf_state_of, initial_members
from kvserver.node.opening import inspect_received
from kvserver.node.window_loader import WindowLoader
from kvserver.snapshot import cleanup, list_received, remove_received, run_to_end
from kvserver.storage import StoreDamagedError, StoreUnreadableError
from kvserver.types import ClusterId, ConfState, Member, NodeId
from raft.types import HardState, Index, Term
from wal import WAY_OUT, Marker, Metadata, Recovered, Wal, guide, read_metadata

FOUNDING: Final = Marker(Index(1), Term(1))
"""The position that all founding members start from."""

DEFAULT_CLUSTER_TOKEN: Final = "etcd-cluster"


class BootstrapError(KvError):
    """The member can't start from this directory with these flags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a member starts from."""

    cluster_id: ClusterId
    member_id: NodeId
    wal: Wal
    window: LogWindow
    hard_state: HardState


async def begin(config: ServerConfig, directory: DataDirectory, store: Store, limits: WindowLimits, log: Logger) -> Origin:
    """Start from `directory`, whose store is open. The WAL is read in a thread: a signal is heard meanwhile."""
    removed = cleanup(directory.snap, files=directory.files)
    if removed:
        log.info("removed unfinished snapshot files of an earlier run", count=len(removed))
    if Wal.exists(directory.wal, files=directory.files):
        return await _restart(config, directory, store, limits, log)
    if store.applied_index > FOUNDING.index:
        raise BootstrapError(refusals.wal_missing(directory.wal, directory.store, store.applied_index))
    if config.initial_cluster_state == "existing":
        return await _join(config, directory, store, log)
    return await _found(config, directory, store, log)


async def _found(config: ServerConfig, directory: DataDirectory, store: Store, log: Logger) -> Origin:
    """The first start of a member of a new cluster."""
    config.check_bootstrap()
    members = members_of(config)
    own = next(member for member in members.values() if member.name == config.name)
    identity = cluster_id(members)
    if await has_taken_part(config, own.id, identity):
        raise BootstrapError(refusals.forgotten(own.id, own.name, directory.root, "is empty"))
    if store.is_empty:
        _give_founding_state(config, store, identity, members)
    elif store.cluster_id != identity and store.current_revision > FIRST_REVISION:
        raise BootstrapError(
            f"the store {directory.store} was restored from a snapshot, and the WAL {directory.wal} that belongs to it is missing: put it "
            f"back, or restore the snapshot again to a new data directory ({guide('backup-and-restore')})"
        )
    elif store.cluster_id != identity:
        raise BootstrapError(
            f"the store {directory.store} was begun for another cluster, {store.cluster_id:x}, the flags mean {identity:x}: "
            "remove the data directory (nothing was ever written to it) and start again"
        )
    metadata = Metadata(cluster_id=identity, member_id=own.id)
    wal = Wal.create(directory.wal, metadata, marker=FOUNDING, files=directory.files, segment_size_bytes=config.wal_segment_bytes)
    hard_state = HardState(term=FOUNDING.term, commit=FOUNDING.index)
    log.info("founded a new cluster", cluster_id=f"{identity:x}", member_id=f"{own.id:x}", members=len(members))
    return Origin(cluster_id=identity, member_id=own.id, wal=wal, window=_window_behind(FOUNDING, hard_state, store), hard_state=hard_state)


async def _join(config: ServerConfig, directory: DataDirectory, store: Store, log: Logger) -> Origin:
    """The first start of a member that was added to a running cluster: an empty log, and the members to be found by; all else comes by
    snapshot."""
    invitation = await ask_cluster(config)
    if store.is_empty:
        store.bootstrap(invitation.cluster_id, invitation.members, ConfState())
        await store.commit()  # first: beside a WAL without entries, an empty store would look like a lost one
    elif store.cluster_id != invitation.cluster_id:
        raise BootstrapError(
            f"the store {directory.store} was begun for another cluster, {store.cluster_id:x}, the members named in --initial-cluster are "
            f"of {invitation.cluster_id:x}: remove the data directory (nothing was ever written to it) and start again"
        )
    metadata = Metadata(cluster_id=invitation.cluster_id, member_id=invitation.member_id)
    wal = Wal.create(directory.wal, metadata, files=directory.files, segment_size_bytes=config.wal_segment_bytes)
    log.info("joining a running cluster", cluster_id=f"{invitation.cluster_id:x}", member_id=f"{invitation.member_id:x}")
    return Origin(
        cluster_id=invitation.cluster_id,
        member_id=invitation.member_id,
        wal=wal,
        window=_window_behind(Marker(Index(0), Term(0)), HardState(), store),
        hard_state=HardState(),
    )


def _give_founding_state(config: ServerConfig, store: Store, identity: ClusterId, members: Mapping[NodeId, Member]) -> None:
    """What every founding member's store holds before the first entry."""
    store.bootstrap(
        identity,
        members,
        conf_state_of(members),
        index=FOUNDING.index,
        term=FOUNDING.term,
        cluster_token=config.initial_cluster_token,
    )


def _window_behind(marker: Marker, hard_state: HardState, store: Store) -> LogWindow:
    return LogWindow(
        first_index=Index(marker.index + 1),
        prev_term=marker.term,
        hard_state=hard_state,
        conf_state=store.conf_state,
        durable=lambda: (store.durable_index, store.conf_state),
    )


async def _restart(config: ServerConfig, directory: DataDirectory, store: Store, limits: WindowLimits, log: Logger) -> Origin:
    """A start from an existing directory."""
    metadata = read_metadata(directory.wal, files=directory.files)
    _check_same_cluster(config, directory.root, store, metadata)
    loader = WindowLoader(store.applied_index, limits)
    read = partial(
        Wal.open,
        directory.wal,
        metadata,
        loader,
        applied_index=store.applied_index,
        applied_term=store.applied_term,
        files=directory.files,
        segment_size_bytes=config.wal_segment_bytes,
    )
    wal, recovered = await run_to_end(None, read, discard=lambda opened: opened[0].close())
    if recovered.repaired is not None:
        log.warning("repaired the end of the WAL", what=recovered.repaired)
    try:
        await _complete_store(config, directory, store, metadata, recovered, log)
        await _check_not_forgotten(config, directory, store, metadata, recovered)
    except BaseException:
        wal.close()
        raise
    remove_received(directory.snap, files=directory.files)  # what the marker named is installed by now; the rest never got a marker
    window = loader.finish(recovered, recovered.hard_state, store.conf_state, lambda: (store.durable_index, store.conf_state))
    log.info(
        "restarted from the data directory",
        cluster_id=f"{metadata.cluster_id:x}",
        member_id=f"{metadata.member_id:x}",
        applied_index=store.applied_index,
        commit_index=recovered.hard_state.commit,
        last_index=recovered.last_index,
        term=recovered.hard_state.term,
    )
    return Origin(
        cluster_id=ClusterId(metadata.cluster_id),
        member_id=NodeId(metadata.member_id),
        wal=wal,
        window=window,
        hard_state=recovered.hard_state,
    )


async def _check_not_forgotten(
    config: ServerConfig, directory: DataDirectory, store: Store, metadata: Metadata, recovered: Recovered
) -> None:
    """Refuse a directory in which nothing ever happened, if another member knows this one as one that has taken part: it was made a second
    time, by another restore of the same snapshot. Whoever voted or appended anything is past that position."""
    hard_state = recovered.hard_state
    has_promised = hard_state.term > FOUNDING.term or hard_state.vote or recovered.last_index > FOUNDING.index
    if store.applied_index != FOUNDING.index or has_promised:
        return
    own = NodeId(metadata.member_id)
    known = (*store.members.values(), *members_of(config).values())
    own_urls = {str(url) for url in config.initial_advertise_peer_urls}
    others = sorted({url for member in known if member.id != own for url in member.peer_urls} - own_urls)
    if await has_forgotten(others, own, ClusterId(metadata.cluster_id)):
        state = "holds nothing of it (was the snapshot restored a second time?)"
        raise BootstrapError(refusals.forgotten(own, config.name, directory.root, state))


async def _complete_store(
    config: ServerConfig, directory: DataDirectory, store: Store, metadata: Metadata, recovered: Recovered, log: Logger
) -> None:
    """Bring the store to where the WAL says it was: begin it again, or finish an install."""
    marker = recovered.marker
    if marker is not None and marker.index > store.applied_index and (not store.is_empty or _find_received(directory, marker) is not None):
        await _finish_install(directory, store, marker, log)
    elif store.is_empty:
        _bootstrap_again(config, directory, store, metadata, recovered)
    elif recovered.first_index > store.applied_index + 1:
        raise BootstrapError(refusals.gap(directory.wal, recovered.first_index, directory.store, store.applied_index))


def _bootstrap_again(config: ServerConfig, directory: DataDirectory, store: Store, metadata: Metadata, recovered: Recovered) -> None:
    """There is a WAL and no store: if the WAL reaches back to the first entry, everything is applied again; otherwise nothing can bring
    it back."""
    if recovered.first_index != FOUNDING.index + 1 or recovered.marker != FOUNDING:
        raise BootstrapError(refusals.store_missing(directory.store, directory.wal, recovered.first_index))
    members = members_of(config)
    identity = cluster_id(members)
    if identity != metadata.cluster_id:
        raise BootstrapError(
            f"the store {directory.store} is missing, and the flags mean another cluster ({identity:x}) than the WAL "
            f"({metadata.cluster_id:x}): start with the flags that the cluster was founded with, so that the store can be built again from "
            f"the WAL; if the cluster began with a restored snapshot, that is lost on this member: {WAY_OUT}"
        )
    own = next((member for member in members.values() if member.name == config.name), None)
    if own is None or own.id != metadata.member_id:
        raise BootstrapError(
            f"the store {directory.store} is missing, and the WAL {directory.wal} is another member's, {metadata.member_id:x}, not "
            f"{config.name}'s: check --name, --data-dir and --wal-dir"
        )
    _give_founding_state(config, store, identity, members)


def _find_received(directory: DataDirectory, marker: Marker) -> Path | None:
    """The received snapshot of this position, if it is there."""
    return next(
        (
            found.path
            for found in list_received(directory.snap, files=directory.files)
            if (found.index, found.term) == (marker.index, marker.term)
        ),
        None,
    )


async def _finish_install(directory: DataDirectory, store: Store, marker: Marker, log: Logger) -> None:
    """A crash came between the WAL's marker and the swap of the store: swap it now. The store is not touched before the file is checked."""
    received = _find_received(directory, marker)
    if received is None:
        raise BootstrapError(refusals.snapshot_missing(marker, directory.store, store.applied_index, directory.snap))
    try:
        found = await inspect_received(received, log)
    except StoreUnreadableError as error:
        place = error.place if isinstance(error, StoreDamagedError) else error
        raise BootstrapError(
            f"the WAL says that a snapshot at index {marker.index} was installed, but the received file is damaged: {place}. "
            f"Put an intact copy back; if there is none, {WAY_OUT}"
        ) from error
    if (found.index, found.term) != (marker.index, marker.term):
        raise BootstrapError(
            f"the received snapshot {received} holds a store at index {found.index} (term {found.term}), but the WAL says index "
            f"{marker.index} (term {marker.term}): put the right file back; if there is none, {WAY_OUT}"
        )
    await store.install(received, found)
    log.info("applied snapshot", index=marker.index, resumed=True)


def _check_same_cluster(config: ServerConfig, root: Path, store: Store, metadata: Metadata) -> None:
    """Refuse a directory that visibly belongs to another cluster than the flags mean (docs/adr/0003), or to nobody any more."""
    if metadata.member_id in store.removed_ids:
        raise BootstrapError(refusals.removed(root, metadata.member_id))
    if store.cluster_id not in (0, metadata.cluster_id):
        raise BootstrapError(refusals.other_cluster(root, store.cluster_id, metadata.cluster_id))
    token = store.membership.cluster_token
    if token and config.initial_cluster_token not in (DEFAULT_CLUSTER_TOKEN, token):
        raise BootstrapError(
            f"data directory {root} belongs to another cluster: it was founded with --initial-cluster-token={token}, "
            f"the flag says {config.initial_cluster_token}: correct the flag, or choose another --data-dir"
        )
    stored_urls = {url: member for member in store.members.values() for url in member.peer_urls}
    flagged_urls = {url for member in members_of(config).values() for url in member.peer_urls}
    if len(config.initial_cluster) > 1 and stored_urls and not stored_urls.keys() & flagged_urls:
        raise BootstrapError(
            f"data directory {root} belongs to another cluster: its members are at {', '.join(sorted(stored_urls))}, "
            f"--initial-cluster names {', '.join(sorted(flagged_urls))}: correct the flag, or choose another --data-dir"
        )
    own_urls = {str(url) for url in config.initial_advertise_peer_urls}
    others = [stored_urls[url] for url in own_urls if url in stored_urls and stored_urls[url].id != metadata.member_id]
    if others:
        raise BootstrapError(
            f"data directory {root} belongs to another member, {metadata.member_id:x}: {', '.join(sorted(own_urls))} is the address of "
            f"{others[0].name or f'{others[0].id:x}'}: correct --initial-advertise-peer-urls, or choose another --data-dir"
        )


def members_of(config: ServerConfig) -> Mapping[NodeId, Member]:
    """The members that the flags name."""
    initial = {member.name: [str(url) for url in member.peer_urls] for member in config.initial_cluster}
    return initial_members(initial, config.initial_cluster_token)
