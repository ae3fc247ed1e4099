"""One member of the cluster: raft, WAL, store and peers, put together and running.

Purpose: starts and stops the parts in the right order, and is what `api` and `metrics` ask (through small Protocols of their own).

Rules
- Start: lock, store, WAL, core, peers, clock; then the member publishes its name and client URLs, which proves that it takes part in a
  quorum. Cancelled on the way, what is open is closed again, and nothing of it has happened.
- Stop: hand leadership over (at most `HANDOVER_S`), refuse what waits, close the peers, let the write under way finish, commit the store.
- A fatal error (a failed fsync, an apply that could not have failed) is reported once through `wait_failed`; nothing is acknowledged
  afterwards. Damage that apply meets in the store is fatal, too, but first the cluster is told (`halt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from kvserver.apply import Alarms, ApplyMetDamageError, Membership, Store
from kvserver.commands import KINDS_VERSION, CommandKind
from kvserver.config import ServerConfig
from kvserver.errors import FatalError, KvError, RequestError, StoppedError
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import bootstrap
from kvserver.node.alarms import AlarmLog, AlarmRaiser
from kvserver.node.assembly import Ground, assemble, engine_config, watch_limits, watch_space, window_limits
from kvserver.node.compaction import Decision
from kvserver.node.corruption import CorruptionDesk
from kvserver.node.directory import OS_FILES, DataDirectory, open_data_directory
from kvserver.node.forwarding import ForwardKind, answer_promote
from kvserver.node.halt import Halt, HaltParts
from kvserver.node.handover import HandOver
from kvserver.node.lease_parts import make_leases
from kvserver.node.opening import open_store
from kvserver.node.space_watch import NO
from kvserver.pb import internal_pb2
from kvserver.peer import PeerRequestRefusedError
from kvserver.storage import EngineHooks, StorageNoSpaceError
from kvserver.types import ClusterId, NodeId, Revision
from kvserver.watch import WatchHub
from raft.errors import RaftError
from raft.messages import Message
from raft.types import NO_NODE, Index, SnapshotMetadata, Term
from wal import Files, WalError, WalNoSpaceError


class PeerListenError(KvError):
    """A peer address can't be listened on; the text says which and why."""


class RemovedError(FatalError):
    """This member is no member any more."""

    def __init__(self, member: NodeId) -> None:
        super().__init__(
            f"this member ({member:x}) has been removed from the cluster: it stops, and its data directory is of no use any more; "
            "to bring it back, remove the directory and add it as a new member"
        )


PUBLISH_RETRY_S: Final = 0.5


