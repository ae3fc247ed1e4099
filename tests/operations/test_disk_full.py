"""docs/operations/disk-full.md, as it stands: a full member makes room, and gets another disk for its log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kvserver.testing.docs_procedure import OPERATIONS, Procedure
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster
from kvserver.testing.small_disk import SmallDiskError, fill, small_disk

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

NO_SPACE = "etcdserver: mvcc: database space exceeded"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ProcessCluster]:
    with ProcessCluster(tmp_path / "cluster", flags=("--wal-segment-bytes=1MiB",), ports=PortAllocator()) as three:
        try:
            with small_disk(three.nodes[0].data_dir, size_mib=64):
                three.start()
                yield three
                for node in three.nodes:
                    node.kill()
        except SmallDiskError as error:
            pytest.skip(f"no small disk can be mounted: {error}")


def refused(endpoint: str) -> str:
    """The answer to the first put that is not taken, as far as it is a refusal."""
    calls = KvCalls(endpoint)
    try:
        for number in range(2000):
            try:
                calls.put(b"fill/%d" % number, b"v" * 20_000, timeout_s=10.0)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return str(error.details())
    finally:
        calls.close()
    return "never refused"


def test_the_procedure_for_a_full_disk(cluster: ProcessCluster, tmp_path: Path) -> None:
    full, *others = cluster.nodes
    names = {f"10.0.0.{number}:2379": node.endpoint for number, node in enumerate(cluster.nodes, 1)}
    names |= {f"10.0.0.{number}:2380": f"127.0.0.1:{node.peer_port}" for number, node in enumerate(cluster.nodes, 1)}
    names |= {
        "10.0.0.1:2381": f"127.0.0.1:{full.http_port}",
        "/var/lib/kvserver-log": str(tmp_path / "log-disk"),
        "/var/lib/kvserver": str(full.data_dir),
    }
    page = Procedure.read(OPERATIONS / "disk-full.md", names, tmp_path)
    fill(full.data_dir, leave_bytes=256 << 10, name="old-backup.tar")
    assert refused(full.endpoint) == NO_SPACE
    calls = KvCalls(others[0].endpoint)
    wait_until(lambda: taken(calls), "the others go on")

    looked = page.run("look").stdout
    assert 'kvserver_disk_space_short{what="store"}' in looked
    assert " 1.0\n" in looked
    assert "old-backup.tar" in looked
    assert ", short of disk space (" in looked, "endpoint status says it"
    said = full.log_events("short of disk space: writes are refused")
    assert said
    assert all(str(full.data_dir) in str(line["needed_bytes"]) for line in said)
    page.run("free")
    wait_until(
        lambda: sum(short for name, short in full.metrics().items() if name.startswith("kvserver_disk_space_short")) == 0, "it is over"
    )
    checked = page.run("check").stdout
    assert checked.count(" 0.0\n") == 3
    assert checked.endswith("OK\ngreeting\nhello\n")
    assert full.is_running
    assert full.log_events("there is disk space again: writes are taken")

    full.stop()
    page.run("move")
    full.flags = [*page.server_flags("start"), "--wal-segment-bytes=1MiB"]
    full.start()
    page.run("remove the copy")
    assert sorted((full.data_dir / "member").iterdir()) == [full.data_dir / "member" / "lock", full.data_dir / "member" / "snap"]
    assert taken(KvCalls(full.endpoint))
    page.check_all_used()
    fatal = [line for line in full.log_path.read_text().splitlines() if line.startswith("{") and json.loads(line)["level"] == "fatal"]
    assert fatal == []
    calls.close()


def is_short(node: NodeProcess) -> bool:
    """What the member's metrics say."""
    return any(value for name, value in node.metrics().items() if name.startswith("kvserver_disk_space_short"))


def taken(calls: KvCalls) -> bool:
    """Whether a put is."""
    try:
        calls.put(b"probe", b"x", timeout_s=10.0)
    except grpc.RpcError:
        return False
    return True
