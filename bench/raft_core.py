"""Speed of the raft core alone: three members in one process, joined by a list of messages; storage writes are answered at once.

What is measured is everything the core does for an entry on all three members: proposing (`RawNode.propose_batch`), replicating,
acknowledging, committing, handing out for application. What is not: the network, the disk, the state machine, encoding. The log is the
server's own window (`kvserver.node.log_window`); the work is driven as the server drives it, with asynchronous storage writes.

    throughput    entries/s in batches of 64, each committed and applied everywhere before the next; the log is compacted as it goes
    log length    cost per entry with 1,000 and with 100,000 entries in the log
    lag           the same while the third member is silent and that far behind: cost for the other two
    catching up   cost per entry of bringing the third member back from that far behind

Costs are CPU time, so that other processes on the machine disturb less; throughput is given by the wall clock, too. Medians over the
rounds, which alternate between the short and the long log. A long log touches more memory than a processor's cache holds: that, and no
more, should show.

    python bench/raft_core.py [--rounds 5] [--size 256] [--batch 64] [--profile] [--check]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from random import Random

from kvserver.node.log_window import LogWindow
from raft import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Config, Message, RawNode
from raft.types import ConfState, HardState, Index, NodeId, Term

IDS = (NodeId(1), NodeId(2), NodeId(3))
LEADER, LAGGARD = IDS[0], IDS[2]
SHORT, LONG = 1_000, 100_000
WINDOW_ENTRIES = 5_000
GOAL_PER_S = 20_000
MAX_GROWTH = 1.5
"""Cost per entry with the log a hundred times as long, at most: room for noise and a cold cache, not for a search or a copy."""
MAX_CATCH_UP_TICKS = 100


class Silent:
    """A log sink for nobody."""

    def debug(self, message: str) -> None:
        """Nothing."""

    info = warning = error = debug


class Member:
    """A core with the server's log window."""

    def __init__(self, node: NodeId) -> None:
        conf_state = ConfState(voters=IDS)
        # A single position before the first entry, as after a founding snapshot.
        self.window = LogWindow(
            first_index=Index(2),
            prev_term=Term(1),
            hard_state=HardState(term=Term(1), commit=Index(1)),
            conf_state=conf_state,
            durable=lambda: (self.applied, conf_state),
        )
        self.applied = Index(1)
        self.raw = RawNode(
            Config(
                id=node,
                election_ticks=10,
                heartbeat_ticks=1,
                storage=self.window,
                random=Random(node),
                log_sink=Silent(),
                applied=Index(1),
                async_storage_writes=True,
                max_size_per_msg_bytes=1024 * 1024,
                max_inflight_msgs=256,
                check_quorum=True,
                pre_vote=True,
            )
        )

    def work(self) -> list[Message]:
        """Carry out every Ready there is; what is to be sent."""
        raw, sent = self.raw, []
        while raw.has_ready():
            for message in raw.ready().messages:
                if message.to == LOCAL_APPEND_THREAD:
                    self.window.append(message.entries)
                elif message.to == LOCAL_APPLY_THREAD:
                    self.applied = message.entries[-1].index
                else:
                    sent.append(message)
                    continue
                for response in message.responses:
                    if response.to == raw.id:
                        raw.step(response)
                    else:
                        sent.append(response)
        return sent


