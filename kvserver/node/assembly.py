"""Putting a member's parts together: which part knows which, and with what limits.

Purpose: the wiring, once. `assemble` makes every part of the room and hands them back as `Parts`; `node` starts, watches and stops them.

Rules
- Nothing runs here: threads are made, no task is begun and no file is touched.
- Parts know each other through the callables and Protocols that they ask for; what concerns the member as a whole goes to `Events`.
- The core's limits stand here, with what they bound.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from kvserver.apply import ANSWER_FORMS, Alarms, Membership, Store
from kvserver.commands import KINDS_VERSION
from kvserver.config import ServerConfig
from kvserver.logs import Logger, RaftLogSink
from kvserver.metrics import Metrics
from kvserver.mvcc import Allowance
from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.backups import Backups
from kvserver.node.bootstrap import Origin
from kvserver.node.compaction import Decision, WindowLimits
from kvserver.node.directory import DataDirectory
from kvserver.node.driver import Driver, DriverHooks
from kvserver.node.entries import EntryApplier
from kvserver.node.forward_notices import ForwardNotices
from kvserver.node.forward_window import ForwardWindow
from kvserver.node.forwarded import Forwarded
from kvserver.node.forwarding import ask_promote
from kvserver.node.handover import HandOver
from kvserver.node.history import History, make_history, make_retention
from kvserver.node.inflow import Inflow
from kvserver.node.log_storage import LogStorage
from kvserver.node.log_window import LogWindow
from kvserver.node.peer_handler import NodePeerHandler
from kvserver.node.peers import PeerBook
from kvserver.node.proposals import Proposals
from kvserver.node.reads import Reads
from kvserver.node.reconfiguration import Reconfiguration, ReconfigurationRules
from kvserver.node.releaser import WalReleaser
from kvserver.node.space import Disks
from kvserver.node.space_watch import SpaceParts, SpaceWatch
from kvserver.node.transfers import Installer
from kvserver.node.worker import Worker
from kvserver.peer import MAX_REQUESTS, Identity, OutboxLimits, SnapshotParts, Transport, TransportOptions
from kvserver.snapshot import SnapshotCopies
from kvserver.storage import EngineConfig
from kvserver.types import NodeId
from kvserver.version import __version__
from kvserver.watch import WatchLimits
from raft.config import Config
from raft.errors import RaftError
from raft.messages import Message
from raft.raw_node import RawNode
from raft.storage import Storage
from raft.types import SnapshotMetadata, Term
from wal import WalNoSpaceError

MAX_SIZE_PER_MSG_BYTES: Final = 1 << 20
MAX_COMMITTED_SIZE_BYTES: Final = 4 << 20
COMMIT_BYTES: Final = 4 << 20
MAX_INFLIGHT_MSGS: Final = 256
PROBES_WAITING: Final = 256
"""Reads that wait and are nobody's call: those of health checks."""
LEASES_WAITING: Final = 3
"""As well, for leases: what is due, a batch of renewals, and one of those that take longer."""
PROPOSALS_PER_REQUEST_BYTES: Final = 2
"""Clients' requests wait for room before they come here (rpc.intake), so this bound is for what doesn't come that way; an entry is a little
larger than its request."""

Log = LogWindow | LogStorage
"""What raft reads, and durable entries go to: memory alone, or memory and the WAL below it."""


