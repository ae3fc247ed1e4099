"""`make demo`: the story of a three-node cluster, on real processes, readable as it goes. Exit code 0 only if every check held."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvserver.testing.load import AcknowledgedWriters, differences, hashes
from kvserver.testing.processes import NodeProcess, NodeStartError, ProcessCluster

WINDOW_ENTRIES = 2_000
WITHIN_WINDOW = 300
VALUE_SIZE_BYTES = 256


class CheckFailedError(Exception):
    """A promise of the story did not hold."""


class Demo:
    """The cluster and the story's steps."""

    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster
        self.step_number = 0

    def step(self, text: str) -> None:
        """Announce the next step."""
        self.step_number += 1
        print(f"\n{self.step_number}. {text}", flush=True)

    def check(self, held: bool, text: str) -> None:
        """Print a check's outcome; a failed one ends the story."""
        print(f"   {'ok  ' if held else 'FAIL'} {text}", flush=True)
        if not held:
            raise CheckFailedError(text)

    def kvctl(self, *arguments: str) -> str:
        """Run kvctl against all endpoints and show command and output."""
        shown = " ".join(arguments)
        answer = subprocess.run(
            [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={self.cluster.endpoints}", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        print(f"   $ kvctl {shown}")
        for line in (answer.stdout + answer.stderr).splitlines():
            print(f"     {line}")
        self.check(answer.returncode == 0, f"kvctl {arguments[0]} succeeded")
        return answer.stdout

    def show_windows(self) -> None:
        """The log window of every member that runs: what it holds in memory, of how much."""
        for node in self.cluster.nodes:
            if not node.is_running:
                print(f"     {node.name}  down")
                continue
            metrics = node.metrics()
            first, last = metrics["kvserver_log_window_first_index"], metrics["kvserver_log_window_last_index"]
            print(
                f"     {node.name}  window [{first:.0f} .. {last:.0f}]  {last - first + 1:.0f} entries, "
                f"{metrics['kvserver_log_window_bytes'] / 1024:.0f} KiB  "
                f"RssAnon {node.anonymous_bytes() / 2**20:.0f} MiB{'  (leader)' if metrics['etcd_server_is_leader'] else ''}"
            )

    def write(self, label: str, puts: int) -> AcknowledgedWriters:
        """Put at least `puts` acknowledged values through the members that run."""
        endpoints = [node.endpoint for node in self.cluster.nodes if node.is_running]
        prefix = f"demo/{label}/".encode()
        began_s = time.monotonic()
        with AcknowledgedWriters(endpoints, prefix=prefix, value_size_bytes=VALUE_SIZE_BYTES) as writers:
            done = writers.wait_more(puts, timeout_s=120)
        elapsed_s = time.monotonic() - began_s
        self.check(done, f"{writers.count()} puts acknowledged in {elapsed_s:.1f} s")
        return writers

    def check_held_everywhere(self, label: str, writers: AcknowledgedWriters) -> None:
        """Every acknowledged put is on every member, and the members are equal."""
        prefix = f"demo/{label}/".encode()
        wrong = [line for node in self.cluster.nodes for line in differences(node.endpoint, prefix, writers.acknowledged)]
        for line in wrong[:5]:
            print(f"     {line}")
        self.check(not wrong, f"all {writers.count()} acknowledged puts are on every member, value and mod_revision")
        found = hashes([node.endpoint for node in self.cluster.nodes])
        self.check(len(found) == 1, f"HashKV is equal on all members ({', '.join(f'{value:08x}' for value in found)})")


def snapshots_received(node: NodeProcess) -> float:
    """How many snapshots this life of the member installed."""
    return node.metrics()["kvserver_snapshots_received_total"]


def follower_of(cluster: ProcessCluster) -> NodeProcess:
    """Some member that does not lead."""
    leader = cluster.leader()
    return next(node for node in cluster.nodes if node is not leader)


def tell(demo: Demo) -> None:
    """The story."""
    cluster = demo.cluster
    demo.step("Three nodes, three processes, three data directories")
    cluster.start()
    for node in cluster.nodes:
        print(f"     {node.name}  {node.endpoint}  pid {node.pid}")
    demo.kvctl("endpoint", "status", "-w", "table")
    demo.kvctl("member", "list", "-w", "table")

    demo.step("Put and get through the CLI")
    demo.kvctl("put", "hello", "world")
    demo.check(demo.kvctl("get", "hello").split() == ["hello", "world"], "the value came back")

    demo.step("Write, and look at each member's log window: nobody is behind, so hardly anything is held")
    writers = demo.write("healthy", 1_000)
    demo.show_windows()
    demo.check_held_everywhere("healthy", writers)

    demo.step("Kill a follower (SIGKILL), write within the window, restart it: it needs entries only")
    victim = follower_of(cluster)
    victim.kill()
    print(f"     {victim.name} is dead")
    writers = demo.write("within", WITHIN_WINDOW)
    demo.show_windows()
    victim.start()
    demo.check_held_everywhere("within", writers)
    demo.check(snapshots_received(victim) == 0, f"{victim.name} caught up without a snapshot")

    demo.step("Kill it again, write far beyond the window, restart it: it needs a snapshot")
    victim.kill()
    writers = demo.write("beyond", 2 * WINDOW_ENTRIES)
    demo.show_windows()
    victim.start()
    demo.check_held_everywhere("beyond", writers)
    demo.check(snapshots_received(victim) == 1, f"{victim.name} caught up by one snapshot")
    demo.show_windows()

    demo.step("Kill the leader while four clients write")
    endpoints = [node.endpoint for node in cluster.nodes]
    with AcknowledgedWriters(endpoints, prefix=b"demo/failover/", value_size_bytes=VALUE_SIZE_BYTES) as writers:
        demo.check(writers.wait_more(500, timeout_s=60), "load is running")
        leader = cluster.leader()
        killed_s = time.monotonic()
        leader.kill()
        print(f"     {leader.name} (the leader) is dead")
        demo.check(writers.wait_more(500, timeout_s=30), "writes go on")
        pause_s = writers.longest_gap_s(killed_s)
        leader.start()
    print(f"     writes paused for {pause_s:.2f} s; {writers.failed} calls failed and count as unknown")
    demo.check(pause_s < 6.0, "the pause stayed below 6 s")
    demo.check_held_everywhere("failover", writers)
    demo.show_windows()

    demo.step("Stop all three in an orderly way")
    for node in cluster.nodes:
        demo.check(node.stop() == 0, f"{node.name} stopped with exit code 0")


def main() -> int:
    """Run the story in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="kvserver-demo-") as directory:
        flags = [f"--log-window-entries={WINDOW_ENTRIES}", "--wal-retain-bytes=0"]
        with ProcessCluster(Path(directory), flags=flags) as cluster:
            try:
                tell(Demo(cluster))
            except (CheckFailedError, NodeStartError, LookupError) as failure:
                print(f"\nThe demo failed: {failure}", file=sys.stderr)
                return 1
    print("\nEvery check held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
