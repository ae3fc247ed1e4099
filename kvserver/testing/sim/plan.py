"""What one seed stands for: the cluster, its limits, how bad its network and disks are, and what is done to it.

Rules: a plan is drawn once, before anything runs; everything later is drawn from the same generator. Times are virtual: a tick is one
second, so that the grace (10 s) and the pins (30 s) of the log window are 10 and 30 ticks, a tenth of what they are in production.
Limits are small on purpose: what needs a week of production to occur shall occur within two thousand events.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from kvserver.node.compaction import WindowLimits
from kvserver.testing.sim.kernel import US_PER_S
from raft.types import NodeId

FILES_EVERY: Final = 4
"""One seed in so many runs on the real log, on a disk in memory (file_wal.py)."""
RETAIN_BYTES: Final = (16_384, 262_144, 0)
"""What those seeds keep of it for members that are behind memory, in turn."""
UNCOMPACTED_EVERY: Final = 5
"""In one seed in so many one member never compacts: it must apply what the others apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """How messages travel: probabilities in [0, 1], one-way delays."""

    drop: float
    duplicate: float
    is_ordered: bool
    max_delay_us: int


@dataclass(slots=True, kw_only=True)
class Pace:
    """How long the storage takes at most: a WAL sync, from a store's change to its commit, and an apply. Shared by all members; healing
    speeds it up."""

    max_sync_us: int
    max_commit_us: int
    max_apply_us: int

    def heal(self) -> None:
        """From now on disks are fast."""
        self.max_sync_us = min(self.max_sync_us, 20_000)
        self.max_commit_us = min(self.max_commit_us, 100_000)
        self.max_apply_us = min(self.max_apply_us, 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """What goes wrong, as relative weights; `every_us` is the mean time between two faults (0: none)."""

    every_us: int
    crash: int
    cut: int
    partition: int
    isolate: int
    stall: int
    campaign: int
    forget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlan:
    """What clients and operators do: the mean time between two actions, weights, how large values are, and how often an action goes to
    somebody who believes to lead (`rivals`)."""

    every_us: int
    write: int
    read: int
    transfer: int
    member: int
    max_value_bytes: int
    max_burst: int
    rivals: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is fixed for one run."""

    seed: int
    steps: int
    real_files: bool
    wal_retain_bytes: int
    uncompacted: NodeId | None
    voters: int
    learners: int
    election_ticks: int
    pre_vote: bool
    step_down_on_removal: bool
    limits: WindowLimits
    max_size_per_msg_bytes: int
    max_committed_bytes: int
    max_uncommitted_bytes: int
    max_inflight_msgs: int
    clock_skew: float
    delayed_turns: float
    network: NetworkPlan
    pace: Pace
    faults: FaultPlan
    work: WorkPlan


def draw(rng: Random, *, seed: int, steps: int, nodes: int) -> Plan:
    """The plan of a seed for a cluster that starts with `nodes` members."""
    theme = rng.choice(("mixed", "mixed", "mixed", "rivals", "rivals", "members"))
    learners = rng.choice((0, 0, 1)) if nodes > 2 else 0
    max_size_per_msg_bytes = rng.choice((0, 4096, 65_536, 1 << 20))
    return Plan(
        seed=seed,
        steps=steps,
        real_files=seed % FILES_EVERY == FILES_EVERY - 1,
        wal_retain_bytes=RETAIN_BYTES[seed // FILES_EVERY % len(RETAIN_BYTES)],
        uncompacted=NodeId(1 + seed // UNCOMPACTED_EVERY % nodes) if seed % UNCOMPACTED_EVERY == 2 else None,
        voters=nodes - learners,
        learners=learners,
        election_ticks=rng.choice((3, 5, 10)),
        pre_vote=rng.random() < 0.7,
        step_down_on_removal=rng.random() < 0.4,
        limits=WindowLimits(
            max_entries=rng.choice((4, 16, 64, 300, 100_000)), max_bytes=rng.choice((16_384, 131_072, 524_288, 8 << 20)), grace_s=10.0
        ),
        max_size_per_msg_bytes=max_size_per_msg_bytes,
        max_committed_bytes=rng.choice((0, 8192, 262_144)),
        max_uncommitted_bytes=rng.choice((0, 131_072, 1 << 20)),
        max_inflight_msgs=rng.choice((1, 2, 8, 256)),
        clock_skew=rng.choice((0.0, 0.02, 0.1)),
        delayed_turns=rng.choice((0.0, 0.1, 0.5)),
        network=_draw_network(rng),
        pace=_draw_pace(rng),
        faults=_draw_faults(rng, theme),
        work=_draw_work(rng, theme),
    )


def _draw_network(rng: Random) -> NetworkPlan:
    return NetworkPlan(
        drop=rng.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
        duplicate=rng.choice((0.0, 0.02, 0.1)),
        is_ordered=rng.random() < 0.4,
        max_delay_us=rng.choice((20_000, 300_000, 1_500_000, 4_000_000)),
    )


def _draw_pace(rng: Random) -> Pace:
    return Pace(
        max_sync_us=rng.choice((5_000, 100_000, 1_000_000, 4_000_000)),
        max_commit_us=rng.choice((50_000, 1_000_000, 8_000_000)),
        max_apply_us=rng.choice((0, 20_000, 1_500_000)),
    )


def _draw_faults(rng: Random, theme: str) -> FaultPlan:
    every_us = rng.choice((0, 2, 4, 8, 8, 15)) * US_PER_S
    if theme == "members":
        return FaultPlan(every_us=4 * US_PER_S, crash=3, cut=1, partition=3, isolate=3, stall=1, campaign=4, forget=0)
    if theme == "rivals":
        return FaultPlan(every_us=15 * US_PER_S, crash=1, cut=0, partition=0, isolate=6, stall=2, campaign=0, forget=0)
    return FaultPlan(
        every_us=every_us,
        crash=rng.choice((0, 4, 8)),
        cut=rng.choice((0, 2, 5)),
        partition=rng.choice((0, 2, 5)),
        isolate=rng.choice((0, 1, 3)),
        stall=rng.choice((0, 1, 3)),
        campaign=rng.choice((0, 1, 3)),
        forget=rng.choice((0, 0, 1)),
    )


def _draw_work(rng: Random, theme: str) -> WorkPlan:
    is_members = theme == "members"
    return WorkPlan(
        every_us=rng.choice((200_000, 500_000, 1_000_000)),
        write=5 if is_members else rng.choice((5, 10)),
        read=rng.choice((1, 5)),
        transfer=rng.choice((0, 1, 3)),
        member=8 if is_members else rng.choice((0, 1, 3)),
        max_value_bytes=rng.choice((16, 2_000, 40_000)),
        max_burst=rng.choice((1, 4, 40)),
        rivals=0.8 if theme == "rivals" else rng.choice((0.0, 0.3)),
    )