class Events(Protocol):
    """What the parts tell the member. Called on the loop; must not block."""

    def note_leader(self, leader: NodeId, previous: NodeId, term: Term) -> None:
        """Another member leads, or none."""

    def note_invalid(self, message: Message, error: RaftError) -> None:
        """A message said what can't be; raft ignored it."""

    def note_compacted(self, decision: Decision, dropped: int, took_s: float) -> None:
        """The log window dropped entries."""

    def note_membership(self, membership: Membership) -> None:
        """A change of the members was applied."""

    def note_alarms(self, alarms: Alarms) -> None:
        """An alarm was raised or disarmed."""

    def note_installed(self, metadata: SnapshotMetadata) -> None:
        """A snapshot is in force."""

    def note_append_held(self, error: WalNoSpaceError | None) -> None:
        """The WAL has no space for what it is to save, or (None) has saved it."""

    def note_removed(self) -> None:
        """A peer says that this member was removed."""

    def fail(self, error: Exception) -> None:
        """This member can't go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the parts stand on: the configuration, and what was opened."""

    config: ServerConfig
    directory: DataDirectory
    store: Store
    origin: Origin
    metrics: Metrics
    log: Logger


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running member."""

    book: PeerBook
    handler: NodePeerHandler
    inflow: Inflow
    forwarded: Forwarded
    notices: ForwardNotices
    transport: Transport
    driver: Driver
    proposals: Proposals
    reads: Reads
    reconfiguration: Reconfiguration
    append_queue: AppendQueue
    apply_queue: ApplyQueue
    releaser: WalReleaser
    worker: Worker
    copy_executor: ThreadPoolExecutor
    chunk_executor: ThreadPoolExecutor
    history: History | None
    backups: Backups


def window_limits(config: ServerConfig) -> WindowLimits:
    """The bounds of the in-memory log."""
    flags = config.log_window
    return WindowLimits(max_entries=flags.max_entries, max_bytes=flags.max_bytes, grace_s=flags.peer_grace_s)


def max_inflight_bytes(config: ServerConfig) -> int:
    """What raft may have under way to one peer: a quarter of the window, and half of the queue, which then has room for the rest."""
    return max(MAX_SIZE_PER_MSG_BYTES, min(config.log_window.max_bytes // 4, config.peer_queue_bytes // 2))


def forwarded_bytes(config: ServerConfig) -> int:
    """What may wait on a leader of what others forward: as much as its uncommitted tail, but a largest request of each of some members."""
    return max(config.max_uncommitted_bytes, 4 * config.max_request_bytes)


def forward_share_bytes(config: ServerConfig, members: int) -> int:
    """How much of that one member takes: it has at most so much with the leader, and no more than what fits into its queue to it."""
    return min(forwarded_bytes(config) // max(1, members - 1), config.peer_queue_bytes // 2)


def engine_config(config: ServerConfig) -> EngineConfig:
    """When the store commits, and how much may wait."""
    return EngineConfig(
        quota_bytes=config.quota_backend_bytes,
        interval_s=config.backend_batch_interval_ms / 1000,
        commit_count=config.backend_batch_limit,
        commit_bytes=min(COMMIT_BYTES, config.backend_buffer_bytes // 2),
        max_buffer_bytes=config.backend_buffer_bytes,
        verify_on_open=config.initial_corrupt_check,
    )


def watch_limits(config: ServerConfig) -> WatchLimits:
    """What watching may hold."""
    return WatchLimits(
        stream_bytes=config.watch_stream_bytes,
        total_bytes=config.watch_buffer_bytes,
        max_watchers=config.max_watchers,
        fragment_bytes=config.receive_limit_bytes,
    )


def assemble(ground: Ground, events: Events, *, now_s: Callable[[], float]) -> Parts:
    """Make the parts. Call on the running loop."""
    origin, store, config, metrics = ground.origin, ground.store, ground.config, ground.metrics
    random = Random(secrets.randbits(64))
    incarnation = secrets.randbits(63)
    worker = Worker("wal")
    # Two: while a copy is taken, which takes minutes of a large store, chunks of others are sent and received.
    copying, chunks = ThreadPoolExecutor(1, "snapshot-copy"), ThreadPoolExecutor(1, "snapshot-chunks")
    book = PeerBook()
    handler = _make_handler(ground, events, book)
    copies = SnapshotCopies(ground.directory.snap, store.copy_to, copying, io=chunks, files=ground.directory.files)
    transport = _make_transport(ground, handler, copies, chunks, random, incarnation)
    hooks = DriverHooks(
        on_leader=events.note_leader,
        on_read_state=lambda context, index: reads.resolve(context, index),  # noqa: PLW0108 - made after the driver
        on_snapshot_wanted=transport.send_snapshot,
        on_new_term_applied=lambda term: proposals.fail_older_than(term),  # noqa: PLW0108 - made after the driver
        on_compacted=events.note_compacted,
        on_invalid=events.note_invalid,
        on_fatal=events.fail,
    )
    history = None
    if config.wal_retain_bytes:
        history = make_history(config, origin, files=ground.directory.files, metrics=metrics, log=ground.log, on_fatal=events.fail)
    storage: Log = origin.window if history is None else history.storage
    core = _make_core(ground, random, storage)
    notices = _make_notices(ground, transport)
    forwarded = _make_forwarded(ground, core, notices, events)
    window = ForwardWindow(lambda: forward_share_bytes(config, len(store.members)))
    driver = handler.driver = _make_driver(ground, hooks, book, transport, core, storage, forwarded, window)
    if history is not None:
        history.on_ready = driver.retry_appends
    proposals = notices.proposals = _make_proposals(ground, driver, incarnation, window)
    inflow = handler.inflow = _make_inflow(ground, driver)
    forwarded.is_blocked = lambda: inflow.is_full
    reads = Reads(sink=driver, incarnation=incarnation, max_waiting=lambda: max_waiting_reads(config, len(store.members)))
    apply_queue = _make_apply_queue(ground, events, driver, proposals, inflow)
    append_queue = _make_append_queue(ground, events, driver, worker, apply_queue, storage)
    return Parts(
        book=book,
        handler=handler,
        inflow=inflow,
        forwarded=forwarded,
        notices=notices,
        transport=transport,
        driver=driver,
        proposals=proposals,
        reads=reads,
        reconfiguration=_make_reconfiguration(ground, proposals, driver, transport, now_s),
        append_queue=append_queue,
        apply_queue=apply_queue,
        releaser=WalReleaser(
            wal=origin.wal,
            worker=worker,
            limits=lambda: (origin.window.first_index(), store.durable_index, append_queue.saved_commit),
            on_fatal=events.fail,
            retention=None
            if history is None
            else make_retention(ground.directory, config, history, driver, snapshot_bytes=lambda: store.size_in_use_bytes),
        ),
        worker=worker,
        copy_executor=copying,
        chunk_executor=chunks,
        history=history,
        backups=Backups(
            store=store,
            copies=copies,
            executor=chunks,
            directory=ground.directory.snap,
            files=ground.directory.files,
            log=ground.log,
        ),
    )


def max_waiting_reads(config: ServerConfig, members: int) -> int:
    """How many reads may be open: one for whatever may ask for one, so that nobody takes another's place."""
    own = config.max_concurrent_requests + PROBES_WAITING + LEASES_WAITING
    return own + max(0, members - 1) * MAX_REQUESTS


