"""A disk that fails: the process ends with a readable message, acknowledges nothing more, and starts again from what it had proved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvserver.testing.load import Acknowledged, KvCalls, differences
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

PREFIX = b"k/"
WAIT_S = 40.0
FAILING_STORE = Path(__file__).with_name("failing_store.py")


def put_until_it_fails(node: NodeProcess, acknowledged: dict[bytes, Acknowledged], *, at_most: int, value: bytes = b"v" * 500) -> int:
    """Put one after the other; how many were acknowledged before the first failure, or `at_most`."""
    calls = KvCalls(node.endpoint)
    try:
        for count in range(at_most):
            key = PREFIX + b"%08d" % len(acknowledged)
            try:
                revision = calls.put(key, value, 10.0)
            except grpc.RpcError:
                return count
            acknowledged[key] = Acknowledged(value, revision, time.monotonic())
        return at_most
    finally:
        calls.close()


def fatal_lines(node: NodeProcess) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] == "fatal"]


def segments(node: NodeProcess) -> list[str]:
    return sorted(path.name for path in (node.data_dir / "member" / "wal").glob("*.wal"))


@pytest.mark.parametrize(
    ("fault", "first_put_fails", "end_is_unproven"),
    [
        pytest.param("fdatasync:EIO", True, True, id="sync of a save"),
        pytest.param("pwritev:EIO:partial", True, True, id="write, half done"),
        # The new segment is in place and synced, and holds nothing yet: the next start syncs the directory again.
        pytest.param("fsync_dir:EIO:path=wal", False, False, id="directory sync at a cut"),
        pytest.param("fsync:EIO:path=*.wal.tmp", False, True, id="sync of a new segment", marks=pytest.mark.slow),
    ],
)
def test_an_io_error_of_the_log_ends_the_process_and_a_restart_works(
    make_node: Callable[..., NodeProcess], tmp_path: Path, fault: str, first_put_fails: bool, end_is_unproven: bool
) -> None:
    switch = tmp_path / "fails"
    node = make_node("--wal-segment-bytes=64KiB")
    node.faults = [f"{fault}:when={switch}"]
    node.start()
    acknowledged: dict[bytes, Acknowledged] = {}
    assert put_until_it_fails(node, acknowledged, at_most=20) == 20
    switch.touch()
    count = put_until_it_fails(node, acknowledged, at_most=2000)
    assert count < 2000
    assert count == 0 or not first_put_fails
    assert node.wait_ended(WAIT_S) == 1
    (line,) = fatal_lines(node)
    assert "write-ahead log failed (" in str(line["reason"])
    assert "Nothing more is acknowledged" in str(line["reason"])
    assert "Traceback" not in node.log_path.read_text()
    before = segments(node)
    node.faults = []
    node.start()
    assert differences(node.endpoint, PREFIX, acknowledged) == []
    assert (segments(node)[-1] > before[-1]) is end_is_unproven, "an unproven end is written again before the member votes"
    assert put_until_it_fails(node, acknowledged, at_most=5) == 5


def test_an_io_error_of_the_store_ends_the_process_and_a_restart_works(make_node: Callable[..., NodeProcess], tmp_path: Path) -> None:
    switch = tmp_path / "fails"
    node = make_node()
    node.program = (str(FAILING_STORE),)
    node.environment = {"STORE_FAILS": str(switch)}
    node.start()
    acknowledged: dict[bytes, Acknowledged] = {}
    assert put_until_it_fails(node, acknowledged, at_most=20) == 20
    switch.touch()
    # The log holds what is acknowledged until the commit is due, a tenth of a second later.
    assert put_until_it_fails(node, acknowledged, at_most=100_000) < 100_000
    assert node.wait_ended(WAIT_S) == 1
    (line,) = fatal_lines(node)
    assert "nothing after the last commit is durable" in str(line["reason"])
    assert "Traceback" not in node.log_path.read_text()
    switch.unlink()
    node.start()
    assert differences(node.endpoint, PREFIX, acknowledged) == []


def test_a_follower_whose_disk_fails_leaves_and_the_others_go_on(make_cluster: Callable[..., ProcessCluster], tmp_path: Path) -> None:
    switch = tmp_path / "fails"
    cluster = make_cluster()
    for node in cluster.nodes:
        node.faults = [f"fdatasync:EIO:when={switch}.{node.name}"]
    cluster.start()
    leader = cluster.leader()
    failing = next(node for node in cluster.nodes if node is not leader)
    acknowledged: dict[bytes, Acknowledged] = {}
    assert put_until_it_fails(leader, acknowledged, at_most=20) == 20
    Path(f"{switch}.{failing.name}").touch()
    assert put_until_it_fails(leader, acknowledged, at_most=50) == 50
    assert failing.wait_ended(WAIT_S) == 1
    assert put_until_it_fails(leader, acknowledged, at_most=20) == 20
    failing.faults = []
    failing.start()
    for node in cluster.nodes:
        assert differences(node.endpoint, PREFIX, acknowledged) == []
