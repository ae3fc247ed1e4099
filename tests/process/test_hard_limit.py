"""A budget that holds: members with `--memory-budget=128MB`, each in a memory cgroup of 160 MB, where exceeding it means being killed."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvserver.testing.cgroup import CgroupUnavailableError, MemoryCgroup
from kvserver.testing.load import hashes
from kvserver.testing.processes import NodeProcess, ProcessCluster
from tests.process.large_puts import MEGABYTE, count_keys, peak_of, put_all

pytestmark = pytest.mark.process

LIMIT_BYTES = 160 * MEGABYTE
BUDGET_BYTES = 128 * MEGABYTE
FLAGS = (f"--memory-budget={BUDGET_BYTES}", "--quota-backend-bytes=8GiB")


@pytest.fixture
def limited(make_cluster: Callable[..., ProcessCluster]) -> Iterator[Callable[..., dict[str, MemoryCgroup]]]:
    """Puts every member of a cluster that has not started into a group of its own; skips where there can be none."""
    with ExitStack() as groups:
        nodes: list[NodeProcess] = []

        def limit(cluster: ProcessCluster) -> dict[str, MemoryCgroup]:
            made = {}
            for node in cluster.nodes:
                try:
                    group = groups.enter_context(MemoryCgroup(f"kvserver-test-{os.getpid()}-{node.name}", LIMIT_BYTES))
                except CgroupUnavailableError as error:
                    pytest.skip(str(error))
                node.launcher, made[node.name] = group.launcher, group
                nodes.append(node)
            return made

        yield limit
        for node in nodes:
            node.kill()


def survive(cluster: ProcessCluster, groups: dict[str, MemoryCgroup], *, puts: int, clients: int) -> None:
    """A third of the puts with everybody there, a third without a follower, and a third while it comes back by a snapshot."""
    third = puts // 3
    cluster.start()
    leader = cluster.leader()
    victim = next(node for node in cluster.nodes if node is not leader)
    failures: list[str] = []

    def put(part: int) -> None:
        failures.extend(asyncio.run(put_all(leader.endpoint, clients=clients, puts=third, first=part * third)))

    with peak_of(leader) as leader_peak:
        put(0)
        victim.kill()
        put(1)
        writer = threading.Thread(target=put, args=(2,), name="puts-while-catching-up")
        writer.start()
        victim.start(wait_ready=False)
        with peak_of(victim) as victim_peak:
            writer.join()
            victim.wait_ready(timeout_s=300)  # it is, when it has what the others had
            assert asyncio.run(count_keys(victim.endpoint)) == 3 * third
    print(f"peaks of anonymous memory: leader {leader_peak[0] / MEGABYTE:.0f} MB, returning member {victim_peak[0] / MEGABYTE:.0f} MB")
    assert failures == []
    assert {name: group.kills for name, group in groups.items()} == {"kv1": 0, "kv2": 0, "kv3": 0}
    assert victim.metrics()["kvserver_snapshots_received_total"] >= 1
    assert max(group.peak_bytes for group in groups.values()) > LIMIT_BYTES // 2, "the limit was never near: the test shows nothing"
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1


def test_members_within_a_hard_limit_survive_large_puts_a_restart_and_a_snapshot(make_cluster, limited) -> None:
    cluster = make_cluster(flags=(*FLAGS, "--wal-retain-bytes=0"))
    survive(cluster, limited(cluster), puts=240, clients=10)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("clients", [1, 50])
def test_members_within_a_hard_limit_survive_three_thousand_large_puts(make_cluster, limited, clients: int) -> None:
    cluster = make_cluster(flags=FLAGS)
    survive(cluster, limited(cluster), puts=3000, clients=clients)


def test_the_limit_kills_what_exceeds_it(make_node: Callable[..., NodeProcess]) -> None:
    """What the tests above rely on."""
    try:
        group = MemoryCgroup(f"kvserver-test-{os.getpid()}-glutton", 16 * MEGABYTE)
    except CgroupUnavailableError as error:
        pytest.skip(str(error))
    with group:
        node = make_node()
        node.program, node.launcher = ("-c", "held = bytearray(64_000_000)"), group.launcher
        node.start(wait_ready=False)
        assert node.wait_ended(timeout_s=30) == -9
        assert group.kills >= 1
