"""Saving from real servers with both clients, saves that break off, and restored members among others that don't belong to them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvserver.testing.load import KvCalls
from kvserver.testing.processes import NodeProcess, NodeStartError, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WAIT_S = 60.0


def kvctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_"))}
    command = [sys.executable, "-m", "kvserver.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def save(node: NodeProcess, path: Path) -> Path:
    ended = kvctl(f"--endpoints={node.endpoint}", "snapshot", "save", path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"Snapshot saved at {path}\n"
    return path


def restore(node: NodeProcess, path: Path) -> None:
    """Restore to the node's (removed) data directory with the flags that it is started with."""
    wanted = ("--name=", "--data-dir=", "--initial-cluster=", "--initial-cluster-token=", "--initial-advertise-peer-urls=")
    flags = [flag for flag in node.flags if flag.startswith(wanted)]
    ended = kvctl("snapshot", "restore", path, *flags)
    assert ended.returncode == 0, ended.stderr
    has_token, is_alone = any("token" in flag for flag in flags), not any("," in flag for flag in flags)
    assert ("Warning: no --initial-cluster-token" in ended.stderr) == (not has_token and not is_alone)


def restore_and_start(sources: Sequence[tuple[NodeProcess, Path]]) -> None:
    """Restore these members, all at once as their operators would, and start them; they need not become ready."""
    with ThreadPoolExecutor(len(sources)) as threads:
        for ended in [threads.submit(restore, node, path) for node, path in sources]:
            ended.result()
    for node, _ in sources:
        node.start(wait_ready=False)


def fill(node: NodeProcess, count: int, size_bytes: int = 100) -> int:
    calls = KvCalls(node.endpoint)
    try:
        return max(calls.put(b"key/%d" % number, os.urandom(size_bytes), timeout_s=30.0) for number in range(count))
    finally:
        calls.close()


def copies(node: NodeProcess) -> list[str]:
    return [path.name for path in (node.data_dir / "member" / "snap").glob("outgoing-*")]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def empty_start(node: NodeProcess) -> None:
    """Start the node on an empty directory, whether it becomes ready or not."""
    shutil.rmtree(node.data_dir, ignore_errors=True)
    node.start(wait_ready=False)


@pytest.mark.etcd
def test_etcdctl_saves_from_us_and_its_file_is_ours(make_cluster, tmp_path: Path) -> None:
    if shutil.which("etcdctl") is None and os.environ.get("KVSERVER_NO_ETCD") == "1":
        pytest.skip("etcdctl is not installed (Debian package etcd-client) and KVSERVER_NO_ETCD=1 allows that")
    cluster: ProcessCluster = make_cluster(size=1)
    cluster.start()
    (node,) = cluster.nodes
    revision = fill(node, 200)
    path, own = tmp_path / "by-etcdctl", tmp_path / "by-kvctl"
    command = ["etcdctl", f"--endpoints={node.endpoint}", "snapshot", "save", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "ETCDCTL_API": "3"})
    assert (ended.returncode, ended.stdout) == (0, f"Snapshot saved at {path}\n"), ended.stderr
    status = kvctl("snapshot", "status", path)
    assert status.returncode == 0, status.stderr
    assert status.stdout.split(", ")[1:3] == [str(revision), "200"], "an acknowledged put is not in it"
    assert kvctl("snapshot", "status", save(node, own)).stdout == status.stdout
    assert copies(node) == []
    node.kill()
    shutil.rmtree(node.data_dir)
    restore(node, path)
    node.start()
    calls = KvCalls(node.endpoint)
    assert calls.put(b"next", b"") == revision + 1
    calls.close()


