"""A simulated member: the real core and the real log window, driven as `kvserver.node.driver` drives them.

Rules
- Everything between raft and the window is the node's own code: `RawNode` with asynchronous storage writes, `LogWindow`, `WindowLoader`,
  `WindowKeeper`, `PeerBook`, `Forwarded`; where the log is the real one, `LogHistory` and `LogStorage` below it. This shell repeats the
  driver's order: step, turn (all Readys, then compaction), floors with every message, pins from the moment a snapshot is wanted, contact
  clocks from every message.
- Only ProposalDropped and "peer not found" may come out of a core; any other error, and above all "compacted" or "unavailable", is a
  violation.
- A crash drops everything but the disk. Events of an earlier life never arrive; those of a stalled member wait, its ticks collapse to one.
"""

from __future__ import annotations

from random import Random
from typing import Protocol

from kvserver.node.compaction import Decision
from kvserver.node.forwarded import Forwarded
from kvserver.node.log_storage import LogStorage
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from kvserver.node.window_keeper import WindowKeeper
from kvserver.node.window_loader import WindowLoader
from kvserver.testing.sim.checks import SafetyChecks
from kvserver.testing.sim.disk import Disk, SimWal, StoreState
from kvserver.testing.sim.file_wal import FileWal
from kvserver.testing.sim.history import make_storage
from kvserver.testing.sim.kernel import US_PER_S, Action, Kernel, ViolationError
from kvserver.testing.sim.network import Network
from kvserver.testing.sim.plan import Plan
from kvserver.testing.sim.queues import SimAppendQueue, SimApplyQueue
from kvserver.testing.sim.store import SimStore
from kvserver.testing.sim.window_checks import WindowChecks
from raft.confchange_codec import decode_conf_change
from raft.config import Config, LogSink
from raft.errors import ConfChangeError, ProposalDroppedError, RaftError, StepPeerNotFoundError
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType
from raft.raw_node import RawNode
from raft.ready import ReadState, Ready
from raft.types import NO_NODE, ConfState, Entry, EntryType, HardState, Index, NodeId, SnapshotMetadata, Term
from wal.state import LogState

_TICK_US = US_PER_S
_RELEASE_AFTER_COMMIT = 0.25
_FLOOR_FOLLOWS_US = 150_000
_FORWARDED_BYTES = 65_536
_FORWARDED_TICKS = 70


class Outside(Protocol):
    """Whom a member tells."""

    def read_confirmed(self, member: Member, state: ReadState) -> None: ...
    def entry_applied(self, member: Member, entry: Entry) -> None: ...
    def snapshot_installed(self, member: Member) -> None: ...
    def snapshot_wanted(self, member: Member, message: Message) -> bool: ...
    def leadership_lost(self, member: Member) -> None: ...
    def leader_appeared(self, member: Member) -> None: ...
    def peer_left(self, member: Member, peer: NodeId) -> None: ...
    def compacted(self, decision: Decision) -> None: ...
    def history_read(self) -> None: ...
    def forwarded_refused(self, message: Message) -> None: ...
    def forwarded_handed_back(self, message: Message) -> None: ...


