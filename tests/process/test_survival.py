"""The promises of the product on real processes: kill, restart, catch up; nothing acknowledged is lost."""

from __future__ import annotations

import shutil
import time

import pytest

from kvserver.testing.load import AcknowledgedWriters, KvCalls, differences, hashes
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

MEBIBYTE = 1 << 20


def assert_equal_everywhere(cluster: ProcessCluster, prefix: bytes, writers: AcknowledgedWriters) -> None:
    wrong = [line for node in cluster.nodes for line in differences(node.endpoint, prefix, writers.acknowledged)]
    assert wrong == []
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1


def follower_of(cluster: ProcessCluster) -> NodeProcess:
    leader = cluster.leader()
    return next(node for node in cluster.nodes if node is not leader)


def test_writes_resume_after_each_of_ten_leader_kills_and_nothing_acknowledged_is_lost(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    endpoints = [node.endpoint for node in cluster.nodes]
    pauses_s = []
    with AcknowledgedWriters(endpoints, prefix=b"kills/") as writers:
        assert writers.wait_more(100, timeout_s=30)
        for _ in range(10):
            leader = cluster.leader()
            killed_s = time.monotonic()
            leader.kill()
            assert writers.wait_more(50, timeout_s=30), "writes did not resume"
            pauses_s.append(writers.longest_gap_s(killed_s))
            leader.start()
            assert writers.wait_more(50, timeout_s=30)
    assert max(pauses_s) < 6.0, pauses_s
    assert sum(pause < 3.0 for pause in pauses_s) >= 9, pauses_s
    assert_equal_everywhere(cluster, b"kills/", writers)


def test_a_follower_restarted_within_the_window_catches_up_from_entries_alone(make_cluster) -> None:
    cluster = make_cluster(flags=("--log-window-entries=4000",))
    cluster.start()
    victim = follower_of(cluster)
    victim.kill()
    endpoints = [node.endpoint for node in cluster.nodes if node is not victim]
    with AcknowledgedWriters(endpoints, prefix=b"within/") as writers:
        assert writers.wait_more(500, timeout_s=60)
    victim.start()
    assert_equal_everywhere(cluster, b"within/", writers)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 0


def test_a_follower_restarted_beyond_the_window_catches_up_by_one_snapshot(make_cluster) -> None:
    cluster = make_cluster(flags=("--log-window-entries=200", "--wal-retain-bytes=0"))
    cluster.start()
    victim = follower_of(cluster)
    victim.kill()
    endpoints = [node.endpoint for node in cluster.nodes if node is not victim]
    with AcknowledgedWriters(endpoints, prefix=b"beyond/") as writers:
        assert writers.wait_more(1000, timeout_s=60)
    victim.start()
    assert_equal_everywhere(cluster, b"beyond/", writers)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 1
    victim.kill()
    victim.start()
    assert_equal_everywhere(cluster, b"beyond/", writers)


def test_all_three_killed_at_once_come_back_with_everything_acknowledged(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    with AcknowledgedWriters([node.endpoint for node in cluster.nodes], prefix=b"all/") as writers:
        assert writers.wait_more(500, timeout_s=60)
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start(wait_ready=False)
        for node in cluster.nodes:
            node.wait_ready()
        assert writers.wait_more(100, timeout_s=60)
    assert_equal_everywhere(cluster, b"all/", writers)


def test_an_idle_cluster_frees_its_window_once_the_follower_is_back(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    victim = follower_of(cluster)
    victim.kill()
    endpoints = [node.endpoint for node in cluster.nodes if node is not victim]
    with AcknowledgedWriters(endpoints, prefix=b"idle/") as writers:
        assert writers.wait_more(500, timeout_s=60)
    leader = cluster.leader()
    assert leader.metrics()["kvserver_log_window_entries"] >= 500
    victim.start()
    assert_equal_everywhere(cluster, b"idle/", writers)
    held = {node.name: 0.0 for node in cluster.nodes}
    until_s = time.monotonic() + 5.0
    while time.monotonic() < until_s:
        held = {node.name: node.metrics()["kvserver_log_window_entries"] for node in cluster.nodes}
        if max(held.values()) < 100:
            break
    assert max(held.values()) < 100, held


def test_a_leader_hands_over_on_sigterm_and_writes_hardly_pause(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    with AcknowledgedWriters([node.endpoint for node in cluster.nodes], prefix=b"handover/") as writers:
        assert writers.wait_more(100, timeout_s=30)
        leader = cluster.leader()
        began_s = time.monotonic()
        assert leader.stop() == 0
        assert time.monotonic() - began_s < 3.0
        assert writers.wait_more(100, timeout_s=30)
        pause_s = writers.longest_gap_s(began_s)
        assert leader.log_events("leadership transfer finished")
        leader.start()
    assert pause_s < 1.0, "an election time-out passed: leadership was not handed over"
    assert_equal_everywhere(cluster, b"handover/", writers)


def test_a_member_whose_directory_was_wiped_may_not_come_back_under_its_old_id(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    victim = follower_of(cluster)
    victim.kill()
    shutil.rmtree(victim.data_dir)
    victim.start(wait_ready=False)
    assert victim.wait_ended(timeout_s=20) == 1
    assert "has already been bootstrapped" in victim.log_path.read_text()


def put_megabytes(endpoint: str, count: int) -> None:
    calls = KvCalls(endpoint)
    try:
        for number in range(count):
            calls.put(b"large/%06d" % number, number.to_bytes(8, "big") * 125_000, timeout_s=10.0)
    finally:
        calls.close()


class PeakMemory:
    """Samples RssAnon of processes while a block runs."""

    def __init__(self, nodes: list[NodeProcess]) -> None:
        import threading

        self.peaks = dict.fromkeys((node.name for node in nodes), 0)
        self.samples = 0
        self._nodes = nodes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            for node in self._nodes:
                self.peaks[node.name] = max(self.peaks[node.name], node.anonymous_bytes())
            self.samples += 1

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        assert self.samples > 50, "memory was hardly sampled"
        assert min(self.peaks.values()) > 10_000_000, self.peaks


def test_a_thousand_puts_of_one_megabyte_keep_a_single_node_below_150_mb(make_cluster) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    with PeakMemory(cluster.nodes) as memory:
        put_megabytes(cluster.nodes[0].endpoint, 1000)
    assert memory.peaks["kv1"] < 150 * 1_000_000, memory.peaks


def test_a_thousand_puts_of_one_megabyte_keep_each_of_three_nodes_below_200_mb(make_cluster) -> None:
    cluster = make_cluster()
    cluster.start()
    with PeakMemory(cluster.nodes) as memory:
        put_megabytes(cluster.leader().endpoint, 1000)
    assert max(memory.peaks.values()) < 200 * 1_000_000, memory.peaks
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1
