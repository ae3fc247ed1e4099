"""A bit flipped on one member's disk, met by a write: the cluster hears of it, the member ends and says why, the others go on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvserver.mvcc.layout import KEY
from kvserver.pb import rpc_pb2
from kvserver.testing.damage import flip_row
from kvserver.testing.docs_procedure import OPERATIONS, Procedure, ProcedureError
from kvserver.testing.load import KvCalls
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ROTTEN = b"rotten"
WAIT_S = 60.0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


def kvctl(endpoint: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={endpoint}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def put_all(node: NodeProcess) -> None:
    calls = KvCalls(node.endpoint)
    try:
        for key in (b"sound", b"sound 2", ROTTEN, b"a"):
            calls.put(key, b"first", timeout_s=20)
    finally:
        calls.close()


def put_fails(node: NodeProcess, key: bytes, *words: str) -> None:
    calls = KvCalls(node.endpoint)
    try:
        with pytest.raises(grpc.RpcError) as refused:
            calls.put(key, b"second", timeout_s=20)
        assert any(word in str(refused.value) for word in words), refused.value
    finally:
        calls.close()


def damage(node: NodeProcess) -> None:
    """Stop the member, flip a bit in the row of the index that the next put of the key reads, start it again."""
    node.stop()
    assert flip_row(node.data_dir / "member" / "snap" / "db", KEY, ROTTEN, offset_bytes=5)
    node.start()


def member_id(node: NodeProcess) -> int:
    calls = KvCalls(node.endpoint)
    try:
        return calls.status().header.member_id
    finally:
        calls.close()


def applied_index(node: NodeProcess) -> int:
    calls = KvCalls(node.endpoint)
    try:
        return calls.status().raftAppliedIndex
    finally:
        calls.close()


def last_words(node: NodeProcess) -> str:
    event = node.log_events("the member stops")[-1]
    assert event["level"] == "fatal"
    return str(event["reason"])


def check_last_words(node: NodeProcess, index: int) -> None:
    text = last_words(node)
    words = (str(node.data_dir / "member" / "snap" / "db"), "the row 'rotten' of table key fails its checksum", f"entry {index}")
    for word in (*words, "kvserver check", "docs/operations/corruption.md"):
        assert word in text, text
    assert "start again" not in text
    assert "Traceback" not in node.log_path.read_text()


def run_until_healthy(page: Procedure, name: str) -> None:
    """The page says: try again while the answer is "unhealthy cluster"."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            page.run(name)
        except ProcedureError as error:
            if "unhealthy cluster" not in str(error) or time.monotonic() > until_s:
                raise
        else:
            return


def check_it_is_told_again(node: NodeProcess, index: int, others: list[NodeProcess]) -> None:
    """Each start meets the damage again: it ends by itself, with the same words, and proposes nothing that is known."""
    at = [applied_index(other) for other in others]
    node.start(wait_ready=False)
    assert node.wait_ended(WAIT_S) == 1
    check_last_words(node, index)
    assert not node.log_events("failed to raise an alarm; will retry")
    assert [applied_index(other) for other in others] == at, "another alarm was proposed"


def replace(cluster: ProcessCluster, damaged: NodeProcess, root: Path) -> NodeProcess:
    """docs/operations/corruption.md, from "keep" on: the damaged member is the page's third."""
    sound = [node for node in cluster.nodes if node is not damaged]
    found = {"/var/lib/kvserver": str(damaged.data_dir), "kv3": damaged.name, "kv1": sound[0].name, "kv2": sound[1].name}
    for number, node in enumerate([*sound, damaged], 1):
        found[f"10.0.0.{number}:2379"] = node.endpoint
        found[f"10.0.0.{number}:2380"] = f"127.0.0.1:{node.peer_port}"
    page = Procedure.read(OPERATIONS / "corruption.md", found, root)
    who = page.run("who").stdout.split(", ")
    assert who[2] == damaged.name
    assert "the row 'rotten' of table key fails its checksum" in page.run("check", exit_code=1).stdout
    page.run("keep")
    run_until_healthy(page, "remove")
    run_until_healthy(page, "add")
    fresh = NodeProcess(
        name=damaged.name,
        directory=root / "fresh",
        client_port=damaged.client_port,
        peer_port=damaged.peer_port,
        http_port=damaged.http_port,
        flags=page.server_flags("start"),
    )
    try:
        fresh.start()
        assert "alarm:CORRUPT" in page.run("compare").stdout, "disarmed"
    except BaseException:
        fresh.kill()
        raise
    return fresh


