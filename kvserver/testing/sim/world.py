"""One simulated cluster: built from a plan, harmed for so many events, healed, and expected to recover.

Rules
- A step is one event: a message that arrives, a tick, a disk that is done, a client's or operator's action, a fault.
- After the last step everything is healed: cuts are mended, messages arrive, members that are down start. Within `HEAL_LIMIT_S` there must
  be a leader in a configuration that is not joint, every member must have caught up and hold nothing but the slack of its window, and a
  write and a read at every member must succeed.
- A member that was removed is stopped once a majority of the voters have its removal on disk: earlier its vote may still be needed.
- Any exception but a violation is one, too: nothing may fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from kvserver.node.compaction import SLACK_BYTES, SLACK_ENTRIES, Decision
from kvserver.testing.sim.checks import SafetyChecks
from kvserver.testing.sim.disk import Disk, SimWal, StoreState
from kvserver.testing.sim.faults import Faults
from kvserver.testing.sim.file_wal import FileWal
from kvserver.testing.sim.kernel import US_PER_S, Action, Kernel, Trace, ViolationError
from kvserver.testing.sim.member import Member, members_of
from kvserver.testing.sim.network import Network, describe
from kvserver.testing.sim.plan import Plan, draw
from kvserver.testing.sim.transfers import Transfers
from kvserver.testing.sim.workload import Workload
from raft.confchange import ConfChangeV2
from raft.config import LogSink
from raft.messages import Message
from raft.quorum import VoteResult
from raft.ready import ReadState
from raft.types import ConfState, Entry, EntryType, Index, NodeId, Term

HEAL_LIMIT_S: Final = 200
HEAL_SNAPSHOTS: Final = 4
"""To one member from one leader: one that began before, one that follows, and some for delayed messages."""
STRANDED_AFTER_S: Final = 60
_SWEEP_US: Final = 5 * US_PER_S
_RETRY_EVERY_S: Final = 15


class SilentSink:
    """A log sink for those who don't listen."""

    def debug(self, message: str) -> None:
        """Drop it."""

    info = warning = error = debug


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `violation` is empty if every promise was kept; `counts` says what the run exercised."""

    plan: Plan
    violation: str
    error: Exception | None
    trace_hash: str
    events: int
    virtual_s: float
    counts: Counter[str]


@dataclass(slots=True)
class _Probe:
    """The last write and read at one member."""

    write: int
    read: int


@dataclass(slots=True)
class _Census:
    """Who there is, beside the members that run."""

    newest: ConfState
    disks: dict[NodeId, Disk] = field(default_factory=dict)
    retired: set[NodeId] = field(default_factory=set)
    ever_members: set[NodeId] = field(default_factory=set)
    newcomer: NodeId | None = None
    newest_index: Index = Index(0)
    removed_at: dict[NodeId, Index] = field(default_factory=dict)


class World:
    """A cluster, its surroundings, and the run."""

    def __init__(self, plan: Plan, rng: Random, *, show: Callable[[str], None] | None = None, sink: LogSink | None = None) -> None:
        self.plan = plan
        self.trace = Trace(show)
        self.kernel = kernel = Kernel(rng, self.trace)
        self.counts: Counter[str] = Counter()
        self._sink = sink or SilentSink()
        ids = [NodeId(number) for number in range(1, plan.voters + plan.learners + 1)]
        self._founding = ConfState(voters=tuple(ids[: plan.voters]), learners=tuple(ids[plan.voters :]))
        self.members: dict[NodeId, Member] = {}
        self._census = _Census(ever_members=set(ids), newest=self._founding)
        self.network = Network(kernel, plan.network, self._deliver, self._report_unreachable)
        self.checks = SafetyChecks(self._founding)
        self.transfers = Transfers(kernel, self.network, self.members, self._count)
        self.workload = Workload(kernel, plan, self.members, self.checks, self._join, self._count)
        self.faults = Faults(kernel, plan.faults, self.members, self.network, self)
        self._is_healing = False
        self._healing_snapshots: dict[tuple[Member, NodeId], tuple[int, Index]] = {}
        self.trace.emit(str(plan))
        for node in ids:
            self._found(node)
        self._repeat(plan.work.every_us, self.workload.act)
        if plan.faults.every_us:
            self._repeat(plan.faults.every_us, self.faults.act)
        kernel.after(_SWEEP_US, self._sweep)

    def run(self) -> Outcome:
        """Do the steps, heal, and expect recovery."""
        violation = ""
        failure: Exception | None = None
        try:
            for _ in range(self.plan.steps):
                self.kernel.run_one()
            self._heal()
            self.workload.check_history()
        except ViolationError as error:
            violation, failure = str(error), error
        except Exception as error:  # noqa: BLE001 - whatever fails inside a member would have stopped it
            violation, failure = f"no error reaches the top: {error!r}", error
        self.trace.emit(violation or "all promises kept")
        self.counts["seeds on real files"] = int(self.plan.real_files)
        self.counts["terms with a leader"] = self.checks.leader_terms
        self.counts["entries committed"] = self.checks.commit_index
        return Outcome(
            plan=self.plan,
            violation=violation,
            error=failure,
            trace_hash=self.trace.digest(),
            events=self.kernel.event_count,
            virtual_s=self.kernel.now_us / US_PER_S,
            counts=self.counts,
        )

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    def _repeat(self, every_us: int, action: Action) -> None:
        def again() -> None:
            if not self._is_healing:
                action()
                self.kernel.after(self.kernel.rng.randrange(2 * every_us), again)

        self.kernel.after(self.kernel.rng.randrange(2 * every_us), again)

    # --- members ----------------------------------------------------------------------------------------------------------------------

    @property
    def known_ids(self) -> list[NodeId]:
        """Every member that ever was and is not stopped for good."""
        return [node for node in self._census.disks if node not in self._census.retired]

    def _found(self, node: NodeId) -> None:
        """A member with an empty disk, which begins with the configuration that the cluster was founded with."""
        empty = StoreState(index=Index(0), term=Term(0), conf_state=self._founding)
        self._census.disks[node] = Disk(FileWal(node, self.plan.wal_retain_bytes) if self.plan.real_files else SimWal(node), empty)
        self.restart(node)

    def _join(self) -> NodeId:
        """The id of a running member that is not in the cluster yet."""
        newcomer = self._census.newcomer
        if newcomer is None or newcomer in self._census.ever_members:
            newcomer = self._census.newcomer = NodeId(max(self._census.disks) + 1)
            self._found(newcomer)
        return newcomer

    def restart(self, node: NodeId) -> None:
        """Start a member from its disk, unless it runs or was stopped for good."""
        if node in self.members or node in self._census.retired:
            return
        self.kernel.note(f"{node} starts")
        self._count("starts")
        self.members[node] = Member(
            node,
            self._census.disks[node],
            plan=self.plan,
            kernel=self.kernel,
            network=self.network,
            checks=self.checks,
            outside=self,
            log_sink=self._sink,
        )

    def crash(self, member: Member) -> None:
        """Stop a member without warning."""
        self.kernel.note(f"{member.id} crashes")
        self._count("crashes")
        member.crash()
        del self.members[member.id]
        self.workload.stopped(member)

    def _sweep(self) -> None:
        """Stop for good who was removed and is not needed any more."""
        self.kernel.after(_SWEEP_US, self._sweep)
        for node, index in list(self._census.removed_at.items()):
            if node in self.members and self._is_removal_safe(index):
                self.kernel.note(f"{node} was removed and stops")
                self._count("removed members stopped")
                self._census.retired.add(node)
                self.crash(self.members[node])

    def _is_removal_safe(self, index: Index) -> bool:
        """A majority of each half of the voters has the configuration at `index` on disk."""
        newest, disks = self._census.newest, self._census.disks
        for half in (newest.voters, newest.voters_outgoing):
            aware = sum(1 for node in half if disks[node].committed.index >= index)
            if half and aware <= len(half) // 2:
                return False
        return True

    def _follow_configuration(self, index: Index, conf_state: ConfState) -> None:
        """The first member applied a configuration change at `index`."""
        census = self._census
        present = members_of(conf_state)
        for node in members_of(census.newest):
            if node not in present:
                census.removed_at[node] = index
        for node in present:
            census.ever_members.add(node)
            census.removed_at.pop(node, None)
            if node in census.retired:  # a change that was under way names it once more
                census.retired.discard(node)
                self.kernel.after(US_PER_S, self.restart, node)
        census.newest, census.newest_index = conf_state, index

    # --- what members tell ------------------------------------------------------------------------------------------------------------

    def read_confirmed(self, member: Member, state: ReadState) -> None:
        """Raft confirmed a read."""
        self.workload.read_confirmed(member, state)

    def entry_applied(self, member: Member, entry: Entry) -> None:
        """A member applied an entry."""
        self.workload.entry_applied(member, entry)
        if entry.type is not EntryType.NORMAL:
            self._count("configurations applied")
            if entry.index > self._census.newest_index:
                self._follow_configuration(entry.index, member.conf_state)

    def snapshot_installed(self, member: Member) -> None:
        """A member skipped to a snapshot."""
        self._count("snapshots installed")
        self.workload.serve_reads(member)

    def snapshot_wanted(self, member: Member, message: Message) -> bool:
        """A leader's raft wants to send a snapshot; whether a transfer begins."""
        self._count("snapshots wanted")
        if self._is_healing:
            self._check_no_loop(member, message.to)
        return self.transfers.start(member, message)

    def _check_no_loop(self, member: Member, peer: NodeId) -> None:
        """Once everything is healed a few snapshots must be enough, as long as less than the caps is written from one to the next."""
        window, limits = member.window, self.plan.limits
        count, last = self._healing_snapshots.get((member, peer), (0, Index(0)))
        is_calm = member.raw.last_index - last <= limits.max_entries and window.bytes_after(last) <= limits.max_bytes
        count = count + 1 if is_calm else 1
        self._healing_snapshots[member, peer] = count, member.raw.last_index
        if count > HEAL_SNAPSHOTS:
            raise ViolationError("no loop of snapshots", f"{member.id} sends {peer} more than {HEAL_SNAPSHOTS} after healing")

    def leadership_lost(self, member: Member) -> None:
        """A leader steps down: what it streams is of no use."""
        self.transfers.cancel(member)

    def leader_appeared(self, member: Member) -> None:
        """A member learned of a leader."""
        if not self._is_healing:
            self.workload.leader_appeared(member)

    def peer_left(self, member: Member, peer: NodeId) -> None:
        """A member learns that a peer was removed."""
        self.transfers.cancel(member, peer)

    def history_read(self) -> None:
        """A member has read old entries back from its log."""
        self._count("reads of the WAL for others")

    def forwarded_refused(self, message: Message) -> None:
        """A leader had no room for a forwarded write; its sender hears of it later."""
        self._count("forwarded writes refused")
        self.workload.forwarded(message, is_refused=True)

    def forwarded_handed_back(self, message: Message) -> None:
        """A member that does not lead did not propose a forwarded write; its sender hears of it later."""
        self._count("forwarded writes handed back")
        self.workload.forwarded(message, is_refused=False)

    def compacted(self, decision: Decision) -> None:
        """A member compacted its window."""
        self._count(f"compactions ({decision.reason.value})")

    def _deliver(self, message: Message, floor: Index) -> None:
        member = self.members.get(message.to)
        self.kernel.note(describe(message) if member is not None else f"{describe(message)} finds nobody")
        if member is not None:
            member.accept(message, floor)

    def _report_unreachable(self, sender: NodeId, target: NodeId) -> None:
        member = self.members.get(sender)
        if member is not None and not member.is_stalled:
            member.report_unreachable(target)

    # --- healing ----------------------------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Repair everything, and wait for the cluster to recover."""
        self.kernel.note("healing")
        self._is_healing = True
        self.network.heal()
        self.transfers.heal()
        self.plan.pace.heal()
        self.workload.heal()
        for node in list(self._census.disks):
            self.restart(node)
        probes: dict[NodeId, _Probe] = {}
        began_us = self.kernel.now_us
        waited_s = 0
        while reason := self._unhealed(probes):
            waited_s += 1
            if waited_s > STRANDED_AFTER_S and self._is_stranded():
                self.kernel.note("stranded by a membership change")
                self._count("stranded by a membership change")
                return
            if waited_s > HEAL_LIMIT_S:
                raise ViolationError("progress after healing", f"{HEAL_LIMIT_S} s later: {reason}")
            while self.kernel.now_us < began_us + waited_s * US_PER_S:
                self.kernel.run_one()
            if waited_s % _RETRY_EVERY_S == 0:
                probes.clear()
        self.kernel.note(f"healed after {waited_s} s")

    def _is_stranded(self) -> bool:
        """The known limit of configurations that take effect when they are applied (docs/architecture/simulator.md): a change is committed,
        the voters that it leaves don't know that yet, and those that know may not campaign, but have longer logs. True only if nobody
        could win an election by the rules, and somebody who may campaign has not applied the newest configuration.
        """
        candidates = [member for member in self.members.values() if member.id in member.raw.tracker_config.voters]
        if any(member.raw.is_leader or self._can_win(member) for member in candidates):
            return False
        return any(member.store.applied_index < self._census.newest_index for member in candidates)

    def _can_win(self, candidate: Member) -> bool:
        voters = candidate.raw.tracker_config.voters
        votes = {}
        for node in voters:
            log = self.members[node].log
            votes[node] = (candidate.log.last_term, candidate.log.last_index) >= (log.last_term, log.last_index)
        return voters.vote_result(votes) is VoteResult.WON

    def _unhealed(self, probes: dict[NodeId, _Probe]) -> str:
        """What is still missing; empty when the cluster has recovered."""
        leaders = [member for member in self.members.values() if member.raw.is_leader and member.is_member()]
        if not leaders:
            return "there is no leader"
        leader = max(leaders, key=lambda member: member.raw.term)
        if leader.conf_state.voters_outgoing:
            self.workload.propose_change(leader, ConfChangeV2())
            return f"the configuration is still joint: {leader.conf_state}"
        present = members_of(leader.conf_state)
        for node in present:
            if node not in self.members:
                return f"{node} does not run"
            reason = self._lag(self.members[node], leader)
            if reason:
                return reason
        for node in present:
            if node not in probes:
                member = self.members[node]
                probes[node] = _Probe(self.workload.write(member), self.workload.read(member))
        for node, probe in probes.items():
            if not self.workload.is_acknowledged(probe.write):
                return f"the write {probe.write} at {node} is not acknowledged"
            if not self.workload.is_served(probe.read):
                return f"the read {probe.read} at {node} is not answered"
        return ""

    def _lag(self, member: Member, leader: Member) -> str:
        """In what `member` trails behind `leader`, or holds more than it should."""
        last = leader.raw.last_index
        if member.raw.leader_id != leader.id:
            return f"{member.id} follows {member.raw.leader_id}, not {leader.id}"
        if min(member.raw.applied_index, member.disk.committed.index) < last:
            return f"{member.id} has applied {member.raw.applied_index}, durably {member.disk.committed.index}, of {last}"
        window = member.window
        if member is leader and member.book.pins:
            return f"{member.id} still pins {sorted(member.book.pins.items())}"
        if member.id == self.plan.uncompacted:
            return ""
        if window.entry_count > 2 * SLACK_ENTRIES or window.size_bytes > 2 * SLACK_BYTES:
            return f"{member.id} still holds {window.entry_count} entries, {window.size_bytes} bytes"
        return ""


def simulate(
    seed: int, *, steps: int = 2000, nodes: int = 5, show: Callable[[str], None] | None = None, sink: LogSink | None = None
) -> Outcome:
    """Run one seed: `steps` events in a cluster of `nodes` members, then healing."""
    rng = Random(seed)
    plan = draw(rng, seed=seed, steps=steps, nodes=nodes)
    return World(plan, rng, show=show, sink=sink).run()