class Node:
    """A running member. Make one with `Node.start`."""

    def __init__(
        self, config: ServerConfig, directory: DataDirectory, store: Store, origin: bootstrap.Origin, *, metrics: Metrics, log: Logger
    ) -> None:
        self.config = config
        self.store = store
        self.cluster_id: ClusterId = origin.cluster_id
        self.member_id: NodeId = origin.member_id
        self.window = origin.window
        self.wal = origin.wal
        self.metrics = metrics
        self._directory = directory
        self._log = log.bind(member_id=f"{origin.member_id:x}")
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[Exception] = self._loop.create_future()
        ground = Ground(config=config, directory=directory, store=store, origin=origin, metrics=metrics, log=self._log)
        self._parts = parts = assemble(ground, self, now_s=self._loop.time)
        self.book = parts.book
        self.transport = parts.transport
        self.driver = parts.driver
        self.proposals = parts.proposals
        self.reads = parts.reads
        self.reconfiguration = parts.reconfiguration
        self.releaser = parts.releaser
        self.apply_queue = parts.apply_queue
        self.inflow = parts.inflow
        self._beyond_budget_bytes = 0
        self.forwarded = parts.forwarded
        self.holders: dict[str, Callable[[], int]] = {}  # what rooms above hold, by owner (accounting.py)
        self.backups = parts.backups
        self.watch = WatchHub(store, watch_limits(config))
        store.on_revision(self.watch.note_revision)
        self.alarms = AlarmRaiser(
            member_id=self.member_id,
            proposals=parts.proposals,
            is_raised=lambda alarm: self.halt.knows(alarm),  # noqa: PLW0108 - made below
            attempt_timeout_s=config.request_timeout_s,
            log=self._log,
        )
        self._alarm_log = AlarmLog(store.alarms, self._log)
        self._hand_over = HandOver(member_id=self.member_id, driver=parts.driver, book=parts.book, transport=parts.transport, log=self._log)
        self.space = watch_space(ground, parts, self._hand_over, on_fatal=self.fail)
        self.leases = make_leases(ground, parts)
        self.halt = self._make_halt()
        parts.handler.answer = self._answer_peer
        store.on_compacted(self._note_compaction_finished)
        self.wal.on_sync = metrics.wal_fsync_seconds.observe

    def _make_halt(self) -> Halt:
        parts = self._parts
        return Halt(
            HaltParts(
                member_id=self.member_id,
                store=self.store,
                committed=parts.driver.raw,
                alarms=self.alarms,
                reads=parts.reads,
                proposals=parts.proposals,
                releaser=parts.releaser,
                inflow=parts.inflow,
                hand_over=self._hand_over,
                limit_s=self.config.request_timeout_s,
                contact_s=self.config.election_timeout_s,
                on_end=self._end,
                log=self._log,
            )
        )

    @classmethod
    async def start(cls, config: ServerConfig, *, metrics: Metrics, log: Logger, files: Files = OS_FILES) -> Node:
        """Start the member and return once its parts run (not yet: once it has a leader; see `wait_published`).

        Args:
            files: the file system under the WAL and the snapshot files; the tests' fails and loses things.

        Raises:
            KvError: the directory, the store, the WAL or the peer address can't be used; the text says why.
        """
        directory = open_data_directory(config.data_dir, config.wal_dir, files=files)
        store: Store | None = None
        node: Node | None = None
        try:
            corruption = CorruptionDesk(log)
            at_start: list[StorageNoSpaceError | None] = []  # what the store says of its disk before there is anybody to act on it
            hooks = EngineHooks(
                on_commit_seconds=metrics.backend_commit_seconds.observe,
                on_no_space=at_start.append,
            )
            store = await open_store(
                directory.store, config=engine_config(config), hooks=hooks, on_corrupt=corruption.report, files=files, log=log
            )
            origin = await bootstrap.begin(config, directory, store, window_limits(config), log)
            node = cls(config, directory, store, origin, metrics=metrics, log=log)
            hooks.on_durable = node.note_durable
            hooks.on_fatal = node.fail
            hooks.on_no_space = node.note_store_space
            if at_start:
                node.note_store_space(at_start[-1])
            corruption.attach(node.alarms)
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
        self.driver.start(self._parts.append_queue, self._parts.apply_queue)
        if set(self.store.conf_state.voters) == {self.member_id}:
            self.driver.campaign()  # nobody else could win: don't wait for the election timeout

    async def wait_published(self) -> None:
        """Return when the cluster has accepted this member's name and client URLs; never while it is halted, as it is about to end."""
        request = internal_pb2.MemberAttributes(
            member_id=self.member_id,
            name=self.config.name,
            client_urls=[str(url) for url in self.config.advertise_client_urls],
            kinds_version=KINDS_VERSION,
        )
        while True:
            if self.halt.is_begun:
                await self._loop.create_future()
            try:
                deadline_s = self._loop.time() + self.config.request_timeout_s
                await self.proposals.propose(CommandKind.MEMBER_PUBLISH, request, deadline_s=deadline_s)
            except RequestError as error:
                self._log.warning("failed to publish local member; will retry", reason=str(error))
                await asyncio.sleep(PUBLISH_RETRY_S)
            else:
                self._log.info("published local member to cluster", name=self.config.name)
                return

    @property
    def log_first_index(self) -> Index:
        """The lowest entry that another member can be given, from memory or from the WAL."""
        history = self._parts.history
        return self.window.first_index() if history is None else history.storage.first_index()

    @property
    def read_cache_bytes(self) -> int:
        """Memory that holds entries read back from the WAL."""
        return 0 if self._parts.history is None else self._parts.history.log.cached_bytes

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    async def wait_failed(self) -> Exception:
        """Return the error that stopped this member, when one does."""
        return await asyncio.shield(self._failed)

    async def retire(self) -> None:
        """The first part of an orderly stop: hand leadership over, then answer whoever waits with `server stopped`."""
        if not self._failed.done():
            await self._hand_over.run(since_s=self._loop.time() - self.config.election_timeout_s)
        self.watch.stop(StoppedError())
        self.alarms.stop()
        self.leases.stop()
        self.proposals.stop()
        self.reads.stop()

    async def stop(self) -> None:
        """Stop what runs and close what is open; safe after a failure, too."""
        self.driver.stop()
        self.alarms.stop()
        self.leases.stop()
        self.proposals.stop()
        self.reads.stop()
        self._parts.apply_queue.stop()
        async with AsyncExitStack() as last_first:  # each step runs, whatever the others raise
            last_first.callback(self._directory.close)
            last_first.callback(self._parts.copy_executor.shutdown)
            last_first.callback(self._parts.chunk_executor.shutdown)
            last_first.push_async_callback(self._parts.worker.stop)
            if self._parts.history is not None:
                last_first.push_async_callback(self._parts.history.stop)
            last_first.push_async_callback(self._close_wal)
            last_first.push_async_callback(self.store.close)
            last_first.push_async_callback(self.releaser.wait_idle)
            last_first.push_async_callback(self._parts.append_queue.wait_idle)
            last_first.push_async_callback(self.transport.stop)
            last_first.push_async_callback(self.space.stop)
            last_first.push_async_callback(self._parts.notices.stop)
            last_first.push_async_callback(self.halt.stop)

    async def _close_wal(self) -> None:
        await self._parts.worker.run(self.wal.close)

    async def _answer_peer(self, sender: NodeId, kind: int, payload: bytes) -> bytes:
        """Do what another member asks. Raises PeerRequestRefusedError."""
        try:
            match kind:
                case ForwardKind.PROMOTE_MEMBER:
                    promote, timeout_s = self.reconfiguration.promote_here, self.config.request_timeout_s
                    return await answer_promote(payload, promote=promote, timeout_s=timeout_s)
                case ForwardKind.HAS_SPACE:
                    return NO if self.halt.is_begun else self.space.answer_has_space()
                case ForwardKind.NO_SPACE:
                    return self.space.take_notice(sender, payload)
                case ForwardKind.LEASE_RENEW | ForwardKind.LEASE_SETTLE | ForwardKind.LEASE_REMAINING:
                    return await self.leases.desk.answer(ForwardKind(kind), payload, self.config.request_timeout_s)
                case ForwardKind.NO_ROOM | ForwardKind.HANDED_BACK:
                    return self._parts.notices.take(ForwardKind(kind), payload)
                case _:
                    raise PeerRequestRefusedError.unknown_kind(kind)
        except ValueError as error:
            raise PeerRequestRefusedError("malformed", str(error)) from error

    # --- events --------------------------------------------------------------------------------------------------------------------------

    def note_leader(self, leader: NodeId, previous: NodeId, term: Term) -> None:
        """Another member leads, or none."""
        self._hand_over.note_leader()
        self.space.note_leader()
        self.leases.note_leader(leads=leader == self.member_id, term=term)
        if previous == self.member_id:
            if self._parts.history is not None:
                self._parts.history.log.stop_serving()
            for peer in self.transport.peers:
                self.transport.cancel_snapshot(peer)
        if leader != NO_NODE and leader != previous:
            self.metrics.leader_changes.add()
            self._log.info("raft leader changed", leader=f"{leader:x}", term=term)
            self.reads.note_leader()

    def note_invalid(self, message: Message, error: RaftError) -> None:
        """A member says what can't be: it has lost or made up entries, or this one has. Raft ignored it; an operator should look."""
        self._log.warning("refused a raft message", sender=f"{message.from_:x}", type=message.type.name, reason=str(error))

    def _note_compaction_finished(self, revision: Revision) -> None:
        self._log.info("finished scheduled compaction", compact_revision=revision)

    def note_compacted(self, decision: Decision, dropped: int, took_s: float) -> None:
        """The log window dropped entries."""
        self.metrics.log_window_compactions[decision.reason.value] += 1
        self.metrics.log_window_compaction_seconds.observe(took_s)
        self.metrics.log_window_pins_expired.value = self.book.pins_expired
        self.releaser.consider()

    def note_membership(self, membership: Membership) -> None:
        """A change of the members was applied."""
        self._follow_members()
        self._check_budget(membership)
        if self.member_id in membership.removed_ids:
            # Not at once: the others still have to hear that the entry is committed.
            self._loop.call_later(self.config.election_timeout_s, self.fail, RemovedError(self.member_id))

    def _check_budget(self, membership: Membership) -> None:
        """Say so when the cluster has grown beyond what `--memory-budget` counted with: each member costs a queue and what it sends."""
        peers = len(membership.members) - 1
        beyond_bytes = self.config.beyond_budget_bytes(peers)
        if beyond_bytes > self._beyond_budget_bytes:
            self._log.warning(
                "the cluster has more members than --memory-budget counted with: name them in --initial-cluster, or raise it",
                peers=peers,
                memory_budget_bytes=self.config.memory_budget_bytes,
                beyond_bytes=beyond_bytes,
            )
        self._beyond_budget_bytes = beyond_bytes

    def note_alarms(self, alarms: Alarms) -> None:
        """An alarm was raised or disarmed."""
        self._alarm_log.note(alarms)

    def note_append_held(self, error: WalNoSpaceError | None) -> None:
        """The WAL has no space for what it is to save, or (None) has saved it."""
        self.space.note_append(error)
        self.releaser.consider()  # what is retained for other members gives way

    def note_store_space(self, error: StorageNoSpaceError | None) -> None:
        """The store has no space for a commit, or (None) has it again."""
        self.space.note_store(error)
        self.releaser.consider()  # as above

    def note_removed(self) -> None:
        """A peer says that this member was removed."""
        self.fail(RemovedError(self.member_id))

    def note_durable(self, _: int) -> None:
        """The store holds more than before."""
        self.driver.wake()
        self.releaser.consider()

    def note_installed(self, metadata: SnapshotMetadata) -> None:
        """A snapshot is in force."""
        self.driver.note_applied(metadata.index, metadata.term)
        self._alarm_log.note(self.store.alarms)
        self.watch.note_replaced()
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

    def fail(self, error: Exception) -> None:
        """This member can't go on: nothing is acknowledged any more, and `wait_failed` answers; damage that apply met is told first."""
        if isinstance(error, ApplyMetDamageError):
            if not self._failed.done():
                self.halt.begin(error)
        else:
            self._end(error)

    def _end(self, error: Exception) -> None:
        if self._failed.done():
            return
        self._failed.set_result(error)
        self.driver.stop()
        self.watch.stop(StoppedError())
        self.alarms.stop()
        self.leases.stop()
        self.proposals.stop()
        self.reads.stop()
        is_explained = isinstance(error, FatalError | WalError)  # its text says it all; anything else is a defect, for the developers
        self._log.error("the member can't go on", error=None if is_explained else error, reason=str(error))
