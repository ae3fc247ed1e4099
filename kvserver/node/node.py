"""One member of the cluster: raft, WAL, store and peers, put together and running.

Purpose: starts and stops the parts in the right order, and is what `api` and `metrics` ask (through small Protocols of their own).

Rules
- Start: lock, store, WAL, core, peers, clock; then the member publishes its name and client URLs, which proves that it takes part in a
  quorum.
- Stop: hand leadership over (at most `HANDOVER_S`), refuse what waits, close the peers, let the write under way finish, commit the store.
- A fatal error (a failed fsync, an apply that could not have failed) is reported once through `wait_failed`; nothing is acknowledged
  afterwards.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from random import Random
from typing import Final

from kvserver.apply import Membership, Store
from kvserver.commands import CommandKind
from kvserver.config import ServerConfig
from kvserver.errors import FatalError, KvError, RequestError
from kvserver.logs import Logger, RaftLogSink
from kvserver.metrics import Metrics
from kvserver.node import bootstrap
from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.compaction import Decision, WindowLimits
from kvserver.node.directory import DataDirectory, open_data_directory
from kvserver.node.driver import Driver, DriverHooks
from kvserver.node.entries import EntryApplier
from kvserver.node.forwarding import answer, ask_promote
from kvserver.node.peer_handler import NodePeerHandler
from kvserver.node.peers import PeerBook
from kvserver.node.proposals import Proposals
from kvserver.node.reads import Reads
from kvserver.node.reconfiguration import Reconfiguration, ReconfigurationRules
from kvserver.node.releaser import WalReleaser
from kvserver.node.transfers import Installer
from kvserver.node.worker import Worker
from kvserver.pb import internal_pb2
from kvserver.peer import Identity, SnapshotParts, Transport, TransportOptions
from kvserver.snapshot import SnapshotCopies
from kvserver.storage import EngineConfig, EngineHooks
from kvserver.types import ClusterId, NodeId, Revision
from kvserver.version import __version__
from raft.config import Config
from raft.errors import RaftError
from raft.messages import Message
from raft.raw_node import RawNode
from raft.types import NO_NODE, SnapshotMetadata, Term


class PeerListenError(KvError):
    """A peer address can't be listened on; the text says which and why."""


class RemovedError(FatalError):
    """This member is no member any more."""

    def __init__(self, member: NodeId) -> None:
        super().__init__(
            f"this member ({member:x}) has been removed from the cluster: it stops, and its data directory is of no use any more; "
            "to bring it back, remove the directory and add it as a new member"
        )


HANDOVER_S: Final = 0.5
PUBLISH_RETRY_S: Final = 0.5
MAX_SIZE_PER_MSG_BYTES: Final = 1 << 20
MAX_COMMITTED_SIZE_BYTES: Final = 4 << 20
MAX_UNCOMMITTED_BYTES: Final = 64 << 20
MAX_INFLIGHT_MSGS: Final = 256
MAX_WAITING_READS: Final = 100_000


