"""docs/operations/corruption.md, executed: a bit is flipped on one member's disk, found, and the member replaced as the page says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.docs_procedure import OPERATIONS, Procedure, ProcedureError, Result
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster

RETRY_S = 0.3
"""Between two attempts of a command that is refused for now: starting kvctl over and over would take the processor from the members."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

VICTIM = b"value that rots"


def put_some(node: NodeProcess) -> None:
    calls = KvCalls(node.endpoint)
    try:
        for number in range(50):
            calls.put(b"key%d" % number, b"value %d" % number, timeout_s=20)
        calls.put(b"rotten", VICTIM, timeout_s=20)
    finally:
        calls.close()


def flip_a_bit(store: Path) -> None:
    """In every place where the value stands, in use or not."""
    content = bytearray(store.read_bytes())
    place = content.find(VICTIM)
    assert place >= 0
    while place >= 0:
        content[place] ^= 1
        place = content.find(VICTIM)
    store.write_bytes(content)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.1)


def run_until_it_works(page: Procedure, name: str) -> Result:
    """The page says: try again while the answer is "unhealthy cluster"."""
    until_s = time.monotonic() + 60
    while True:
        try:
            return page.run(name)
        except ProcedureError as error:
            if "unhealthy cluster" not in str(error) or time.monotonic() > until_s:
                raise
            time.sleep(RETRY_S)


def test_the_corruption_page_works_as_it_is_written(tmp_path: Path) -> None:
    flags = ("--corrupt-check-time=1s",)
    fresh: NodeProcess | None = None
    with ProcessCluster(tmp_path / "cluster", flags=flags, ports=PortAllocator()) as cluster:
        damaged = cluster.nodes[2]
        found = {"/var/lib/kvserver": str(damaged.data_dir)}
        for number, node in enumerate(cluster.nodes, 1):
            found[f"10.0.0.{number}:2379"] = node.endpoint
            found[f"10.0.0.{number}:2380"] = f"127.0.0.1:{node.peer_port}"
        page = Procedure.read(OPERATIONS / "corruption.md", found, tmp_path)
        try:
            cluster.start()
            put_some(cluster.nodes[0])
            damaged.stop()
            page.run("check")
            flip_a_bit(damaged.data_dir / "member" / "snap" / "db")
            said = page.run("check", exit_code=1).stdout
            assert "fails its checksum" in said
            assert "at offset" in said
            assert "the log is sound; a server would start" in page.run("wal").stdout

            damaged.start()
            wait_until(lambda: damaged.metrics().get("kvserver_corrupt_check_damaged_total", 0) > 0, "the periodic check finds it")
            wait_until(lambda: bool(damaged.log_events("the store is corrupt")), "the log says it")
            wait_until(lambda: all(node.log_events("alarm raised") for node in cluster.nodes), "every member's log says whose disk it is")
            who = page.run("who").stdout
            assert f"http://127.0.0.1:{damaged.peer_port}" in who
            assert [who.startswith(str(line["from"])) for node in cluster.nodes for line in node.log_events("alarm raised")] == [True] * 3
            calls = KvCalls(damaged.endpoint)
            with pytest.raises(grpc.RpcError, match="corrupt cluster"):
                calls.range(rpc_pb2.RangeRequest(key=b"rotten", serializable=True))
            calls.close()
            damaged.kill()

            page.run("keep")
            run_until_it_works(page, "remove")
            run_until_it_works(page, "add")
            fresh = NodeProcess(
                name="kv3",
                directory=tmp_path / "fresh",
                client_port=damaged.client_port,
                peer_port=damaged.peer_port,
                http_port=damaged.http_port,
                flags=page.server_flags("start"),
            )
            fresh.start()
            compared = page.run("compare").stdout
            hashes = {line.split(",")[1].strip() for line in compared.splitlines() if line.startswith("127.0.0.1")}
            assert len(hashes) == 1
            assert "alarm:CORRUPT" in compared
            calls = KvCalls(fresh.endpoint)
            assert calls.range(rpc_pb2.RangeRequest(key=b"rotten")).kvs[0].value == VICTIM
            calls.close()
            page.check_all_used()
        finally:
            if fresh is not None:
                fresh.kill()
