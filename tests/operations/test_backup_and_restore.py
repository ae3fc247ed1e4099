"""docs/operations/backup-and-restore.md, executed: every command of the page, in the order of the page, on real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.docs_procedure import OPERATIONS, Procedure
from kvserver.testing.load import AcknowledgedWriters, KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster, member_flags

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


def substitutions_for(nodes: list[NodeProcess], root: Path) -> dict[str, str]:
    """The page's members are these."""
    found = {"/backup": str(root / "backup"), "/var/lib/kvserver": str(root / "restored")}
    for number, node in enumerate(nodes, 1):
        found[f"10.0.0.{number}:2379"] = f"127.0.0.1:{node.client_port}"
        found[f"10.0.0.{number}:2380"] = f"127.0.0.1:{node.peer_port}"
    return found


def everything(endpoint: str, revision: int) -> list[tuple[bytes, bytes, int, int, int]]:
    """All keys of a member as of a revision, with their values and revisions."""
    calls = KvCalls(endpoint)
    try:
        found: list[tuple[bytes, bytes, int, int, int]] = []
        start = b"\0"
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=b"\0", limit=1000, revision=revision, serializable=True)
            page = calls.range(request)
            found += [(pair.key, pair.value, pair.create_revision, pair.mod_revision, pair.version) for pair in page.kvs]
            if not page.more:
                return found
            start = page.kvs[-1].key + b"\0"
    finally:
        calls.close()


def hash_at(endpoint: str, revision: int) -> int:
    calls = KvCalls(endpoint)
    try:
        return calls.hash_kv(revision)
    finally:
        calls.close()


def restored_nodes(old: ProcessCluster, page: Procedure) -> list[NodeProcess]:
    """The new members: kv1 as the page starts it, the others likewise."""
    first = page.server_flags("start kv1")
    nodes = []
    for number, node in enumerate(old.nodes, 1):
        own = first
        if number > 1:
            initial = next(flag.split("=", 1)[1] for flag in first if flag.startswith("--initial-cluster="))
            data_dir = page.directory / "restored" / f"kv{number}"
            own = [
                *member_flags(f"kv{number}", data_dir, node.client_port, node.peer_port, node.http_port, initial),
                "--initial-cluster-token=restored-1",
            ]
        nodes.append(
            NodeProcess(
                name=f"kv{number}",
                directory=page.directory / "logs" / f"kv{number}",
                client_port=node.client_port,
                peer_port=node.peer_port,
                http_port=node.http_port,
                flags=own,
            )
        )
    return nodes


def test_the_backup_and_restore_page_works_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    new: list[NodeProcess] = []
    with ProcessCluster(tmp_path / "old", ports=PortAllocator()) as old:
        try:
            page = Procedure.read(OPERATIONS / "backup-and-restore.md", substitutions_for(old.nodes, tmp_path), tmp_path)
            old.start()
            with AcknowledgedWriters([node.endpoint for node in old.nodes], prefix=b"load/") as writers:
                assert writers.wait_more(500, timeout_s=60)
                before = max(written.revision for written in list(writers.acknowledged.values()))
                page.run("save")
                assert writers.wait_more(200, timeout_s=60)
            page.run("status")
            revision = int(json.loads(run_json(page))["revision"])
            saved_keys, saved_hash = everything(old.nodes[0].endpoint, revision), hash_at(old.nodes[0].endpoint, revision)
            for node in old.nodes:
                node.kill()

            answers = [page.run(f"restore {name}").stdout for name in ("kv1", "kv2", "kv3")]
            assert len({answer.split("new cluster ")[1] for answer in answers}) == 1
            new = restored_nodes(old, page)
            for node in new:
                node.start(wait_ready=False)
            for node in new:
                node.wait_ready()
            page.run("check")

            for node in new:
                assert everything(node.endpoint, revision) == saved_keys
                assert hash_at(node.endpoint, revision) == saved_hash
            assert {key for key, *_ in saved_keys} >= {
                key for key, written in writers.acknowledged.items() if written.revision <= revision
            }, "acknowledged before the snapshot's revision and not in it"
            assert revision >= before, "acknowledged before the save began and not in it"

            with AcknowledgedWriters([node.endpoint for node in new], prefix=b"after/") as writers:
                assert writers.wait_more(100, timeout_s=60)
            newest = min(written.revision for written in writers.acknowledged.values())
            assert newest == revision + 1, "revisions don't go on where the snapshot ended"

            page.run("restore bumped")
            new[0].kill()
            (tmp_path / "restored" / "stopped").symlink_to(tmp_path / "restored" / "kv1")
            page.run("copy")
            page.check_all_used()
        finally:
            for node in new:
                node.kill()


def run_json(page: Procedure) -> str:
    """The status of the saved file, for the test's own use."""
    probe = Procedure(
        page=page.page,
        blocks={"json": "kvctl snapshot status /backup/kv.snapshot -w json"},
        substitutions=page.substitutions,
        directory=page.directory,
    )
    return probe.run("json").stdout