@pytest.mark.etcd
def test_the_cluster_hears_of_it_and_the_page_recovers_it(make_cluster: Callable[..., ProcessCluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    put_all(cluster.nodes[0])
    damaged = next(node for node in cluster.nodes if node is not cluster.leader())
    others = [node for node in cluster.nodes if node is not damaged]
    own_id = member_id(damaged)
    damage(damaged)
    calls = KvCalls(others[0].endpoint)
    calls.put(b"sound", b"second", timeout_s=20)
    at = applied_index(others[0])
    calls.put(ROTTEN, b"second", timeout_s=20)  # acknowledged by the two that can apply it
    calls.close()
    assert damaged.wait_ended(WAIT_S) == 1
    check_last_words(damaged, at + 1)
    assert damaged.log_events("the CORRUPT alarm of this member is raised")
    expected = f"memberID:{own_id} alarm:CORRUPT"
    for other in others:
        assert kvctl(other.endpoint, "alarm", "list").strip() == expected
    if shutil.which("etcdctl"):
        command = ["etcdctl", f"--endpoints={others[1].endpoint}", "alarm", "list"]
        assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip() == expected
    put_fails(others[0], b"sound", "corrupt cluster")
    check_it_is_told_again(damaged, at + 1, others)

    fresh = replace(cluster, damaged, tmp_path)
    try:
        for node in (*others, fresh):
            calls = KvCalls(node.endpoint)
            assert calls.range(rpc_pb2.RangeRequest(key=ROTTEN)).kvs[0].value == b"second"
            calls.put(ROTTEN, b"second", timeout_s=20)
            calls.close()
    finally:
        fresh.kill()


@pytest.mark.slow
def test_a_leader_hands_leadership_over_before_it_ends(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster()
    cluster.start()
    put_all(cluster.nodes[0])
    damaged = next(node for node in cluster.nodes if node is not cluster.leader())
    others = [node for node in cluster.nodes if node is not damaged]
    own_id = member_id(damaged)
    damage(damaged)
    kvctl(cluster.endpoints, "move-leader", f"{own_id:x}")
    assert cluster.leader() is damaged
    put_fails(damaged, ROTTEN, "server stopped", "corrupt cluster", "unavailable", "Socket closed", "Connection reset")
    assert damaged.wait_ended(WAIT_S) == 1
    assert damaged.log_events("the CORRUPT alarm of this member is raised")
    assert damaged.log_events("leadership transfer finished")
    wait_until(lambda: f"memberID:{own_id} alarm:CORRUPT" in kvctl(others[0].endpoint, "alarm", "list"), "the alarm is raised")


@pytest.mark.slow
def test_a_single_member_ends_with_the_same_words_at_every_start(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    node = cluster.nodes[0]
    put_all(node)
    damage(node)
    at = applied_index(node)
    put_fails(node, ROTTEN, "server stopped", "corrupt cluster", "unavailable", "Socket closed", "Connection reset")
    assert node.wait_ended(WAIT_S) == 1
    check_last_words(node, at + 1)
    for starts in (2, 3):
        node.start(wait_ready=False)
        assert node.wait_ended(WAIT_S) == 1
        check_last_words(node, at + 1)
        assert len(node.log_events("the CORRUPT alarm of this member is raised")) == starts


@pytest.mark.slow
def test_without_the_others_it_ends_when_the_time_is_up_and_a_later_start_tells_them(make_cluster: Callable[..., ProcessCluster]) -> None:
    """A crash left entries to be applied again; the row that one of them needs is damaged, and nobody is there to hear of it."""
    cluster = make_cluster(flags=("--backend-batch-interval=60s",))
    cluster.start()
    put_all(cluster.nodes[0])
    cluster.stop()
    cluster.start()
    put_all(cluster.nodes[0])
    put_all(cluster.nodes[0])  # its entries carry the news that those before are committed
    damaged, *others = cluster.nodes
    own_id = member_id(damaged)
    for node in cluster.nodes:
        node.kill()
    assert flip_row(damaged.data_dir / "member" / "snap" / "db", KEY, ROTTEN, offset_bytes=5)
    damaged.start(wait_ready=False)
    assert damaged.wait_ended(WAIT_S) == 1
    text = last_words(damaged)
    assert "the row 'rotten' of table key fails its checksum" in text
    assert damaged.log_events("the CORRUPT alarm of this member could not be raised; the next start tries again")
    for node in others:
        node.start(wait_ready=False)
    for node in others:
        node.wait_ready()
    assert kvctl(others[0].endpoint, "alarm", "list") == ""
    damaged.start(wait_ready=False)
    assert damaged.wait_ended(WAIT_S) == 1
    assert last_words(damaged) == text
    assert kvctl(others[0].endpoint, "alarm", "list").strip() == f"memberID:{own_id} alarm:CORRUPT"