def _make_proposals(ground: Ground, driver: Driver, incarnation: int, window: ForwardWindow) -> Proposals:
    return Proposals(
        member_id=ground.origin.member_id,
        incarnation=incarnation,
        sink=driver,
        max_count=ground.config.max_inflight_requests,
        max_bytes=PROPOSALS_PER_REQUEST_BYTES * ground.config.max_inflight_bytes,
        on_failed=ground.metrics.proposals_failed.add,
        window=window,
    )


def _make_notices(ground: Ground, transport: Transport) -> ForwardNotices:
    return ForwardNotices(
        member_id=ground.origin.member_id,
        ask=transport.request,
        on_refused=ground.metrics.forwarded_refused.add,
        on_handed_back=ground.metrics.forwarded_handed_back.add,
        log=ground.log,
    )


def _make_forwarded(ground: Ground, core: RawNode, notices: ForwardNotices, events: Events) -> Forwarded:
    return Forwarded(
        core,
        max_bytes=forwarded_bytes(ground.config),
        max_wait_ticks=math.ceil(ground.config.request_timeout_s * 1000 / ground.config.heartbeat_interval_ms),
        senders=notices,
        on_held=ground.metrics.forwarded_held.add,
        on_invalid=events.note_invalid,
    )


def _make_inflow(ground: Ground, driver: Driver) -> Inflow:
    return Inflow(
        driver,
        limit_bytes=ground.config.max_uncommitted_bytes,
        max_held_bytes=max_inflight_bytes(ground.config),
        on_held=ground.metrics.appends_held.add,
        on_dropped=ground.metrics.appends_dropped.add,
    )


