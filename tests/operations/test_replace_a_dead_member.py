"""docs/operations/replace-a-dead-member.md, executed: every command of the page, in the order of the page, on real processes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from kvserver.testing.docs_procedure import OPERATIONS, Procedure, ProcedureError
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster

RETRY_S = 0.3
"""Between two attempts of a command that is refused for now: starting kvctl over and over would take the processor from the members."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

PAGE_IDS = {"kv2": "91bc3c398fb3c146", "kv3": "a8266ecf031671f3"}


def put_some(node: NodeProcess, first: int, last: int) -> None:
    calls = KvCalls(node.endpoint)
    try:
        for number in range(first, last):
            calls.put(b"key/%04d" % number, b"value %d" % number, timeout_s=10)
    finally:
        calls.close()


def assert_holds(node: NodeProcess, count: int) -> None:
    calls = KvCalls(node.endpoint)
    try:
        found = calls.pairs(b"key/")
    finally:
        calls.close()
    assert {key: value for key, (value, _) in found.items()} == {b"key/%04d" % n: b"value %d" % n for n in range(count)}


def run_until_it_works(page: Procedure, name: str) -> str:
    """The page says: try again while the answer is `unhealthy cluster`."""
    until_s = time.monotonic() + 60
    while True:
        try:
            return page.run(name).stdout
        except ProcedureError as refused:
            if "unhealthy cluster" not in str(refused) or time.monotonic() > until_s:
                raise
            time.sleep(RETRY_S)


def ids_by_name(page: Procedure) -> dict[str, str]:
    rows = [line.split(", ") for line in page.run("list").stdout.splitlines()]
    return {name: member_id for member_id, _, name, *_ in rows}


def member(page: Procedure, block: str, name: str, like: NodeProcess) -> NodeProcess:
    """The member that a block of the page starts; its log lies beside the page's directories."""
    return NodeProcess(
        name=name,
        directory=page.directory / "logs" / name,
        client_port=like.client_port,
        peer_port=like.peer_port,
        http_port=like.http_port,
        flags=page.server_flags(block),
    )


def refusal(node: NodeProcess) -> str:
    """Start it, and return the last line of its log: it must not run."""
    node.start(wait_ready=False)
    assert node.wait_ended(timeout_s=60) == 1
    return node.log_path.read_text().strip().splitlines()[-1]


def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    ports = PortAllocator()
    with ProcessCluster(tmp_path / "old", ports=ports) as cluster:
        kv1, kv2, kv3 = cluster.nodes
        spare = NodeProcess(
            name="kv4", directory=tmp_path, client_port=ports.next_port(), peer_port=ports.next_port(), http_port=ports.next_port()
        )
        names = {"/var/lib/kvserver/kv2": str(kv2.data_dir), "/var/lib/kvserver": str(tmp_path / "data")}
        for number, node in enumerate([kv1, kv2, kv3, spare], 1):
            names[f"10.0.0.{number}:2379"] = f"127.0.0.1:{node.client_port}"
            names[f"10.0.0.{number}:2380"] = f"127.0.0.1:{node.peer_port}"
        page = Procedure.read(OPERATIONS / "replace-a-dead-member.md", names, tmp_path)
        started: list[NodeProcess] = []
        try:
            cluster.start()
            put_some(kv1, 0, 100)

            kv3.kill()
            shutil.rmtree(kv3.data_dir)
            assert "member remove" in refusal(kv3)  # what must not be done: the old id with nothing remembered
            names[PAGE_IDS["kv3"]] = page.substitutions[PAGE_IDS["kv3"]] = ids_by_name(page)["kv3"]
            run_until_it_works(page, "remove")
            run_until_it_works(page, "add")
            kv4 = member(page, "start", "kv4", spare)
            started.append(kv4)
            kv4.start()
            put_some(kv4, 100, 120)
            assert_holds(kv4, 120)
            assert page.run("check").stdout.count("is healthy") + page.run("check").stderr.count("is healthy") >= 3

            kv2.kill()
            segment = sorted((kv2.data_dir / "member" / "wal").glob("*.wal"))[-1]
            damaged = bytearray(segment.read_bytes())
            damaged[300] ^= 4
            segment.write_bytes(damaged)
            said = refusal(kv2)
            assert str(segment) in said
            assert "docs/operations/replace-a-dead-member.md" in said
            page.substitutions[PAGE_IDS["kv2"]] = ids_by_name_without(page, kv1, kv4)["kv2"]
            page.run("keep")
            kept = kv2.data_dir.with_name(kv2.data_dir.name + ".refused") / "member" / "wal" / segment.name
            assert kept.read_bytes() == bytes(damaged)
            run_in_place(page)
            again = member(page, "start in place", "kv2", kv2)
            started.append(again)
            again.start()
            assert_holds(again, 120)
            page.check_all_used()
        finally:
            for node in started:
                node.kill()


def ids_by_name_without(page: Procedure, *living: NodeProcess) -> dict[str, str]:
    """Who is there, asked of these members."""
    probe = Procedure(
        page=page.page,
        blocks={"list": f"kvctl --endpoints={','.join(node.endpoint for node in living)} member list"},
        substitutions={},
        directory=page.directory,
    )
    return ids_by_name(probe)


def run_in_place(page: Procedure) -> None:
    """The two commands of the block, each until the strict checks are content: the first must not run again once it worked."""
    remove, add = page.text("replace in place").strip().splitlines()
    for name, command in (("remove", remove), ("add", add)):
        one = Procedure(page=page.page, blocks={name: command}, substitutions={}, directory=page.directory)
        run_until_it_works(one, name)