class Cluster:
    """Three members and the messages between them."""

    def __init__(self) -> None:
        self.members = {node: Member(node) for node in IDS}
        self.leader = self.members[LEADER]
        self.silent: NodeId | None = None
        self.leader.raw.campaign()
        self.settle()
        if not self.leader.raw.is_leader:
            raise RuntimeError("nobody was elected")

    def settle(self) -> None:
        """Deliver until nothing is under way. What goes to or comes from the silent member is lost."""
        active = [member for node, member in self.members.items() if node != self.silent]
        under_way: deque[Message] = deque()
        while True:
            for member in active:
                under_way.extend(member.work())
            if not under_way:
                return
            while under_way:
                message = under_way.popleft()
                if message.to != self.silent:
                    self.members[message.to].raw.step(message)

    def commit(self, count: int, batch: list[bytes]) -> None:
        """Propose `count` entries in batches; each is applied by all who are not silent before the next."""
        for _ in range(count // len(batch)):
            self.leader.raw.propose_batch(batch)
            self.settle()
        for node, member in self.members.items():
            if node != self.silent and member.applied != self.leader.window.last_index():
                raise RuntimeError(f"member {node} has applied {member.applied} of {self.leader.window.last_index()}")

    def compact(self) -> None:
        """Keep as much of the log as the server does by default."""
        for member in self.members.values():
            member.window.compact(member.window.cap_index(WINDOW_ENTRIES, 1 << 40))

    def grow_to(self, length: int, batch: list[bytes]) -> None:
        """Commit until the leader's log holds `length` entries."""
        missing = length - self.leader.window.entry_count
        self.commit(max(0, missing) + len(batch) - 1, batch)

    def heartbeat(self) -> None:
        """One tick of the leader, and what follows from it."""
        self.leader.raw.tick()
        self.settle()

    def catch_up(self) -> int:
        """Let the silent member speak again until it holds everything; how many entries it got."""
        self.silent = None
        laggard, target = self.members[LAGGARD], self.leader.window.last_index()
        began = laggard.window.last_index()
        for _ in range(MAX_CATCH_UP_TICKS):
            self.heartbeat()  # the answer shows the leader that the member is back, the rejection of a probe where its log ends
            if laggard.applied == target:
                return target - began
        raise RuntimeError(f"the member came no further than {laggard.applied} of {target}")


def measure_throughput(rounds: int, count: int, batch: list[bytes]) -> tuple[list[float], list[float]]:
    """Entries per second of each round: by the wall clock, and by CPU time."""
    cluster = Cluster()
    wall, cpu = [], []
    for number in range(rounds + 1):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for _ in range(10):
            cluster.commit(count // 10, batch)
            cluster.compact()
        if number:  # the first round warms up
            wall.append(count / (time.perf_counter() - began_s))
            cpu.append(count / (time.process_time() - began_cpu_s))
    return wall, cpu


def cost_us(cluster: Cluster, count: int, batch: list[bytes]) -> float:
    """CPU microseconds per entry."""
    count -= count % len(batch)
    began_s = time.process_time()
    cluster.commit(count, batch)
    return (time.process_time() - began_s) / count * 1e6


def cluster_with(length: int, silent: NodeId | None, batch: list[bytes]) -> Cluster:
    """A cluster whose log holds `length` entries, committed without the silent member."""
    cluster = Cluster()
    cluster.silent = silent
    cluster.grow_to(length, batch)
    return cluster


def measure_length(rounds: int, batch: list[bytes], silent: NodeId | None) -> dict[int, float]:
    """Cost per entry at both lengths of the log, which the silent member, if any, lacks."""
    long = cluster_with(LONG, silent, batch)
    costs: dict[int, list[float]] = {SHORT: [], LONG: []}
    for _ in range(rounds * 4):  # each over as many entries as the short log has, or it would not be short any more
        costs[SHORT].append(cost_us(cluster_with(SHORT, silent, batch), SHORT, batch))
        costs[LONG].append(cost_us(long, SHORT, batch))
    return {length: statistics.median(found) for length, found in costs.items()}


def measure_catch_up(rounds: int, batch: list[bytes]) -> dict[int, float]:
    """Cost per entry of bringing the third member back from behind by as much."""
    costs: dict[int, list[float]] = {SHORT: [], LONG: []}
    for _ in range(rounds):
        for length in (*[SHORT] * 8, LONG):
            cluster = cluster_with(length, LAGGARD, batch)
            began_s = time.process_time()
            count = cluster.catch_up()
            costs[length].append((time.process_time() - began_s) / count * 1e6)
    return {length: statistics.median(found) for length, found in costs.items()}


def profile_line(count: int, batch: list[bytes]) -> str:
    """The functions that take most of the time, without what they call."""
    cluster = Cluster()
    count -= count % len(batch)
    profile = cProfile.Profile()
    profile.runcall(cluster.commit, count, batch)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total_s = sum(own_s for _, _, own_s, _, _ in stats.values())
    top = sorted(stats.items(), key=lambda item: -item[1][2])[:10]
    return "profile: " + ", ".join(
        f"{Path(file).stem + '.' if line else ''}{name} {own_s / total_s:.0%}" for (file, line, name), (_, _, own_s, _, _) in top
    )


def main() -> int:
    """Measure and print; the exit code is 1 only with --check and a missed goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=32_000, help="entries per round (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="bytes of an entry (default %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="entries per proposal (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="one more line: the functions that take most of the time")
    parser.add_argument("--check", action="store_true", help="fail if a goal is missed")
    options = parser.parse_args()
    batch = [b"v" * options.size] * options.batch
    count = options.entries - options.entries % (10 * options.batch)

    wall, cpu = measure_throughput(options.rounds, count, batch)
    rate = statistics.median(wall)
    missed = [] if rate >= GOAL_PER_S else [f"{rate:,.0f} entries/s are fewer than {GOAL_PER_S:,}"]
    print(f"three members, {options.size} B, batches of {options.batch}, one core, median of {options.rounds} rounds of {count:,} entries")
    print(f"throughput: {rate:,.0f} entries/s (range {min(wall):,.0f}-{max(wall):,.0f}; by CPU time {statistics.median(cpu):,.0f})")
    for title, costs in (
        ("log length", measure_length(options.rounds, batch, None)),
        ("a silent member's lag", measure_length(options.rounds, batch, LAGGARD)),
        ("catching up from", measure_catch_up(options.rounds, batch)),
    ):
        growth = costs[LONG] / costs[SHORT]
        print(f"{title}: {costs[SHORT]:.1f} us per entry at {SHORT:,}, {costs[LONG]:.1f} us at {LONG:,} ({growth:.2f} times)")
        if growth > MAX_GROWTH:
            missed.append(f"{title}: cost grows {growth:.2f} times")
    if options.profile:
        print(profile_line(count // 4, batch))
    for reason in missed:
        print(f"missed: {reason}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
