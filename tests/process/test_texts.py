"""What the user of a single node sees when its store is damaged, when it hangs, and when its directory can't be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvserver.storage.pages import PageFile
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

BOUND_S = 60.0
VALUE = b"a value that nothing else looks like, number %03d"


def kvctl(line: str, node: NodeProcess) -> subprocess.CompletedProcess[str]:
    """Run a shell line; KVCTL stands for kvctl with the node's endpoint."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_"))}
    line = line.replace("KVCTL", f"{sys.executable} -m kvserver.cli.main --endpoints={node.endpoint}")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=BOUND_S, check=False, env=environment)


def store_of(node: NodeProcess) -> Path:
    return node.data_dir / "member" / "snap" / "db"


def flip_value(node: NodeProcess, value: bytes) -> int:
    """Flip a bit of a value in the running store's file, wherever it stands; returns the offset of the one in use."""
    path = store_of(node)
    content = path.read_bytes()
    assert value in content
    with path.open("r+b") as file:  # what LMDB maps is the same page cache
        place = content.find(value)
        while place >= 0:
            file.seek(place)
            file.write(bytes((content[place] ^ 1,)))
            place = content.find(value, place + 1)
    found: list[int] = []
    with PageFile.open(path) as file_:
        for tree in file_.trees((b"meta", b"rev"), lambda offset, reason: None):
            for _ in file_.rows(tree, lambda offset, reason: found.append(offset)):
                pass
    (offset,) = found
    return offset


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_a_damaged_store_is_not_saved_and_the_log_says_where(make_cluster: Callable[..., ProcessCluster], tmp_path: Path) -> None:
    (node,) = make_cluster(size=1).nodes
    node.start()
    calls = KvCalls(node.endpoint)
    try:
        for number in range(100):
            calls.put(b"key%03d" % number, VALUE % number, timeout_s=20)
    finally:
        calls.close()
    wait_until(lambda: VALUE % 99 in store_of(node).read_bytes())
    offset = flip_value(node, VALUE % 42)
    ended = kvctl(f"KVCTL snapshot save {tmp_path}/kv.snapshot", node)
    assert ended.returncode == 5
    assert ended.stderr.splitlines()[-1] == "Error: etcdserver: corrupt cluster"
    assert not list(tmp_path.glob("kv.snapshot*"))
    place = f"{store_of(node)}: at offset {offset}: the record of revision 44.0 fails its checksum"
    assert [event["what"] for event in node.log_events("the store is damaged, it is not sent to a client")] == [place]
    assert place in [event["what"] for event in node.log_events("the store is corrupt")]
    wait_until(lambda: "alarm:CORRUPT" in kvctl("KVCTL alarm list", node).stdout)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, ports: PortAllocator) -> Iterator[NodeProcess]:
    """A single node that the tests below share."""
    with ProcessCluster(tmp_path_factory.mktemp("single"), size=1, ports=ports) as cluster:
        cluster.start()
        yield cluster.nodes[0]


def test_a_hung_server_is_given_up_in_time_with_a_clear_text(node: NodeProcess, tmp_path: Path) -> None:
    node.send_signal(signal.SIGSTOP)
    try:
        for command in ("put k v", f"snapshot save {tmp_path}/never"):
            ended = kvctl(f"KVCTL --dial-timeout=1s {command}", node)
            assert ended.returncode == 2
            text = f"Error: cannot connect: {node.endpoint}: accepts connections but does not answer: it hangs or is overloaded"
            assert ended.stderr.splitlines()[-1] == text
    finally:
        node.send_signal(signal.SIGCONT)
    assert kvctl("KVCTL get k", node).returncode == 0


def test_readers_that_leave_and_closed_streams_stop_nothing(node: NodeProcess, tmp_path: Path) -> None:
    for number in range(3):
        assert kvctl(f"KVCTL put key{number} {'v' * 100_000}", node).returncode == 0
    for line, code, stdout in (
        ("KVCTL get --prefix '' | head -1", 0, "key0\n"),
        ("KVCTL get --prefix '' | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 141, ""),
        ("KVCTL put a b 2>&-", 0, "OK\n"),
        ("KVCTL put a c >&-", 0, ""),
        ("KVCTL put a d <&- >&- 2>&-", 0, ""),
        ("KVCTL get a", 0, "a\nd\n"),
        (f"KVCTL snapshot save {tmp_path}/one 2>&-", 0, f"Snapshot saved at {tmp_path}/one\n"),
        (f"KVCTL snapshot save {tmp_path}/two 2> >(true)", 0, f"Snapshot saved at {tmp_path}/two\n"),
        (f"KVCTL snapshot status {tmp_path}/two >/dev/null", 0, ""),
        ("KVCTL_NONSENSE=1 KVCTL get a 2> >(true)", 0, "a\nd\n"),
        ("KVCTL help put | head -1", 0, "Usage: kvctl put [flags] <key> [<value>]\n"),
    ):
        ended = kvctl(line.replace("KVCTL_NONSENSE=1 KVCTL", "env ETCDCTL_NONSENSE=1 KVCTL"), node)
        assert (ended.returncode, ended.stdout) == (code, stdout), line
        assert "Traceback" not in ended.stderr
        assert "Exception" not in ended.stderr
