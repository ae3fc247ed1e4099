"""A follower that is behind what memory holds: fed from the WAL as far as that is retained, by one snapshot beyond."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvserver.testing.load import KvCalls, hashes
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

WINDOW = ("--log-window-bytes=1MiB", "--log-window-entries=200")
WRITERS = 4


def put_many(endpoint: str, count: int, size_bytes: int) -> None:
    """`count` puts of distinct keys, by a few clients at once."""

    def run(writer: int) -> None:
        calls = KvCalls(endpoint)
        try:
            for number in range(writer, count, WRITERS):
                calls.put(b"behind/%06d" % number, number.to_bytes(8, "big") * (size_bytes // 8), timeout_s=30.0)
        finally:
            calls.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(run, range(WRITERS)))


def behind(cluster: ProcessCluster, count: int, size_bytes: int) -> tuple[NodeProcess, NodeProcess]:
    """The leader, and a follower that was killed before `count` writes."""
    cluster.start()
    leader = cluster.leader()
    victim = next(node for node in cluster.nodes if node is not leader)
    victim.kill()
    put_many(leader.endpoint, count, size_bytes)
    return leader, victim


def wait_caught_up(leader: NodeProcess, victim: NodeProcess) -> list[int]:
    """Wait until the follower has applied what the leader has; the leader's anonymous memory meanwhile, in bytes."""
    samples = []
    until_s = time.monotonic() + 120
    wanted = leader.metrics()["etcd_server_proposals_applied_total"]
    while victim.metrics()["etcd_server_proposals_applied_total"] < wanted:
        samples.append(leader.anonymous_bytes())
        assert time.monotonic() < until_s, "the follower does not catch up"
        time.sleep(0.02)
    samples.append(leader.anonymous_bytes())
    return samples


def test_a_follower_far_behind_memory_is_fed_from_the_wal_without_a_snapshot_while_memory_stays_flat(make_cluster) -> None:
    cluster = make_cluster(flags=WINDOW)
    leader, victim = behind(cluster, 5_000, 10_000)
    shown = leader.metrics()
    assert shown["kvserver_log_window_bytes"] < 2 << 20
    assert shown["kvserver_log_first_index"] < 100 < 4_000 < shown["kvserver_log_window_first_index"]
    before = leader.anonymous_bytes()
    victim.start()
    samples = wait_caught_up(leader, victim)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 0
    assert max(samples) < before + 40_000_000, "what is on its way to one member: 16 MiB of blocks and messages, twice at most"
    shown = leader.metrics()
    assert shown["kvserver_wal_reads_total"] > 20
    assert shown["kvserver_wal_read_bytes_total"] > 40_000_000
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1


def test_a_follower_beyond_the_retained_wal_gets_exactly_one_snapshot(make_cluster) -> None:
    cluster = make_cluster(flags=(*WINDOW, "--wal-retain-bytes=32MiB"))
    leader, victim = behind(cluster, 1_000, 100_000)
    shown = leader.metrics()
    assert shown["kvserver_wal_bytes"] < (32 + 16 + 16) << 20
    victim.start()
    wait_caught_up(leader, victim)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 1
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1


def test_a_follower_is_fed_from_the_wal_while_writes_go_on_and_by_a_leader_that_was_restarted(make_cluster) -> None:
    cluster = make_cluster(flags=WINDOW)
    _, victim = behind(cluster, 500, 10_000)
    for node in cluster.nodes:
        if node is not victim:
            node.kill()
            node.start(wait_ready=False)
    for node in cluster.nodes:
        if node is not victim:
            node.wait_ready()
    leader = cluster.leader()
    victim.start(wait_ready=False)
    put_many(leader.endpoint, 500, 10_000)
    victim.wait_ready()
    wait_caught_up(leader, victim)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 0
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1


def test_with_nothing_retained_a_follower_beyond_memory_gets_a_snapshot(make_cluster) -> None:
    cluster = make_cluster(flags=(*WINDOW, "--wal-retain-bytes=0"))
    leader, victim = behind(cluster, 500, 10_000)
    victim.start()
    wait_caught_up(leader, victim)
    assert victim.metrics()["kvserver_snapshots_received_total"] == 1
    assert leader.metrics()["kvserver_wal_reads_total"] == 0