def _make_handler(ground: Ground, events: Events, book: PeerBook) -> NodePeerHandler:
    store = ground.store
    return NodePeerHandler(
        cluster_id=ground.origin.cluster_id,
        members=lambda: store.members,
        removed=lambda: store.removed_ids,
        on_removed=events.note_removed,
        book=book,
        metrics=ground.metrics,
        log=ground.log,
    )


def _make_transport(
    ground: Ground, handler: NodePeerHandler, copies: SnapshotCopies, chunks: ThreadPoolExecutor, random: Random, incarnation: int
) -> Transport:
    origin, snap = ground.origin, ground.directory.snap
    files = ground.directory.files
    return Transport(
        Identity(
            cluster_id=origin.cluster_id,
            member_id=origin.member_id,
            max_command_version=KINDS_VERSION,
            server_version=__version__,
            incarnation=incarnation,
        ),
        handler,
        snapshots=SnapshotParts(directory=snap, copies=copies, executor=chunks, files=files),
        logger=ground.log,
        random=random,
        options=TransportOptions(
            outbox=OutboxLimits(bulk_size_bytes=ground.config.peer_queue_bytes),
            max_frame_size_bytes=ground.config.peer_frame_bytes,
            max_accepted_connections=ground.config.max_peer_connections,
        ),
    )


def _make_core(ground: Ground, random: Random, storage: Storage) -> RawNode:
    config = ground.config
    return RawNode(
        Config(
            id=ground.origin.member_id,
            election_ticks=config.election_timeout_ticks,
            heartbeat_ticks=1,
            storage=storage,
            random=random,
            log_sink=RaftLogSink(ground.log),
            applied=ground.store.applied_index,
            async_storage_writes=True,
            max_size_per_msg_bytes=MAX_SIZE_PER_MSG_BYTES,
            max_committed_size_per_ready_bytes=MAX_COMMITTED_SIZE_BYTES,
            max_uncommitted_size_bytes=config.max_uncommitted_bytes,
            max_inflight_msgs=MAX_INFLIGHT_MSGS,
            max_inflight_bytes=max_inflight_bytes(config),
            check_quorum=True,
            step_down_on_removal=True,
            pre_vote=config.pre_vote,
        )
    )


def _make_driver(
    ground: Ground,
    hooks: DriverHooks,
    book: PeerBook,
    transport: Transport,
    core: RawNode,
    storage: Log,
    forwarded: Forwarded,
    window: ForwardWindow,
) -> Driver:
    return Driver(
        raw=core,
        window=ground.origin.window,
        peers=book,
        outbox=transport,
        durability=ground.store,
        limits=window_limits(ground.config),
        log_first=(lambda: None) if isinstance(storage, LogWindow) else storage.first_index,
        tick_s=ground.config.heartbeat_interval_ms / 1000,
        hooks=hooks,
        forwarded=forwarded,
        forward_window=window,
    )