class Node:
    """A running member. Make one with `Node.start`."""

    def __init__(
        self,
        config: ServerConfig,
        directory: DataDirectory,
        store: Store,
        hooks: EngineHooks,
        origin: bootstrap.Origin,
        *,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self.config = config
        self.store = store
        self.cluster_id: ClusterId = origin.cluster_id
        self.member_id: NodeId = origin.member_id
        self.window = origin.window
        self.wal = origin.wal
        self.metrics = metrics
        self.book = PeerBook()
        self._directory = directory
        self._log = log.bind(member_id=f"{origin.member_id:x}")
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[Exception] = self._loop.create_future()
        self._leader_changed = asyncio.Event()
        self._worker = Worker("wal")
        self._snapshot_executor = ThreadPoolExecutor(1, "snapshot")
        self._random = Random(secrets.randbits(64))
        self._incarnation = secrets.randbits(63)
        self._limits = WindowLimits(
            max_entries=config.log_window.max_entries,
            max_bytes=config.log_window.max_bytes,
            grace_s=config.log_window.peer_grace_s,
        )
        self._handler = NodePeerHandler(
            cluster_id=self.cluster_id,
            members=lambda: store.members,
            removed=lambda: store.removed_ids,
            on_removed=lambda: self._fail(RemovedError(self.member_id)),
            book=self.book,
            metrics=metrics,
            log=self._log,
        )
        self.transport = self._make_transport()
        self.driver = self._make_driver(origin)
        self._handler.driver = self.driver
        self.proposals = Proposals(
            member_id=self.member_id,
            incarnation=self._incarnation,
            sink=self.driver,
            max_count=config.max_inflight_requests,
            max_bytes=config.max_inflight_bytes,
            on_failed=metrics.proposals_failed.add,
        )
        self.reconfiguration = self._make_reconfiguration()
        self._handler.answer = self._answer_peer
        self.reads = Reads(sink=self.driver, incarnation=self._incarnation, max_waiting=MAX_WAITING_READS)
        self._entries = EntryApplier(
            store=store,
            raw=self.driver.raw,
            resolve=self.proposals.resolve,
            note_applied=self.driver.note_applied,
            on_membership=self._note_membership,
        )
        self._apply_queue = ApplyQueue(
            store=store, apply_entry=self._entries.apply, on_applied=self.driver.storage_responded, on_fatal=self._fail
        )
        installer = Installer(
            directory=directory.snap,
            wal=self.wal,
            worker=self._worker,
            store=store,
            window=self.window,
            apply_queue=self._apply_queue,
            on_installed=self._note_installed,
            metrics=metrics,
            log=self._log,
        )
        self._append_queue = AppendQueue(
            wal=self.wal,
            window=self.window,
            worker=self._worker,
            hard_state=origin.hard_state,
            install=installer.install,
            on_saved=self.driver.storage_responded,
            on_fatal=self._fail,
        )
        self.releaser = WalReleaser(
            wal=self.wal,
            worker=self._worker,
            limits=lambda: (self.window.first_index(), store.durable_index, self._append_queue.saved_commit),
            on_fatal=self._fail,
        )
        hooks.on_durable = self._note_durable
        hooks.on_fatal = self._fail
        store.on_compacted(self._note_compaction_finished)
        self.wal.on_sync = metrics.wal_fsync_seconds.observe

    @classmethod
    async def start(cls, config: ServerConfig, *, metrics: Metrics, log: Logger) -> Node:
        """Start the member and return once its parts run (not yet: once it has a leader; see `wait_published`).

        Raises:
            KvError: the directory, the store, the WAL or the peer address can't be used; the text says why.
        """
        directory = open_data_directory(config.data_dir, config.wal_dir)
        store: Store | None = None
        node: Node | None = None
        try:
            limits = WindowLimits(
                max_entries=config.log_window.max_entries, max_bytes=config.log_window.max_bytes, grace_s=config.log_window.peer_grace_s
            )
            hooks = EngineHooks(on_commit_seconds=metrics.backend_commit_seconds.observe)
            engine_config = EngineConfig(
                quota_bytes=config.quota_backend_bytes,
                interval_s=config.backend_batch_interval_ms / 1000,
                commit_count=config.backend_batch_limit,
            )
            store = Store.open(
                directory.store, config=engine_config, hooks=hooks, on_corrupt=lambda text: log.error("the store is corrupt", what=text)
            )
            origin = await bootstrap.begin(config, directory, store, limits, log)
            node = cls(config, directory, store, hooks, origin, metrics=metrics, log=log)
            await node._run()
        except BaseException:
            if node is not None:
                await node.stop()
            elif store is not None:
                await store.close(commit=False)
            directory.close()
            raise
        return node

    async def _run(self) -> None:
        try:
            await self.transport.start([str(url) for url in self.config.listen_peer_urls])
        except OSError as error:
            raise PeerListenError(f"listen for peers on {', '.join(map(str, self.config.listen_peer_urls))}: {error}") from error
        self._follow_members()
        self.driver.start(self._append_queue, self._apply_queue)
        if set(self.store.conf_state.voters) == {self.member_id}:
            self.driver.campaign()  # nobody else could win: don't wait for the election timeout

    async def wait_published(self) -> None:
        """Return when the cluster has accepted this member's name and client URLs."""
        request = internal_pb2.MemberAttributes(
            member_id=self.member_id, name=self.config.name, client_urls=[str(url) for url in self.config.advertise_client_urls]
        )
        while True:
            try:
                deadline_s = self._loop.time() + self.config.request_timeout_s
                await self.proposals.propose(CommandKind.MEMBER_PUBLISH, request, deadline_s=deadline_s)
            except RequestError as error:
                self._log.warning("failed to publish local member; will retry", reason=str(error))
                await asyncio.sleep(PUBLISH_RETRY_S)
            else:
                self._log.info("published local member to cluster", name=self.config.name)
                return

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    async def wait_failed(self) -> Exception:
        """Return the error that stopped this member, when one does."""
        return await asyncio.shield(self._failed)

    async def retire(self) -> None:
        """The first part of an orderly stop: hand leadership over, then answer whoever waits with `server stopped`."""
        if not self._failed.done():
            await self._hand_over()
        self.proposals.stop()
        self.reads.stop()

    async def stop(self) -> None:
        """Stop what runs and close what is open; safe after a failure, too."""
        self.driver.stop()
        self.proposals.stop()
        self.reads.stop()
        self._apply_queue.stop()
        async with AsyncExitStack() as last_first:  # each step runs, whatever the others raise
            last_first.callback(self._directory.close)
            last_first.callback(self._snapshot_executor.shutdown)
            last_first.push_async_callback(self._worker.stop)
            last_first.push_async_callback(self._close_wal)
            last_first.push_async_callback(self.store.close)
            last_first.push_async_callback(self.releaser.wait_idle)
            last_first.push_async_callback(self._append_queue.wait_idle)
            last_first.push_async_callback(self.transport.stop)

    async def _close_wal(self) -> None:
        await self._worker.run(self.wal.close)

    # --- parts ---------------------------------------------------------------------------------------------------------------------------

    def _make_transport(self) -> Transport:
        copies = SnapshotCopies(self._directory.snap, self.store.copy_to, self._snapshot_executor)
        identity = Identity(cluster_id=self.cluster_id, member_id=self.member_id, server_version=__version__, incarnation=self._incarnation)
        return Transport(
            identity,
            self._handler,
            snapshots=SnapshotParts(directory=self._directory.snap, copies=copies, executor=self._snapshot_executor),
            logger=self._log,
            random=self._random,
            options=TransportOptions(max_frame_size_bytes=max(16 << 20, 4 * self.config.max_request_bytes)),
        )

    def _make_reconfiguration(self) -> Reconfiguration:
        config = self.config
        return Reconfiguration(
            self_id=self.member_id,
            cluster_token=lambda: self.store.membership.cluster_token,
            members=lambda: self.store.members,
            connected_s=self._connected_s,
            proposals=self.proposals,
            leadership=self.driver,
            ask_leader_to_promote=lambda leader, target, deadline_s: ask_promote(self.transport.request, leader, target, deadline_s),
            rules=ReconfigurationRules(
                strict=config.strict_reconfig_check, max_learners=config.max_learners, election_timeout_s=config.election_timeout_s
            ),
        )

    async def _answer_peer(self, kind: int, payload: bytes) -> bytes:
        return await answer(kind, payload, promote=self.reconfiguration.promote_here, timeout_s=self.config.request_timeout_s)

    def _connected_s(self, peer: NodeId) -> float | None:
        since_s = self.transport.stats(peer).connected_since_s if peer in self.transport.peers else None
        return None if since_s is None else self._loop.time() - since_s

    def _make_driver(self, origin: bootstrap.Origin) -> Driver:
        config = self.config
        raw = RawNode(
            Config(
                id=self.member_id,
                election_ticks=config.election_timeout_ticks,
                heartbeat_ticks=1,
                storage=origin.window,
                random=self._random,
                log_sink=RaftLogSink(self._log),
                applied=self.store.applied_index,
                async_storage_writes=True,
                max_size_per_msg_bytes=MAX_SIZE_PER_MSG_BYTES,
                max_committed_size_per_ready_bytes=MAX_COMMITTED_SIZE_BYTES,
                max_uncommitted_size_bytes=MAX_UNCOMMITTED_BYTES,
                max_inflight_msgs=MAX_INFLIGHT_MSGS,
                max_inflight_bytes=max(MAX_SIZE_PER_MSG_BYTES, config.log_window.max_bytes // 4),
                check_quorum=True,
                step_down_on_removal=True,
                pre_vote=config.pre_vote,
            )
        )
        hooks = DriverHooks(
            on_leader=self._note_leader,
            on_read_state=lambda context, index: self.reads.resolve(context, index),  # noqa: PLW0108 - made after the driver
            on_snapshot_wanted=self.transport.send_snapshot,
            on_new_term_applied=lambda term: self.proposals.fail_older_than(term),  # noqa: PLW0108 - made after the driver
            on_compacted=self._note_compacted,
            on_invalid=self._note_invalid,
            on_fatal=self._fail,
        )
        return Driver(
            raw=raw,
            window=origin.window,
            peers=self.book,
            outbox=self.transport,
            durability=self.store,
            limits=self._limits,
            tick_s=config.heartbeat_interval_ms / 1000,
            hooks=hooks,
        )

    # --- events --------------------------------------------------------------------------------------------------------------------------

    def _note_leader(self, leader: NodeId, previous: NodeId, term: Term) -> None:
        self._leader_changed.set()
        if previous == self.member_id:
            for peer in self.transport.peers:
                self.transport.cancel_snapshot(peer)
        if leader != NO_NODE and leader != previous:
            self.metrics.leader_changes.add()
            self._log.info("raft leader changed", leader=f"{leader:x}", term=term)
            self.reads.note_leader()

    def _note_invalid(self, message: Message, error: RaftError) -> None:
        """A member says what can't be: it has lost or made up entries, or this one has. Raft ignored it; an operator should look."""
        self._log.warning("refused a raft message", sender=f"{message.from_:x}", type=message.type.name, reason=str(error))

    def _note_compaction_finished(self, revision: Revision) -> None:
        self._log.info("finished scheduled compaction", compact_revision=revision)

    def _note_compacted(self, decision: Decision, dropped: int, took_s: float) -> None:
        self.metrics.log_window_compactions[decision.reason.value] += 1
        self.metrics.log_window_compaction_seconds.observe(took_s)
        self.metrics.log_window_pins_expired.value = self.book.pins_expired
        self.releaser.consider()

    def _note_membership(self, membership: Membership) -> None:
        self._follow_members()
        if self.member_id in membership.removed_ids:
            # Not at once: the others still have to hear that the entry is committed.
            self._loop.call_later(self.config.election_timeout_s, self._fail, RemovedError(self.member_id))

    def _note_durable(self, _: int) -> None:
        self.driver.wake()
        self.releaser.consider()

    def _note_installed(self, metadata: SnapshotMetadata) -> None:
        self.driver.note_applied(metadata.index, metadata.term)
        self.proposals.fail_older_than(Term(self.driver.term + 1))
        self._follow_members()
        self.releaser.consider()

    def _follow_members(self) -> None:
        """Dial exactly the members that the store knows."""
        members = self.store.members
        for peer in self.transport.peers:
            if peer not in members:
                self.transport.remove_peer(peer)
                self.book.forget(peer)
        for member in members.values():
            if member.id != self.member_id:
                self.transport.add_peer(member.id, member.peer_urls)

    def _fail(self, error: Exception) -> None:
        if self._failed.done():
            return
        self._failed.set_result(error)
        self.driver.stop()
        self.proposals.stop()
        self.reads.stop()
        fatal = error if isinstance(error, FatalError) else None
        self._log.error("the member can't go on", error=error if fatal is None else None, reason=str(error))

    async def _hand_over(self) -> None:
        """Give leadership to the voter that is furthest ahead and was heard from lately."""
        if not self.driver.is_leader:
            return
        since_s = self._loop.time() - self.config.election_timeout_s
        present = set(self.book.contacts_since(since_s))
        candidates = [
            (progress.match_index, peer)
            for peer, progress, is_learner in self.driver.raw.progress()
            if peer in present and not is_learner and peer in self.transport.peers and self.transport.stats(peer).is_connected
        ]
        if not candidates:
            return
        _, to = max(candidates)
        self._log.info("leadership transfer starting", to=f"{to:x}")
        self._leader_changed.clear()
        self.driver.transfer_leader(to)
        try:
            async with asyncio.timeout(HANDOVER_S):
                while self.driver.leader_id in (self.member_id, NO_NODE):
                    self._leader_changed.clear()
                    await self._leader_changed.wait()
            self._log.info("leadership transfer finished", to=f"{self.driver.leader_id:x}")
        except TimeoutError:
            self._log.warning("leadership transfer timed out", to=f"{to:x}")