def test_a_save_that_is_killed_leaves_no_file_and_no_copy_on_the_member(make_cluster, tmp_path: Path) -> None:
    cluster: ProcessCluster = make_cluster(size=1)
    cluster.start()
    (node,) = cluster.nodes
    fill(node, 40, size_bytes=1_000_000)
    for number, part_stays in ((signal.SIGKILL, True), (signal.SIGINT, False)):
        target, part = tmp_path / "f", tmp_path / "f.part"
        saver = subprocess.Popen(
            [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={node.endpoint}", "snapshot", "save", str(target)],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: bool(copies(node)) and part.stat().st_size > 0, "nothing arrives")  # noqa: B023
            saver.send_signal(signal.SIGSTOP)  # it can't have finished by the time of the signal
            assert not target.exists()
            assert copies(node)
            saver.send_signal(number)
            saver.send_signal(signal.SIGCONT)
            code = saver.wait(WAIT_S)
        finally:
            saver.kill()
            saver.wait()
        assert code == (-signal.SIGKILL if number is signal.SIGKILL else 130)
        assert (target.exists(), part.exists()) == (False, part_stays)
        wait_until(lambda: not copies(node), "the copy of a client that is gone stays on the disk")
    save(node, tmp_path / "f")
    assert not part.exists()


def test_a_member_that_is_killed_while_it_sends_fails_the_save_and_cleans_up_at_its_next_start(make_cluster, tmp_path: Path) -> None:
    cluster: ProcessCluster = make_cluster(size=1)
    cluster.start()
    (node,) = cluster.nodes
    fill(node, 40, size_bytes=1_000_000)
    target, part = tmp_path / "f", tmp_path / "f.part"
    saver = subprocess.Popen(
        [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={node.endpoint}", "snapshot", "save", str(target)],
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 0, "nothing arrives")
        saver.send_signal(signal.SIGSTOP)
        node.kill()
        assert copies(node)
        saver.send_signal(signal.SIGCONT)
        _, errors = saver.communicate(timeout=WAIT_S)
    finally:
        saver.kill()
        saver.wait()
    assert saver.returncode == 5
    assert errors.decode().splitlines()[-1].startswith("Error: ")
    assert list(tmp_path.glob("f*")) == []
    node.start()
    assert copies(node) == []


def test_an_empty_member_is_refused_by_a_restored_one(make_cluster, tmp_path: Path) -> None:
    cluster: ProcessCluster = make_cluster()
    first, second, third = cluster.nodes
    cluster.start()
    revision = fill(first, 50)
    path = save(first, tmp_path / "f")
    for node in cluster.nodes:
        node.kill()
    shutil.rmtree(first.data_dir)
    restore(first, path)
    first.start(wait_ready=False)
    wait_until(lambda: bool(first.log_events("restarted from the data directory")), "the restored member doesn't start")
    empty_start(second)
    assert second.wait_ended(WAIT_S) == 1
    assert "but a member at its addresses is of cluster" in second.log_path.read_text()
    assert not second.log_events("founded a new cluster")[1:], "it was founded empty all the same"
    for node in (second, third):
        shutil.rmtree(node.data_dir, ignore_errors=True)
    restore_and_start([(second, path), (third, path)])
    for node in cluster.nodes:
        node.wait_ready()
    for node in cluster.nodes:
        calls = KvCalls(node.endpoint)
        assert len(calls.pairs(b"key/")) == 50
        calls.close()
    assert fill(first, 1) == revision + 1


def test_members_with_other_data_form_no_cluster_with_a_restored_one(make_cluster, tmp_path: Path) -> None:
    """Two were restored from an older snapshot before the third was: the majority goes on, the third waits and says why."""
    cluster: ProcessCluster = make_cluster()
    first, second, third = cluster.nodes
    cluster.start()
    fill(first, 20)
    older = save(first, tmp_path / "older")
    fill(first, 30)
    newer = save(first, tmp_path / "newer")
    for node in cluster.nodes:
        node.kill()
        shutil.rmtree(node.data_dir)
    restore_and_start([(first, newer), (second, older), (third, older)])
    second.wait_ready()
    third.wait_ready()
    for node in (second, third):
        calls = KvCalls(node.endpoint)
        assert len(calls.pairs(b"key/")) == 20
        calls.close()
    wait_until(
        lambda: any("belongs to cluster" in str(event.get("reason")) for event in first.log_events("peer can't be reached")),
        "the member that waits doesn't say why",
    )
    with pytest.raises(NodeStartError, match="is not ready"):
        first.wait_ready(timeout_s=0.0)


def test_a_member_restored_a_second_time_is_refused_and_the_others_go_on(make_cluster, tmp_path: Path) -> None:
    """The same file, the same token: the id is the same, and the member has forgotten what it voted and acknowledged."""
    source: ProcessCluster = make_cluster(size=1)
    source.start()
    fill(source.nodes[0], 20)
    path = save(source.nodes[0], tmp_path / "f")
    source.stop()
    cluster: ProcessCluster = make_cluster(flags=("--initial-cluster-token=restored-1",))
    restore_and_start([(node, path) for node in cluster.nodes])
    for node in cluster.nodes:
        node.wait_ready()
    leader = cluster.leader()
    first, second, again = sorted(cluster.nodes, key=lambda node: node is not leader)  # a put just after a leader's end may fail
    revision = fill(first, 30)
    again.kill()
    shutil.rmtree(again.data_dir)
    restore(again, path)
    again.start(wait_ready=False)
    assert again.wait_ended(WAIT_S) == 1
    said = str(again.log_events("kvserver can't start")[-1]["reason"])
    for words in (str(again.data_dir), "has already been bootstrapped", "was the snapshot restored a second time?"):
        assert words in said
    assert fill(second, 1) == revision + 1

    # What the text says: remove it, add it anew, start it empty.
    told = re.search(r"kvctl member remove ([0-9a-f]+)", said)
    assert told is not None
    endpoints = f"--endpoints={first.endpoint},{second.endpoint}"
    for change in (("remove", told[1]), ("add", again.name, f"--peer-urls=http://127.0.0.1:{again.peer_port}")):
        wait_until(lambda change=change: kvctl(endpoints, "member", *change).returncode == 0, "unhealthy cluster")  # type: ignore[misc]
    shutil.rmtree(again.data_dir)
    again.flags.append("--initial-cluster-state=existing")
    again.start()
    found = []
    for node in (first, again):
        calls = KvCalls(node.endpoint)
        found.append(calls.pairs(b"key/"))
        calls.close()
    assert found[0] == found[1]
    assert len(found[0]) == 30