def _make_reconfiguration(
    ground: Ground, proposals: Proposals, driver: Driver, transport: Transport, now_s: Callable[[], float]
) -> Reconfiguration:
    config, store = ground.config, ground.store

    def connected_s(peer: NodeId) -> float | None:
        since_s = transport.stats(peer).connected_since_s if peer in transport.peers else None
        return None if since_s is None else now_s() - since_s

    return Reconfiguration(
        self_id=ground.origin.member_id,
        cluster_token=lambda: store.membership.cluster_token,
        members=lambda: store.members,
        connected_s=connected_s,
        proposals=proposals,
        leadership=driver,
        ask_leader_to_promote=lambda leader, target, deadline_s: ask_promote(transport.request, leader, target, deadline_s),
        rules=ReconfigurationRules(
            strict=config.strict_reconfig_check, max_learners=config.max_learners, election_timeout_s=config.election_timeout_s
        ),
    )


def _make_apply_queue(ground: Ground, events: Events, driver: Driver, proposals: Proposals, inflow: Inflow) -> ApplyQueue:
    def applied(responses: list[Message]) -> None:
        driver.storage_responded(responses)
        inflow.release()

    answer_bytes = ground.config.max_answer_bytes // ANSWER_FORMS
    entries = EntryApplier(
        store=ground.store,
        raw=driver.raw,
        resolve=proposals.resolve,
        note_applied=driver.note_applied,
        on_membership=events.note_membership,
        on_alarms=events.note_alarms,
        answer_room=lambda proposal: Allowance(limit_bytes=answer_bytes) if proposals.is_awaited(proposal) else None,
        note_begun=proposals.note_begun,
    )
    return ApplyQueue(store=ground.store, apply_slice=entries.apply_slice, on_applied=applied, on_fatal=events.fail)


def _make_append_queue(
    ground: Ground, events: Events, driver: Driver, worker: Worker, apply_queue: ApplyQueue, storage: Log
) -> AppendQueue:
    origin = ground.origin
    queue = AppendQueue(
        wal=origin.wal,
        window=storage,
        worker=worker,
        hard_state=origin.hard_state,
        install=lambda message, hard_state: installer.install(message, hard_state),  # noqa: PLW0108 - made after the queue
        on_saved=driver.storage_responded,
        on_fatal=events.fail,
        on_held=events.note_append_held,
    )
    installer = Installer(
        directory=ground.directory.snap,
        wal=origin.wal,
        write=queue.run_patiently,
        store=ground.store,
        window=storage,
        apply_queue=apply_queue,
        on_installed=events.note_installed,
        metrics=ground.metrics,
        log=ground.log,
        files=ground.directory.files,
    )
    return queue


def watch_space(ground: Ground, parts: Parts, hand_over: HandOver, *, on_fatal: Callable[[Exception], None]) -> SpaceWatch:
    """Make the care for disk space, and have proposals and the peers' messages ask it."""
    watch = SpaceWatch(
        SpaceParts(
            member_id=ground.origin.member_id,
            wal=ground.origin.wal,
            worker=parts.worker,
            store=ground.store,
            files=ground.directory.files,
            disks=_disks(ground.directory),
            segment_bytes=ground.config.wal_segment_bytes,
            driver=parts.driver,
            proposals=parts.proposals,
            hand_over=hand_over,
            ask=parts.transport.request,
            contact_s=ground.config.election_timeout_s,
            on_fatal=on_fatal,
            log=ground.log,
        )
    )
    parts.releaser.retention.is_short_of_space = lambda: watch.space.is_short
    parts.proposals.check = watch.check
    parts.proposals.check_change = watch.check_change
    parts.handler.admit = parts.forwarded.admit = watch.admit
    return watch


def _disks(directory: DataDirectory) -> Disks:
    """Where store and WAL lie. Nothing but what people are told depends on `is_one`, so a look that fails is answered with no."""
    try:
        is_one = directory.snap.stat().st_dev == directory.wal.stat().st_dev
    except OSError:
        is_one = False
    return Disks(store=directory.snap, wal=directory.wal, is_one=is_one)
