"""etcd's own client, Debian's etcdctl 3.4, unchanged against a real three-node cluster."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess

import pytest

from kvserver.testing.processes import ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.etcd]


@pytest.fixture(scope="module", autouse=True)
def etcdctl_path() -> str:
    found = shutil.which("etcdctl")
    if found is None:
        if os.environ.get("KVSERVER_NO_ETCD") == "1":
            pytest.skip("etcdctl is not installed (Debian package etcd-client) and KVSERVER_NO_ETCD=1 allows that")
        pytest.fail("etcdctl is not installed (Debian package etcd-client); KVSERVER_NO_ETCD=1 skips these tests")
    return found


class Etcdctl:
    def __init__(self, endpoints: str) -> None:
        self.endpoints = endpoints

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
        return subprocess.run(
            ["etcdctl", f"--endpoints={self.endpoints}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**environment, "ETCDCTL_API": "3"},
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        answer = self.run(*arguments, stdin=stdin)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def json(self, *arguments: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self(*arguments, "-w", "json"))
        return found


@pytest.fixture(scope="module")
def etcdctl(cluster: ProcessCluster) -> Etcdctl:
    return Etcdctl(cluster.endpoints)


def revision_of(answer: dict[str, object]) -> int:
    header = answer["header"]
    assert isinstance(header, dict)
    return int(header["revision"])


def test_put_and_get(etcdctl: Etcdctl) -> None:
    assert etcdctl("put", "pg/a", "one") == "OK\n"
    assert etcdctl("get", "pg/a") == "pg/a\none\n"
    assert etcdctl("get", "pg/a", "--print-value-only") == "one\n"
    assert etcdctl("put", "pg/a", "two", "--prev-kv") == "OK\npg/a\none\n"
    assert etcdctl("get", "pg/missing") == ""


def test_every_member_answers(cluster: ProcessCluster, etcdctl: Etcdctl) -> None:
    etcdctl("put", "each", "same")
    for node in cluster.nodes:
        assert Etcdctl(node.endpoint)("get", "each") == "each\nsame\n"
        assert Etcdctl(node.endpoint)("put", f"each/{node.name}", "x") == "OK\n"


def test_get_prefix_limit_sort_and_counts(etcdctl: Etcdctl) -> None:
    for number, key in enumerate(("c", "a", "b")):
        etcdctl("put", f"sort/{key}", f"v{number}")
    assert etcdctl("get", "--prefix", "sort/", "--keys-only").split() == ["sort/a", "sort/b", "sort/c"]
    assert etcdctl("get", "--prefix", "sort/", "--limit=2", "--keys-only").split() == ["sort/a", "sort/b"]
    assert etcdctl("get", "--prefix", "sort/", "--sort-by=MODIFY", "--order=DESCEND", "--keys-only").split() == [
        "sort/b",
        "sort/a",
        "sort/c",
    ]
    assert etcdctl("get", "--prefix", "sort/", "--sort-by=VALUE", "--print-value-only").split() == ["v0", "v1", "v2"]
    limited = etcdctl.json("get", "--prefix", "sort/", "--limit=1")
    assert (limited["count"], limited["more"]) == (3, True)


def test_get_count_only(etcdctl: Etcdctl) -> None:
    for key in ("a", "b"):
        etcdctl("put", f"count/{key}", "v")
    if "--count-only" not in etcdctl("get", "--help"):
        pytest.skip("this etcdctl has no get --count-only (it came with 3.5); kvctl's is tested in tests/kvserver/cli")
    counted = etcdctl.json("get", "--prefix", "count/", "--count-only")
    assert counted["count"] == 2
    assert "kvs" not in counted


def test_get_at_an_old_revision(etcdctl: Etcdctl) -> None:
    first = revision_of(etcdctl.json("put", "rev/k", "old"))
    etcdctl("put", "rev/k", "new")
    assert etcdctl("get", "rev/k", f"--rev={first}") == "rev/k\nold\n"
    answer = etcdctl.json("get", "rev/k")
    (pair,) = answer["kvs"]  # type: ignore[misc]
    assert base64.b64decode(pair["value"]) == b"new"
    assert (pair["create_revision"], pair["mod_revision"], pair["version"]) == (first, first + 1, 2)


def test_del_counts_and_shows_what_was_there(etcdctl: Etcdctl) -> None:
    for key in ("x", "y", "z"):
        etcdctl("put", f"del/{key}", key)
    assert etcdctl("del", "del/x", "--prev-kv") == "1\ndel/x\nx\n"
    before = revision_of(etcdctl.json("get", "del/none"))
    assert etcdctl("del", "del/none") == "0\n"
    assert revision_of(etcdctl.json("get", "del/none")) == before
    assert etcdctl("del", "--prefix", "del/") == "2\n"


def test_txn_takes_the_branch_that_holds(etcdctl: Etcdctl) -> None:
    etcdctl("put", "txn/k", "v1")
    script = 'value("txn/k") = "v1"\n\nput txn/k v2\nget txn/k\n\nput txn/k wrong\n\n'
    assert etcdctl("txn", stdin=script) == "SUCCESS\n\nOK\n\ntxn/k\nv2\n"
    assert etcdctl("txn", stdin=script).startswith("FAILURE\n")
    assert etcdctl("get", "txn/k") == "txn/k\nwrong\n"


def test_compaction_makes_old_revisions_unreadable(etcdctl: Etcdctl) -> None:
    old = revision_of(etcdctl.json("put", "cmp/k", "1"))
    new = revision_of(etcdctl.json("put", "cmp/k", "2"))
    assert etcdctl("compaction", str(new)) == f"compacted revision {new}\n"
    refused = etcdctl.run("get", "cmp/k", f"--rev={old}")
    assert refused.returncode == 1
    assert "etcdserver: mvcc: required revision has been compacted" in refused.stderr
    again = etcdctl.run("compaction", str(new))
    assert "etcdserver: mvcc: required revision has been compacted" in again.stderr
    future = etcdctl.run("get", "cmp/k", f"--rev={new + 1000}")
    assert "etcdserver: mvcc: required revision is a future revision" in future.stderr
    assert etcdctl("get", "cmp/k", f"--rev={new}") == "cmp/k\n2\n"


def test_endpoint_health_and_status(cluster: ProcessCluster, etcdctl: Etcdctl) -> None:
    health = etcdctl.run("endpoint", "health")
    assert health.returncode == 0
    assert (health.stdout + health.stderr).count("is healthy") == 3
    rows = json.loads(etcdctl("endpoint", "status", "-w", "json"))
    statuses = [row["Status"] for row in rows]
    assert {status["leader"] for status in statuses} == {cluster_leader(statuses)}
    for status in statuses:
        assert status["dbSize"] >= status["dbSizeInUse"] > 0
        assert status["raftIndex"] >= status["raftAppliedIndex"] > 0
        assert status["raftTerm"] >= 1
        assert status["version"].split(".")[0] == "3"
    table = etcdctl("endpoint", "status", "-w", "table")
    assert table.count("127.0.0.1") == 3


def cluster_leader(statuses: list[dict[str, object]]) -> object:
    leaders = [status["leader"] for status in statuses if status["leader"] == status["header"]["member_id"]]  # type: ignore[index]
    assert len(leaders) == 1
    return leaders[0]


def test_hashkv_agrees_on_all_members(etcdctl: Etcdctl) -> None:
    rows = json.loads(etcdctl("endpoint", "hashkv", "-w", "json"))
    assert len(rows) == 3
    assert len({row["HashKV"]["hash"] for row in rows}) == 1


def test_member_list_shows_names_and_urls(cluster: ProcessCluster, etcdctl: Etcdctl) -> None:
    lines = sorted(etcdctl("member", "list").splitlines(), key=lambda line: line.split(", ")[2])
    assert len(lines) == 3
    for line, node in zip(lines, cluster.nodes, strict=True):
        member_id, status, name, peer_url, client_url, learner = line.split(", ")
        assert int(member_id, 16) > 0
        assert (status, name, learner) == ("started", node.name, "false")
        assert peer_url == f"http://127.0.0.1:{node.peer_port}"
        assert client_url == f"http://{node.endpoint}"


def test_a_value_over_the_request_limit_is_refused_with_etcds_words(etcdctl: Etcdctl) -> None:
    refused = etcdctl.run("put", "big", stdin="x" * 1_600_000)
    assert refused.returncode == 1
    assert "etcdserver: request is too large" in refused.stderr
    assert etcdctl("get", "big") == ""
