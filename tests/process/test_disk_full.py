"""A full disk under real members: reads go on, writes are refused with the documented error, and space brings everything back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.load import Acknowledged, KvCalls, differences, hashes
from kvserver.testing.processes import NodeProcess, ProcessCluster
from kvserver.testing.small_disk import SmallDiskError, fill, small_disk

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NO_SPACE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
SHORT = "short of disk space: writes are refused"
AGAIN = "there is disk space again: writes are taken"
SEGMENT = "--wal-segment-bytes=1MiB"
VALUE = b"v" * 20_000
PREFIX = b"k/"
WAIT_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


def short(node: NodeProcess) -> dict[str, bool]:
    """What the member's metrics say is wanting."""
    samples = node.metrics()
    return {what: samples[f'kvserver_disk_space_short{{what="{what}"}}'] == 1.0 for what in ("store", "wal", "wal_spare")}


class Client:
    """Puts and reads on one endpoint; remembers what was acknowledged."""

    def __init__(self, endpoint: str, acknowledged: dict[bytes, Acknowledged]) -> None:
        self.calls = KvCalls(endpoint)
        self.name = endpoint.encode()
        self.acknowledged = acknowledged
        self.count = 0

    def put(self, *, value: bytes = VALUE, timeout_s: float = 10.0) -> tuple[grpc.StatusCode, str]:
        self.count += 1  # whether a failed one happened may be unknown: no key is used twice
        key = PREFIX + self.name + b"/%08d" % self.count
        try:
            revision = self.calls.put(key, value, timeout_s)
        except grpc.RpcError as error:
            return error.code(), error.details()
        self.acknowledged[key] = Acknowledged(value, revision, time.monotonic())
        return grpc.StatusCode.OK, ""

    def put_until_refused(self) -> None:
        """Write until the documented error comes; what is under way when the disk fills may time out instead."""
        deadline_s = time.monotonic() + WAIT_S
        while (answer := self.put()) != NO_SPACE:
            assert answer[0] in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), answer
            assert time.monotonic() < deadline_s, f"never refused; last: {answer}"

    def assert_reads_work(self) -> None:
        for serializable in (False, True):
            found = self.calls.range(rpc_pb2.RangeRequest(key=PREFIX, range_end=b"k0", count_only=True, serializable=serializable), 5.0)
            assert found.count >= len(self.acknowledged)

    def wait_taken(self) -> None:
        wait_until(lambda: self.put(value=b"small")[0] is grpc.StatusCode.OK, "a put is taken again")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Callable[[Path, int], Path]]:
    """Mounts small disks, which end with the test. Requested before the members: those are killed first."""
    with ExitStack() as mounted:

        def mount(path: Path, size_mib: int) -> Path:
            try:
                return mounted.enter_context(small_disk(path, size_mib=size_mib))
            except SmallDiskError as error:
                pytest.skip(f"no small disk can be mounted: {error}")

        yield mount


def lost(node: NodeProcess, acknowledged: dict[bytes, Acknowledged]) -> list[str]:
    return differences(node.endpoint, PREFIX, acknowledged)


