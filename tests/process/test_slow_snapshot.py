"""A member that takes its snapshot slowly costs the leader no store space: the copy is a file of its own, no read view is kept open."""

from __future__ import annotations

import signal
import time

import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.load import KvCalls, hashes
from kvserver.testing.processes import NodeProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

VALUE_BYTES = 500_000
KEYS = 30
CHURN = 100
"""Overwrites while the stream stands still: 50 MB, each of which a read view would keep from being reused."""


def put_round(calls: KvCalls, count: int) -> None:
    """Overwrite the keys in turn, and compact away what was overwritten."""
    for number in range(count):
        revision = calls.put(b"slow/%02d" % (number % KEYS), number.to_bytes(4, "big") * (VALUE_BYTES // 4), timeout_s=30)
        if number % 10 == 9:
            calls.compact(revision)


def store_bytes(node: NodeProcess) -> int:
    return (node.data_dir / "member" / "snap" / "db").stat().st_size


def wait_for_snapshot_stream(leader: NodeProcess) -> None:
    until_s = time.monotonic() + 60
    while not leader.log_events("sending database snapshot"):
        assert time.monotonic() < until_s, "no snapshot was begun"
        time.sleep(0.01)


def test_a_snapshot_stream_that_stands_still_does_not_grow_the_store_of_the_leader(make_cluster) -> None:
    cluster = make_cluster(flags=("--log-window-entries=20", "--log-window-bytes=1MiB", "--wal-retain-bytes=0"))
    cluster.start()
    leader = cluster.leader()
    laggard = next(node for node in cluster.nodes if node is not leader)
    calls = KvCalls(leader.endpoint)
    put_round(calls, KEYS)
    laggard.kill()
    put_round(calls, 2 * KEYS)
    laggard.start(wait_ready=False)
    wait_for_snapshot_stream(leader)
    laggard.send_signal(signal.SIGSTOP)
    assert not leader.log_events("sent database snapshot"), "it was delivered before the member was stopped: nothing is shown"
    before = store_bytes(leader)
    put_round(calls, CHURN)
    assert not leader.log_events("sent database snapshot")
    grown = store_bytes(leader) - before
    assert grown < CHURN * VALUE_BYTES // 4, f"the store grew by {grown} bytes"
    laggard.send_signal(signal.SIGCONT)
    laggard.wait_ready(120)
    last = calls.range(rpc_pb2.RangeRequest(key=b"slow/", count_only=True)).header.revision
    until_s = time.monotonic() + 60
    behind = KvCalls(laggard.endpoint)
    while behind.range(rpc_pb2.RangeRequest(key=b"slow/", count_only=True, serializable=True)).header.revision < last:
        assert time.monotonic() < until_s, "the member does not catch up"
        time.sleep(0.05)
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1
    calls.close()
    behind.close()
