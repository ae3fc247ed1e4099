"""What clients and operators do to a simulated cluster, and what they are promised for it.

    promise               what is compared
    linearizable reads    a read sees everything acknowledged, and everything seen by another read, before it began
    values                a read returns the newest write at its index
    applied at most once  no command is applied twice; one that was acknowledged is applied
    refused writes        what a leader refused for want of room is never applied

Rules: a write is acknowledged when the member that proposed it applies it, in the same life. A read is served once its confirmed index is
applied. Since the whole store is one history, "everything before" is one index. Operators change the membership by what the leader has
applied, in every way there is: simple and joint, implicit and explicit, learners, promotion, demotion, removal, also of the leader.

Source: Ongaro's thesis, 6.4 (reads) and 4 (membership).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from kvserver.testing.sim.checks import SafetyChecks
from kvserver.testing.sim.disk import OPERATION
from kvserver.testing.sim.kernel import US_PER_S, Kernel, ViolationError
from kvserver.testing.sim.member import Member, members_of
from kvserver.testing.sim.plan import Plan
from raft.confchange import ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2
from raft.errors import ProposalDroppedError
from raft.messages import Message
from raft.ready import ReadState
from raft.types import NO_NODE, ConfState, Entry, EntryType, Index, NodeId

KEYS: Final = 8
_MAX_EXTRA_MEMBERS: Final = 2
_SINGLE_AS_V1: Final = 0.5
_NOTICES_LOST: Final = 0.1
_READS_AT_NEW_LEADER: Final = 0.2
_READS_AT_DEPOSED_LEADER: Final = 0.5


@dataclass(eq=False, slots=True)
class _Read:
    """A read in flight: what it must see at least, and the index it was promised."""

    member: Member
    key: int
    floor: Index
    confirmed: Index | None = None


class Workload:
    """The clients' and the operators' side of one run."""

    def __init__(
        self,
        kernel: Kernel,
        plan: Plan,
        members: Mapping[NodeId, Member],
        checks: SafetyChecks,
        join: Callable[[], NodeId],
        count: Callable[[str], None],
    ) -> None:
        self._kernel = kernel
        self._max_burst, self._max_value_bytes = plan.work.max_burst, plan.work.max_value_bytes
        self._rivals = plan.work.rivals
        self._capacity = plan.voters + plan.learners + _MAX_EXTRA_MEMBERS
        self._members = members
        self._checks = checks
        self._join = join
        self._count = count
        self._next_operation = 0
        self._seen_floor = Index(0)
        self._acknowledged: dict[int, Index] = {}
        self._writes: dict[int, Member] = {}
        self._refused: set[int] = set()
        self._reads: dict[int, _Read] = {}
        self._confirmed: dict[Member, list[int]] = {}
        self._actions = (self.write, self.read, self._transfer, self._change_members)
        self._weights = (plan.work.write, plan.work.read, plan.work.transfer, plan.work.member)

    def act(self) -> None:
        """One random action at one random member."""
        rng = self._kernel.rng
        running = [member for member in self._members.values() if not member.is_stalled]
        if not running:
            return
        leaders = [member for member in running if member.raw.is_leader]
        if len(leaders) > 1 and rng.random() < _READS_AT_DEPOSED_LEADER:
            self.read(min(leaders, key=lambda member: member.raw.term))
            return
        member = rng.choice(leaders) if leaders and rng.random() < self._rivals else rng.choice(running)
        rng.choices(self._actions, self._weights)[0](member)

    def stopped(self, member: Member) -> None:
        """A life ended: nobody waits for its answers any more."""
        for operation in [operation for operation, proposer in self._writes.items() if proposer is member]:
            del self._writes[operation]
        for context in [context for context, read in self._reads.items() if read.member is member]:
            del self._reads[context]
        self._confirmed.pop(member, None)

    def heal(self) -> None:
        """From now on writes are small and come one at a time."""
        self._max_burst = self._max_value_bytes = 0

    # --- writes -----------------------------------------------------------------------------------------------------------------------

    def write(self, member: Member) -> int:
        """Propose one or several writes at `member`; the number of the last."""
        rng = self._kernel.rng
        burst = 1 + int(self._max_burst * rng.random() ** 2)
        batch = []
        for _ in range(burst):
            self._next_operation += 1
            padding = bytes(self._kernel.between(0, self._max_value_bytes))
            batch.append(OPERATION.pack(self._next_operation, rng.randrange(KEYS)) + padding)
            self._writes[self._next_operation] = member
        member.note(f"proposes {burst} up to operation {self._next_operation}")
        if member.raw.leader_id == NO_NODE:
            return self._next_operation
        try:
            if rng.random() < 0.5:
                member.raw.propose_batch(batch)
            else:
                for data in batch:
                    member.raw.propose(data)
        except ProposalDroppedError:
            self._count("proposals dropped")
        member.wake()
        return self._next_operation

    def forwarded(self, message: Message, *, is_refused: bool) -> None:
        """Forwarded writes that were not proposed: their proposer hears of it a little later, or not at all."""
        for entry in message.entries:
            if entry.type is not EntryType.NORMAL:
                continue
            operation = OPERATION.unpack_from(entry.data)[0]
            if is_refused:
                self._refused.add(operation)
                self._writes.pop(operation, None)
            elif self._kernel.rng.random() >= _NOTICES_LOST:
                self._kernel.after(self._kernel.between(US_PER_S, 2 * US_PER_S), self._propose_again, operation, entry.data)

    def _propose_again(self, operation: int, data: bytes) -> None:
        """As the node does with a proposal that came back, while somebody waits for it: with a tick in between, when there is a leader."""
        member = self._writes.get(operation)
        if member is None:
            return
        if member.is_stalled or member.raw.leader_id == NO_NODE:
            self._kernel.after(US_PER_S, self._propose_again, operation, data)
            return
        try:
            member.raw.propose(data)
        except ProposalDroppedError:
            self._kernel.after(US_PER_S, self._propose_again, operation, data)
        else:
            self._count("forwarded writes proposed again")
            member.wake()

    def is_acknowledged(self, operation: int) -> bool:
        """That write was applied by the member that proposed it."""
        return operation in self._acknowledged

    def entry_applied(self, member: Member, entry: Entry) -> None:
        """A member applied an entry: acknowledge its own, serve the reads that waited for it."""
        if entry.type is EntryType.NORMAL and entry.data:
            operation = OPERATION.unpack_from(entry.data)[0]
            if operation in self._refused:
                raise ViolationError("refused writes", f"{member.id} applies operation {operation}, which was refused")
            if self._writes.get(operation) is member:
                del self._writes[operation]
                self._acknowledged[operation] = entry.index
                self._seen_floor = max(self._seen_floor, entry.index)
                self._count("writes acknowledged")
        if member in self._confirmed:
            self.serve_reads(member)

    # --- reads ------------------------------------------------------------------------------------------------------------------------

    def read(self, member: Member) -> int:
        """Begin a linearizable read at `member`; its number."""
        self._next_operation += 1
        context = self._next_operation
        self._reads[context] = _Read(member, self._kernel.rng.randrange(KEYS), self._seen_floor)
        member.note(f"begins read {context}, which must see {self._seen_floor}")
        member.raw.read_index(context.to_bytes(8, "big"))
        member.wake()
        return context

    def leader_appeared(self, member: Member) -> None:
        """A member learned of a leader: reads that waited for one are asked again at once."""
        if self._kernel.rng.random() < _READS_AT_NEW_LEADER:
            self.read(member)

    def is_served(self, context: int) -> bool:
        """That read was answered (or its member has crashed since)."""
        return context not in self._reads

    def read_confirmed(self, member: Member, state: ReadState) -> None:
        """Raft promises that a read sees everything once `state.index` is applied."""
        context = int.from_bytes(state.context, "big")
        read = self._reads.get(context)
        if read is None or read.confirmed is not None or read.member is not member:
            return
        if state.index < read.floor:
            text = f"read {context} at {member.id} was promised index {state.index}, {read.floor} was acknowledged before it began"
            raise ViolationError("linearizable reads", text)
        read.confirmed = state.index
        self._confirmed.setdefault(member, []).append(context)
        self.serve_reads(member)

    def serve_reads(self, member: Member) -> None:
        """Answer the confirmed reads whose index is applied now."""
        waiting = self._confirmed.pop(member, [])
        still = []
        for context in waiting:
            read = self._reads[context]
            assert read.confirmed is not None
            if member.store.applied_index < read.confirmed:
                still.append(context)
                continue
            del self._reads[context]
            self._count("reads served")
            index = member.store.state.values.get(read.key, Index(0))
            member.note(f"serves read {context} at {member.store.applied_index}: key {read.key} was written at {index}")
            self._check_value(read, index)
            self._seen_floor = max(self._seen_floor, member.store.applied_index)
        if still:
            self._confirmed[member] = still

    def _check_value(self, read: _Read, index: Index) -> None:
        applied = self._checks.applied_entries
        for newer in range(min(read.floor, len(applied) - 1), index, -1):
            entry = applied[newer]
            if entry is not None and entry.data and entry.type is EntryType.NORMAL and OPERATION.unpack_from(entry.data)[1] == read.key:
                raise ViolationError("linearizable reads", f"a read of key {read.key} returned the write at {index}, {newer} is newer")

    # --- operators --------------------------------------------------------------------------------------------------------------------

    def _transfer(self, member: Member) -> None:
        target = self._kernel.rng.choice(members_of(member.conf_state))
        member.note(f"is asked to hand leadership to {target}")
        self._count("transfers asked for")
        member.raw.transfer_leader(target)
        member.wake()

    def _change_members(self, member: Member) -> None:
        rng = self._kernel.rng
        leader = self._members.get(member.raw.leader_id, member)
        change = self._draw_change(leader.conf_state, leader.id)
        proposer = leader if rng.random() < 0.8 else member
        self.propose_change(proposer, change)

    def propose_change(self, proposer: Member, change: ConfChange | ConfChangeV2) -> None:
        """Propose a configuration change; refusals are part of life."""
        singles = " ".join(f"{single.type.name.lower()} {single.node_id}" for single in change.as_v2().changes) or "leave joint"
        proposer.note(f"proposes membership: {singles}")
        self._count("membership changes proposed")
        if proposer.raw.leader_id == NO_NODE:
            return
        try:
            proposer.raw.propose_conf_change(change)
        except ProposalDroppedError:
            self._count("proposals dropped")
        proposer.wake()

    def _draw_change(self, conf_state: ConfState, leader: NodeId) -> ConfChange | ConfChangeV2:
        rng = self._kernel.rng
        if conf_state.voters_outgoing and rng.random() < 0.8:
            return ConfChangeV2()
        first = self._draw_single(conf_state, leader)
        if rng.random() < 0.6:
            if rng.random() < _SINGLE_AS_V1:
                return ConfChange(type=first.type, node_id=first.node_id)
            return ConfChangeV2(changes=(first,))
        changes = [first]
        for _ in range(rng.randint(1, 2)):
            another = self._draw_single(conf_state, leader)
            if all(another.node_id != change.node_id for change in changes):
                changes.append(another)
        transitions = (ConfChangeTransition.AUTO, ConfChangeTransition.JOINT_IMPLICIT, ConfChangeTransition.JOINT_EXPLICIT)
        return ConfChangeV2(transition=rng.choice(transitions), changes=tuple(changes))

    def _draw_single(self, conf_state: ConfState, leader: NodeId) -> ConfChangeSingle:
        rng = self._kernel.rng
        is_full = len(members_of(conf_state)) >= self._capacity
        kind = rng.choice(("add learner", "add learner", "add voter", "promote", "promote", "remove", "remove leader", "demote"))
        voters, learners = conf_state.voters, conf_state.learners
        if kind == "promote" and learners:
            return ConfChangeSingle(type=ConfChangeType.ADD_NODE, node_id=rng.choice(learners))
        if len(voters) > 2 or is_full:
            if kind == "remove leader" and leader in voters:
                return ConfChangeSingle(type=ConfChangeType.REMOVE_NODE, node_id=leader)
            if kind == "demote":
                return ConfChangeSingle(type=ConfChangeType.ADD_LEARNER_NODE, node_id=rng.choice(voters))
            if kind == "remove" or is_full:
                return ConfChangeSingle(type=ConfChangeType.REMOVE_NODE, node_id=rng.choice(members_of(conf_state)))
        role = ConfChangeType.ADD_NODE if kind == "add voter" else ConfChangeType.ADD_LEARNER_NODE
        return ConfChangeSingle(type=role, node_id=self._join())

    # --- the end ----------------------------------------------------------------------------------------------------------------------

    def check_history(self) -> None:
        """Every acknowledged command was applied where it was acknowledged, and none was applied twice."""
        seen: dict[int, Index] = {}
        for index, data in self._checks.commands():
            operation = OPERATION.unpack_from(data)[0]
            if operation in seen:
                raise ViolationError("applied at most once", f"operation {operation} was applied at {seen[operation]} and {index}")
            seen[operation] = index
        for operation, index in self._acknowledged.items():
            if seen.get(operation) != index:
                raise ViolationError("applied at most once", f"operation {operation} was acknowledged at {index}, and lost")