def test_a_single_member_survives_a_full_disk_without_a_restart_and_with_one(
    disks: Callable[[Path, int], Path], make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(SEGMENT, directory=tmp_path / "solo")
    disk = disks(node.data_dir, 48)
    node.start()
    client = Client(node.endpoint, {})
    for _ in range(20):
        assert client.put()[0] is grpc.StatusCode.OK
    for _ in range(2):
        filler = fill(disk, leave_bytes=4 << 20)
        client.put_until_refused()
        wait_until(lambda: any(short(node).values()), "the metric says so")
        for _ in range(3):
            client.assert_reads_work()
            assert client.put() == NO_SPACE
        filler.unlink()
        client.wait_taken()
        wait_until(lambda: not any(short(node).values()), "the metric says so")
        assert lost(node, client.acknowledged) == []
    assert node.is_running
    assert len(node.log_events(SHORT)) >= 2
    assert len(node.log_events(AGAIN)) >= 2
    node.stop()
    node.start()
    assert lost(node, client.acknowledged) == []
    assert client.calls.range(rpc_pb2.RangeRequest(key=PREFIX)).header.revision >= max(ack.revision for ack in client.acknowledged.values())


def test_without_space_for_the_log_alone_the_member_goes_on_as_well(
    disks: Callable[[Path, int], Path], make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    disk = disks(tmp_path / "wal-disk", 24)
    node = make_node(SEGMENT, f"--wal-dir={disk / 'wal'}")
    node.start()
    client = Client(node.endpoint, {})
    filler = fill(disk, leave_bytes=64 << 10)
    client.put_until_refused()
    assert short(node) == {"store": False, "wal": False, "wal_spare": True}
    client.assert_reads_work()
    removed = client.calls.delete(b"nothing", 10.0)  # what gives space back goes on, in the last segment
    assert removed == 0
    filler.unlink()
    client.wait_taken()
    node.kill()
    node.start()
    assert lost(node, client.acknowledged) == []


def test_without_space_for_the_store_alone_reads_go_on_and_the_batch_is_kept(
    disks: Callable[[Path, int], Path], make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(SEGMENT, f"--wal-dir={tmp_path / 'wal'}")
    disk = disks(node.data_dir, 24)
    node.start()
    client = Client(node.endpoint, {})
    filler = fill(disk)
    client.put_until_refused()
    assert short(node) == {"store": True, "wal": False, "wal_spare": False}
    client.assert_reads_work()
    node.kill()
    node.start()  # on the full disk: nothing of what the store could not take is lost, the log holds it
    assert lost(node, client.acknowledged) == []
    client.put_until_refused()
    filler.unlink()
    client.wait_taken()
    node.kill()
    node.start()
    assert lost(node, client.acknowledged) == []


def test_the_cluster_goes_on_undisturbed_beside_a_full_follower_which_catches_up(
    disks: Callable[[Path, int], Path], make_cluster: Callable[..., ProcessCluster]
) -> None:
    cluster = make_cluster(flags=(SEGMENT, "--log-window-entries=100"))
    mounted = {node.name: disks(node.data_dir, 64) for node in cluster.nodes}
    cluster.start()
    leader = cluster.leader()
    full = next(node for node in cluster.nodes if node is not leader)
    client = Client(leader.endpoint, {})
    assert client.put()[0] is grpc.StatusCode.OK
    filler = fill(mounted[full.name], leave_bytes=256 << 10)
    own = Client(full.endpoint, client.acknowledged)
    wait_until(lambda: (client.put()[0] is grpc.StatusCode.OK) and any(short(full).values()), "the follower is short")
    for _ in range(400):
        assert client.put()[0] is grpc.StatusCode.OK
    assert own.put() == NO_SPACE
    own.calls.range(rpc_pb2.RangeRequest(key=PREFIX, serializable=True))
    assert cluster.leader() is leader
    filler.unlink()
    wait_until(
        lambda: full.metrics()["etcd_server_proposals_applied_total"] >= leader.metrics()["etcd_server_proposals_applied_total"],
        "it catches up",
    )
    own.wait_taken()
    for node in cluster.nodes:
        assert lost(node, client.acknowledged) == []
    assert len(hashes([node.endpoint for node in cluster.nodes])) == 1
    assert all(node.is_running for node in cluster.nodes)


def test_a_full_leader_hands_over_to_a_member_with_space(
    disks: Callable[[Path, int], Path], make_cluster: Callable[..., ProcessCluster]
) -> None:
    cluster = make_cluster(flags=(SEGMENT,))
    mounted = {node.name: disks(node.data_dir, 64) for node in cluster.nodes}
    cluster.start()
    full = cluster.leader()
    others = [node for node in cluster.nodes if node is not full]
    client, own = Client(others[0].endpoint, {}), Client(full.endpoint, {})
    assert client.put()[0] is grpc.StatusCode.OK
    filler = fill(mounted[full.name], leave_bytes=256 << 10)
    own.put_until_refused()
    wait_until(lambda: any(node.metrics()["etcd_server_is_leader"] == 1.0 for node in others), "another member leads")
    client.wait_taken()
    for _ in range(20):
        assert client.put()[0] is grpc.StatusCode.OK
    assert own.put() == NO_SPACE
    filler.unlink()
    own.wait_taken()
    for node in cluster.nodes:
        assert lost(node, {**client.acknowledged, **own.acknowledged}) == []


def test_when_no_member_has_space_every_client_hears_the_documented_error(
    disks: Callable[[Path, int], Path], make_cluster: Callable[..., ProcessCluster]
) -> None:
    """A write that is forwarded to a full leader is answered at once, not by a time-out."""
    cluster = make_cluster(flags=(SEGMENT,))
    mounted = {node.name: disks(node.data_dir, 64) for node in cluster.nodes}
    cluster.start()
    leader = cluster.leader()
    other = next(node for node in cluster.nodes if node is not leader)
    fillers = [fill(disk, leave_bytes=256 << 10) for disk in mounted.values()]
    client = Client(leader.endpoint, {})
    client.put_until_refused()
    for node in cluster.nodes:
        each = Client(node.endpoint, client.acknowledged)
        each.put_until_refused()
        each.assert_reads_work()
    for filler in fillers:
        filler.unlink()
    Client(other.endpoint, client.acknowledged).wait_taken()
    client.wait_taken()
    for node in cluster.nodes:
        assert lost(node, client.acknowledged) == []