class Member:
    """One life of a member, from start to crash."""

    def __init__(
        self,
        member_id: NodeId,
        disk: Disk,
        *,
        plan: Plan,
        kernel: Kernel,
        network: Network,
        checks: SafetyChecks,
        outside: Outside,
        log_sink: LogSink,
    ) -> None:
        self.id = member_id
        self.disk = disk
        self.book = PeerBook()
        self.is_running = True
        self._kernel = kernel
        self._network = network
        self._checks = checks
        self._outside = outside
        self._delayed_turns = plan.delayed_turns
        self._rate = 1.0 + plan.clock_skew * (2 * kernel.rng.random() - 1)
        self._offset_s = kernel.rng.random() * 1000
        self._tick_us = int(_TICK_US / self._rate)
        self._stalled_until_us = 0
        self._leader = NO_NODE
        self._leader_floor: Index | None = None
        self._role_since_s = self.now_s()
        self._is_in_turn = False
        self._is_turn_scheduled = False
        self._is_turn_late = False
        self._compacts = plan.uncompacted != member_id
        self._recover(plan, log_sink)
        self._window_checks = WindowChecks(member_id, self.window, plan.limits, checks, self.storage)
        checks.started(self)
        self.after(kernel.rng.randrange(self._tick_us), self._tick)

    def _recover(self, plan: Plan, log_sink: LogSink) -> None:
        """Start from the disk, as `kvserver.node.bootstrap` does."""
        disk = self.disk
        loader = WindowLoader(disk.committed.index, plan.limits)
        recovered = disk.wal.recover(disk.committed.index, loader)
        marker = recovered.marker
        if marker is not None and marker.index > disk.committed.index:
            if (marker.index, marker.term) not in disk.received:
                raise ViolationError("snapshot", f"{self.id} restarts behind marker {marker}, whose snapshot it lacks")
            disk.committed = disk.received[marker.index, marker.term].copy()
        disk.received.clear()
        self.store = SimStore(self, disk, plan.pace, self._note_durable)
        self._checks.check_state(self.id, self.store.state)
        self.window = loader.finish(recovered, recovered.hard_state, self.conf_state, self.store.durable, term_at=disk.wal.state.term_at)
        self.storage: LogWindow | LogStorage = self.window
        if isinstance(disk.wal, FileWal) and disk.wal.retain_bytes:
            self.storage = make_storage(self, disk.wal, self.window, self._retry_appends, self._outside.history_read)
        log_first = self.storage.first_index if isinstance(self.storage, LogStorage) else lambda: None
        self._keeper = WindowKeeper(self.window, self.book, plan.limits, log_first)
        self.log = LogState(start_index=Index(recovered.first_index - 1), start_term=recovered.prev_term)
        for index in range(recovered.first_index, recovered.last_index + 1):
            self.log.append(Index(index), disk.wal.state.term_at(Index(index)))
        self._apply_queue = SimApplyQueue(self, plan.pace)
        self._append_queue = SimAppendQueue(self, plan.pace, recovered.hard_state, self._apply_queue.when_idle)
        self.raw = RawNode(
            Config(
                id=self.id,
                election_ticks=plan.election_ticks,
                heartbeat_ticks=1,
                storage=self.storage,
                random=Random(self._kernel.rng.getrandbits(64)),
                log_sink=log_sink,
                applied=self.store.applied_index,
                async_storage_writes=True,
                max_size_per_msg_bytes=plan.max_size_per_msg_bytes,
                max_committed_size_per_ready_bytes=plan.max_committed_bytes,
                max_uncommitted_size_bytes=plan.max_uncommitted_bytes,
                max_inflight_msgs=plan.max_inflight_msgs,
                max_inflight_bytes=max(plan.max_size_per_msg_bytes, plan.limits.max_bytes // 4),
                check_quorum=True,
                pre_vote=plan.pre_vote,
                step_down_on_removal=plan.step_down_on_removal,
            )
        )

        self._forwarded = Forwarded(
            self.raw,
            max_bytes=_FORWARDED_BYTES,
            max_wait_ticks=_FORWARDED_TICKS,
            senders=self,
            on_held=lambda: None,
            on_invalid=self._note_invalid,
        )

    # --- what others read -------------------------------------------------------------------------------------------------------------

    @property
    def wal(self) -> SimWal:
        """The log on disk."""
        return self.disk.wal

    @property
    def conf_state(self) -> ConfState:
        """The configuration as applied here."""
        return self.store.state.conf_state

    @property
    def floor(self) -> Index:
        """What this member's window begins behind; rides with every message."""
        return Index(self.window.first_index() - 1)

    def now_s(self) -> float:
        """This member's own clock."""
        return self._offset_s + self._rate * self._kernel.now_us / US_PER_S

    def is_member(self) -> bool:
        """Part of the configuration as applied here."""
        return self.id in members_of(self.conf_state)

    # --- events of this life ----------------------------------------------------------------------------------------------------------

    def after(self, delay_us: int, action: Action, *arguments: object) -> None:
        """Call `action` later, unless this life has ended by then."""
        self._kernel.after(delay_us, self._run, action, arguments)

    def _run(self, action: Action, arguments: tuple[object, ...]) -> None:
        if not self.is_running:
            return
        if self.is_stalled:
            self._kernel.after(self._stalled_until_us - self._kernel.now_us, self._run, action, arguments)
            return
        action(*arguments)

    def between(self, low_us: int, high_us: int) -> int:
        """A random delay."""
        return self._kernel.between(low_us, high_us)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._kernel.rng.random() < probability

    def note(self, text: str) -> None:
        """Record what this member does."""
        self._kernel.note(f"{self.id} {text}")

    @property
    def is_stalled(self) -> bool:
        """The process is paused."""
        return self._stalled_until_us > self._kernel.now_us

    def stall(self, duration_us: int) -> None:
        """Do nothing for a while: a pause of the process."""
        self._stalled_until_us = self._kernel.now_us + duration_us

    def crash(self) -> None:
        """End this life; the disk keeps what was synced and some of the rest."""
        self.is_running = False
        self.disk.wal.crash(self._kernel.rng)

    # --- inputs -----------------------------------------------------------------------------------------------------------------------

    def accept(self, message: Message, floor: Index) -> None:
        """A message arrives; a stalled member takes it later."""
        self._run(self.receive, (message, floor))

    def receive_snapshot(self, position: tuple[Index, Term], state: StoreState) -> None:
        """A snapshot file is whole and durable; its message follows."""
        self.disk.received[position] = state

    def receive(self, message: Message, floor: Index) -> None:
        """Step a message from a peer; `floor` is the sender's log floor."""
        self.book.note_contact(message.from_, self.now_s())
        try:
            if message.type is MessageType.PROP:
                self._forwarded.take(message)
            else:
                self.raw.step(message)
        except ProposalDroppedError:
            pass
        except StepPeerNotFoundError:
            return
        except RaftError as error:
            raise ViolationError("no error reaches the top", f"{self.id}: {error!r} from {message.type.name}") from error
        if message.from_ == self.raw.leader_id:
            self._leader_floor = max(floor, self._leader_floor or floor)
        self._checks.stepped(self)
        self.wake()

    def refuse(self, message: Message) -> None:
        """A forwarded write has no room to wait."""
        self._outside.forwarded_refused(message)

    def hand_back(self, message: Message) -> None:
        """A forwarded write, and this member does not lead."""
        self._outside.forwarded_handed_back(message)

    def _note_invalid(self, message: Message, error: RaftError) -> None:
        raise ViolationError("no error reaches the top", f"{self.id}: {error!r} from {message.type.name}")

    def report_unreachable(self, peer: NodeId) -> None:
        """A message to `peer` was dropped."""
        self.raw.report_unreachable(peer)
        self.wake()

    def report_snapshot(self, peer: NodeId, *, delivered: bool) -> None:
        """The snapshot stream to `peer` ended."""
        if delivered:
            self.book.unpin_later(peer, self.now_s())
        else:
            self.book.unpin(peer)
        self.raw.report_snapshot(peer, delivered)
        self._checks.stepped(self)
        self.wake()

    def _retry_appends(self) -> None:
        """Entries that raft asked for have been read."""
        self.raw.retry_appends()
        self._checks.stepped(self)
        self.wake()

    def _tick(self) -> None:
        self.after(self._tick_us, self._tick)
        self._forwarded.tick()
        self.raw.tick()
        self._checks.stepped(self)
        self.wake()

    def storage_responded(self, responses: list[Message]) -> None:
        """An append is durable, or entries are applied."""
        outgoing = []
        for response in responses:
            if response.to == self.id:
                self.raw.step(response)
                self._checks.stepped(self)
            else:
                outgoing.append(response)
        if outgoing:
            self._send(outgoing)
        self.wake()

    # --- the turn ---------------------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn: now, or a little later together with what else comes in."""
        if self._is_in_turn or self._is_turn_scheduled:
            return
        if self._delayed_turns and self.chance(self._delayed_turns):
            self._is_turn_scheduled = True
            self.after(self._kernel.rng.randrange(2_000), self._turn)
        else:
            self._turn()

    def _turn(self) -> None:
        self._is_turn_late, self._is_turn_scheduled = self._is_turn_scheduled, False
        self._is_in_turn = True
        raw = self.raw
        while self._has_work(raw):
            self._carry_out(raw.ready())
        self._compact()
        self._is_in_turn = False
        safe = Index(min(raw.applied_index, self.store.applied_index, self.store.durable_index))
        if self._compacts:
            self._window_checks.check_bounds(safe, pinned=raw.is_leader and bool(self.book.pins))
            if raw.is_leader and len(members_of(self.conf_state)) == 1:
                self._window_checks.check_single(safe)

    def _has_work(self, raw: RawNode) -> bool:
        """Propose what others forwarded, as far as raft takes it; whether there is anything to do then."""
        forwarded = self._forwarded
        if forwarded.is_waiting:
            if not raw.is_leader:
                forwarded.hand_back_all()
            while forwarded.has_next and forwarded.propose_next():
                self._checks.stepped(self)
        return raw.has_ready()

    def _carry_out(self, ready: Ready) -> None:
        self._checks.ready(self, ready)
        if ready.soft_state is not None:
            self._note_leader(ready.soft_state.lead)
        for state in ready.read_states:
            self._outside.read_confirmed(self, state)
        outgoing = []
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                self._append_queue.submit(message)
            elif message.to == LOCAL_APPLY_THREAD:
                self._apply_queue.submit(message)
            elif message.type is MessageType.SNAP:
                self._want_snapshot(message)
            else:
                outgoing.append(message)
        if outgoing:
            self._send(outgoing)

    def _want_snapshot(self, message: Message) -> None:
        """As the driver: begin the transfer and pin its position, unless one is under way, leadership was lost within this turn, or the
        store has not committed yet that the receiver is a member.
        """
        raw, to = self.raw, message.to
        assert message.snapshot is not None
        if not raw.is_leader or to not in members_of(message.snapshot.metadata.conf_state):
            raw.report_snapshot(to, False)
            return
        matches = {peer: progress.match_index for peer, progress, _ in raw.progress()}
        self._window_checks.check_snapshot(to, message.snapshot.metadata.index, None if self._is_turn_late else matches.get(to))
        if self._outside.snapshot_wanted(self, message):
            self.book.pin(to, self.store.durable_index)

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            self._checks.sending(self, message)
        self._network.send(messages, self.floor)

    def _note_leader(self, leader: NodeId) -> None:
        previous, self._leader = self._leader, leader
        self._role_since_s = self.now_s()
        self._leader_floor = None
        if previous == self.id and leader != previous:
            self.book.unpin_all()
            self._outside.leadership_lost(self)
            if isinstance(self.storage, LogStorage):
                self.storage.history.stop_serving()
        self.note(f"{self.raw.state.value} of term {self.raw.term}, leader {leader}")
        if leader not in (NO_NODE, previous):
            self._outside.leader_appeared(self)

    def _compact(self) -> None:
        """Compact the window as the driver does, and have the decision checked."""
        raw, window = self.raw, self.window
        decision = self._keeper.decide(
            raw,
            safe_index=min(raw.applied_index, self.store.applied_index, self.store.durable_index),
            now_s=self.now_s(),
            role_since_s=self._role_since_s,
            leader_floor=self._leader_floor,
        )
        if decision is None or not self._compacts:
            return
        self._window_checks.check_compaction(decision.index, raw, self.store.durable_index)
        if raw.is_leader:
            self._window_checks.check_served(decision.index, raw, self.book, self.now_s())
        dropped = window.compact(decision.index)
        self._window_checks.check_content()
        self.note(f"compacted to {decision.index} ({decision.reason.value}), {dropped} entries")
        self._outside.compacted(decision)

    # --- storage ----------------------------------------------------------------------------------------------------------------------

    def saved(self, hard_state: HardState, entries: list[Entry], responses: list[Message]) -> None:
        """A save is durable."""
        self._checks.synced(self.id, hard_state)
        self.note(f"synced {self.wal.durable.last_term}/{self.wal.durable.last_index}, term {hard_state.term} vote {hard_state.vote}")
        self.storage.append(entries)
        self.storage_responded(responses)

    def apply_entry(self, entry: Entry) -> None:
        """Apply the next entry to the store, as `kvserver.node.entries` does."""
        if entry.type is EntryType.NORMAL:
            self.store.apply(entry)
        else:
            self.store.apply(entry, self._change_configuration(entry))
        self._checks.applied(self, entry, self.store.state)
        self._outside.entry_applied(self, entry)

    def _change_configuration(self, entry: Entry) -> ConfState:
        before = self.conf_state
        try:
            after = self.raw.apply_conf_change(decode_conf_change(entry.type, entry.data))
        except ConfChangeError as error:
            self.note(f"skips a configuration change: {error}")
            return before
        self._checks.stepped(self)
        self.note(f"configuration {self.raw.tracker_config}")
        self._forget_peers(before, after)
        return after

    def _forget_peers(self, before: ConfState, after: ConfState) -> None:
        members = members_of(after)
        for peer in members_of(before):
            if peer not in members and peer != self.id:
                self._outside.peer_left(self, peer)
                self.book.forget(peer)

    def _note_durable(self, index: Index) -> None:
        if self.chance(_RELEASE_AFTER_COMMIT):
            self.wal.release(Index(min(self.window.first_index() - 1, index)))
            if isinstance(self.storage, LogStorage) and isinstance(self.wal, FileWal):
                self.after(_FLOOR_FOLLOWS_US, self.storage.history.raise_floor, self.wal.real.first_index)
        self.wake()

    def install(self, metadata: SnapshotMetadata) -> None:
        """Put a received snapshot in force."""
        before = self.conf_state
        state = self.store.install((metadata.index, metadata.term))
        self._checks.check_state(self.id, state)
        self.storage.reset(metadata.index, metadata.term)
        self._window_checks.check_previous_term()
        self._forget_peers(before, state.conf_state)
        self.note(f"installed snapshot {metadata.term}/{metadata.index}")
        self._outside.snapshot_installed(self)
        self.wake()


def members_of(conf_state: ConfState) -> list[NodeId]:
    """Everyone in a configuration, in ascending order."""
    return sorted({*conf_state.voters, *conf_state.voters_outgoing, *conf_state.learners, *conf_state.learners_next})
