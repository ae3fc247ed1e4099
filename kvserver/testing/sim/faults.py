"""What goes wrong in a simulated cluster: crashes, cuts, partitions, stalls, elections out of turn.

Rules: any number of members may be down at a time, as a disk never loses what it synced; everything passes in the end, at the latest when
the run heals the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from kvserver.testing.sim.kernel import US_PER_S, Kernel
from kvserver.testing.sim.member import Member
from kvserver.testing.sim.network import Network
from kvserver.testing.sim.plan import FaultPlan
from raft.types import NodeId

_MAX_DOWN_US: Final = 60 * US_PER_S
_MAX_CUT_US: Final = 40 * US_PER_S
_MIN_ISOLATION_US: Final = 12 * US_PER_S
_SLEEPS_ISOLATED: Final = 0.6
_MAX_STALL_US: Final = 20 * US_PER_S
_LEADER_FIRST: Final = 0.4


class Operator(Protocol):
    """Who stops and starts members."""

    @property
    def known_ids(self) -> list[NodeId]: ...
    def crash(self, member: Member) -> None: ...
    def restart(self, node: NodeId) -> None: ...


class Faults:
    """Draws faults and does them."""

    def __init__(self, kernel: Kernel, plan: FaultPlan, members: Mapping[NodeId, Member], network: Network, operator: Operator) -> None:
        self._kernel = kernel
        self._members = members
        self._network = network
        self._operator = operator
        self._actions = (self._crash, self._cut, self._partition, self._isolate, self._stall, self._campaign, self._forget)
        self._weights = (plan.crash, plan.cut, plan.partition, plan.isolate, plan.stall, plan.campaign, plan.forget)

    def act(self) -> None:
        """One random fault."""
        member = self._draw_member()
        if member is not None and any(self._weights):
            self._kernel.rng.choices(self._actions, self._weights)[0](member)

    def _draw_member(self) -> Member | None:
        rng = self._kernel.rng
        running = [member for member in self._members.values() if not member.is_stalled]
        leaders = [member for member in running if member.raw.is_leader]
        if not running:
            return None
        return rng.choice(leaders) if leaders and rng.random() < _LEADER_FIRST else rng.choice(running)

    def _crash(self, member: Member) -> None:
        rng = self._kernel.rng
        victims = list(self._members.values()) if rng.random() < 0.1 else [member]
        for victim in victims:
            self._operator.crash(victim)
            self._kernel.after(self._kernel.between(US_PER_S // 10, _MAX_DOWN_US), self._operator.restart, victim.id)

    def _cut(self, member: Member) -> None:
        others = [node for node in self._operator.known_ids if node != member.id]
        if not others:
            return
        other = self._kernel.rng.choice(others)
        link = (member.id, other) if self._kernel.rng.random() < 0.5 else (other, member.id)
        self._kernel.note(f"cuts {link[0]}>{link[1]}")
        self._network.cut([link])
        self._mend_later()

    def _partition(self, member: Member) -> None:
        rng = self._kernel.rng
        here = [node for node in self._operator.known_ids if node == member.id or rng.random() < 0.3]
        there = [node for node in self._operator.known_ids if node not in here]
        self._kernel.note(f"partition {here} {there}")
        self._network.cut((a, b) for a in here for b in there)
        if rng.random() < 0.7:  # else one direction still works
            self._network.cut((b, a) for a in here for b in there)
        self._mend_later()

    def _isolate(self, member: Member) -> None:
        """Cut off whoever believes to lead, from everybody, and often let it sleep over the election of another."""
        leader = self._members.get(member.raw.leader_id, member)
        others = [node for node in self._operator.known_ids if node != leader.id]
        self._kernel.note(f"isolates {leader.id}")
        self._network.cut((leader.id, node) for node in others)
        self._network.cut((node, leader.id) for node in others)
        duration_us = self._kernel.between(_MIN_ISOLATION_US, _MAX_CUT_US)
        if self._kernel.rng.random() < _SLEEPS_ISOLATED:
            leader.stall(duration_us * 2 // 3)
        self._kernel.after(duration_us, self._mend)

    def _mend_later(self) -> None:
        self._kernel.after(self._kernel.between(US_PER_S, _MAX_CUT_US), self._mend)

    def _mend(self) -> None:
        self._kernel.note("mends all cuts")
        self._network.mend()

    def _stall(self, member: Member) -> None:
        duration_us = self._kernel.between(US_PER_S // 10, _MAX_STALL_US)
        member.note(f"stalls for {duration_us / US_PER_S:.3f} s")
        member.stall(duration_us)

    def _campaign(self, member: Member) -> None:
        member.note("is told to campaign")
        member.raw.campaign()
        member.wake()

    def _forget(self, member: Member) -> None:
        member.note("forgets its leader")
        member.raw.forget_leader()
        member.wake()
