"""Changing the members of a live cluster, by kvctl and by etcdctl: add, learner, promote, remove, update, move-leader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvserver.testing.load import AcknowledgedWriters, differences, hashes
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster, member_flags

RETRY_S = 0.3
"""Between two attempts of a command that is refused for now: starting kvctl over and over would take the processor from the members."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


def kvctl(endpoints: str, *arguments: str, ok: bool = True) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={endpoints}", "--command-timeout=10s", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (answer.returncode == 0) is ok, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def live(nodes: list[NodeProcess]) -> str:
    return ",".join(node.endpoint for node in nodes if node.is_running)


def member_ids(endpoints: str) -> dict[str, str]:
    """Hexadecimal ids by peer URL."""
    found = {}
    for line in kvctl(endpoints, "member", "list").splitlines():
        member_id, _, _, peer_url, *_ = line.split(", ")
        found[peer_url] = member_id
    return found


def joiner(cluster: ProcessCluster, nodes: list[NodeProcess], name: str, directory: Path, ports: PortAllocator) -> NodeProcess:
    """A member that is yet to be added."""
    client, peer, http = ports.next_port(), ports.next_port(), ports.next_port()
    known = [f"{node.name}=http://127.0.0.1:{node.peer_port}" for node in nodes]
    initial = ",".join([*known, f"{name}=http://127.0.0.1:{peer}"])
    home = directory / name
    flags = [*member_flags(name, home / "data", client, peer, http, initial), "--initial-cluster-state=existing"]
    return NodeProcess(name=name, directory=home, client_port=client, peer_port=peer, http_port=http, flags=flags)


def kvctl_when(nodes: list[NodeProcess], refusal: str, *arguments: str) -> None:
    """Run kvctl until the cluster no longer refuses with `refusal`: the strict checks want members connected for 5 s, or in sync."""
    until_s = time.monotonic() + 60.0
    while True:
        answer = subprocess.run(
            [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={live(nodes)}", "--command-timeout=10s", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if answer.returncode == 0:
            return
        assert refusal in answer.stderr, answer.stderr
        assert time.monotonic() < until_s, answer.stderr
        time.sleep(RETRY_S)


def test_all_three_members_are_replaced_one_at_a_time_through_a_learner_under_load(
    make_cluster, ports: PortAllocator, tmp_path: Path
) -> None:
    cluster = make_cluster()
    cluster.start()
    nodes = list(cluster.nodes)
    extra: list[NodeProcess] = []
    try:
        with AcknowledgedWriters([node.endpoint for node in nodes], prefix=b"rolling/", writers=2) as writers:
            assert writers.wait_more(100, timeout_s=30)
            for old in list(nodes):
                new = joiner(cluster, nodes, f"new-{old.name}", tmp_path, ports)
                extra.append(new)
                url = f"http://127.0.0.1:{new.peer_port}"
                kvctl_when(nodes, "unhealthy cluster", "member", "add", new.name, f"--peer-urls={url}", "--learner")
                new.start(wait_ready=False)
                writers.add_endpoint(new.endpoint)
                new_id = member_ids(live(nodes))[url]
                kvctl_when(nodes, "in sync with leader", "member", "promote", new_id)
                new.wait_ready()
                nodes.append(new)
                old_id = member_ids(live(nodes))[f"http://127.0.0.1:{old.peer_port}"]
                nodes.remove(old)
                kvctl_when(nodes, "unhealthy cluster", "member", "remove", old_id)
                assert old.wait_ended(timeout_s=15) == 0
                assert "has been removed from the cluster" in old.log_path.read_text()
                assert writers.wait_more(50, timeout_s=30)
        endpoints = [node.endpoint for node in nodes]
        wrong = [line for endpoint in endpoints for line in differences(endpoint, b"rolling/", writers.acknowledged)]
        assert wrong == []
        assert len(hashes(endpoints)) == 1
        listed = json.loads(kvctl(live(nodes), "member", "list", "-w", "json"))["members"]
        assert sorted(member["name"] for member in listed) == ["new-kv1", "new-kv2", "new-kv3"]
        # Whoever was removed can't come back with its old directory: its own store says so, or its former peers do.
        removed = cluster.nodes[0]
        removed.start(wait_ready=False)
        assert removed.wait_ended(timeout_s=15) in (0, 1)
        assert removed.log_path.read_text().count("has been removed from the cluster") >= 2
    finally:
        for node in extra:
            node.kill()


def test_a_member_is_added_to_a_single_node_and_leadership_moves(make_cluster, ports: PortAllocator, tmp_path: Path) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    first = cluster.nodes[0]
    kvctl(first.endpoint, "put", "before", "joining")
    second = joiner(cluster, [first], "second", tmp_path, ports)
    url = f"http://127.0.0.1:{second.peer_port}"
    try:
        kvctl(first.endpoint, "member", "add", "second", f"--peer-urls={url}")
        again = kvctl(first.endpoint, "member", "add", "third", f"--peer-urls={url}", ok=False)
        assert "Peer URLs already exists" in again
        second.start()
        assert kvctl(second.endpoint, "get", "before").split() == ["before", "joining"]
        second_id = member_ids(first.endpoint)[url]
        kvctl(f"{first.endpoint},{second.endpoint}", "move-leader", second_id)
        assert second.metrics()["etcd_server_is_leader"] == 1
        not_leader = kvctl(first.endpoint, "move-leader", second_id, ok=False)
        assert "no leader endpoint" in not_leader
        unknown = kvctl(first.endpoint, "member", "remove", "1234567890abcdef", ok=False)
        assert "member not found" in unknown
    finally:
        second.kill()


def test_a_stranger_that_was_never_added_is_told_to_be(make_cluster, ports: PortAllocator, tmp_path: Path) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    stranger = joiner(cluster, cluster.nodes, "stranger", tmp_path, ports)
    stranger.start(wait_ready=False)
    assert stranger.wait_ended(timeout_s=15) == 1
    assert "member add" in stranger.log_path.read_text()


@pytest.mark.etcd
@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed (Debian package etcd-client)")
def test_etcdctl_adds_a_learner_and_removes_it(make_cluster, ports: PortAllocator) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    endpoint = cluster.nodes[0].endpoint

    def etcdctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
        return subprocess.run(
            ["etcdctl", f"--endpoints={endpoint}", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**environment, "ETCDCTL_API": "3"},
        )

    url = f"http://127.0.0.1:{ports.next_port()}"
    added = etcdctl("member", "add", "pupil", f"--peer-urls={url}", "--learner")
    assert added.returncode == 0, added.stderr
    assert 'ETCD_INITIAL_CLUSTER_STATE="existing"' in added.stdout
    (line,) = [line for line in etcdctl("member", "list").stdout.splitlines() if url in line]
    pupil_id, status, *_, is_learner = line.split(", ")
    assert (status, is_learner) == ("unstarted", "true")
    too_many = etcdctl("member", "add", "pupil2", "--peer-urls=http://127.0.0.1:1", "--learner")
    assert "too many learner members in cluster" in too_many.stderr
    early = etcdctl("member", "promote", pupil_id)
    assert "in sync with leader" in early.stderr
    moved = etcdctl("member", "update", pupil_id, f"--peer-urls=http://127.0.0.1:{ports.next_port()}")
    assert moved.returncode == 0, moved.stderr
    assert etcdctl("member", "remove", pupil_id).returncode == 0
    assert len(etcdctl("member", "list").stdout.splitlines()) == 1
