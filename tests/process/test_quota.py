"""The quota on real servers: the procedure of docs/operations/quota.md, restarts, and etcd 3.4 beside us."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.docs_procedure import OPERATIONS, Procedure
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess

pytestmark = [pytest.mark.process, pytest.mark.etcd]

NO_SPACE = "etcdserver: mvcc: database space exceeded"
CORRUPT_CLUSTER = "etcdserver: corrupt cluster"
WAIT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def etcdctl_path() -> str:
    found = shutil.which("etcdctl")
    if found is None:
        if os.environ.get("KVSERVER_NO_ETCD") == "1":
            pytest.skip("etcdctl is not installed (Debian package etcd-client) and KVSERVER_NO_ETCD=1 allows that")
        pytest.fail("etcdctl is not installed (Debian package etcd-client); KVSERVER_NO_ETCD=1 skips these tests")
    return found


def run(tool: str, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """etcdctl or kvctl on one endpoint."""
    command = ["etcdctl"] if tool == "etcdctl" else [sys.executable, "-m", "kvserver.cli.main"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ETCDCTL_", "KVCTL_"))} | {"ETCDCTL_API": "3"}
    return subprocess.run(
        [*command, f"--endpoints={endpoint}", *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=30,
        check=False,
        env=environment,
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def health(node: NodeProcess, path: str) -> tuple[int, str]:
    try:
        return 200, node.http(path).decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def has_health(node: NodeProcess, code: int) -> bool:
    return health(node, "/health")[0] == code


def fill(endpoint: str, value_bytes: int = 60_000) -> str:
    """Put one key over and over until that is refused; returns what etcdctl said."""
    for _ in range(200):
        outcome = run("etcdctl", endpoint, "put", "logs/today", "v" * value_bytes)
        if outcome.returncode:
            return outcome.stderr
    raise AssertionError("the quota never refused a put")


def test_the_procedure_for_a_store_at_its_quota(make_cluster: Any, tmp_path: Path) -> None:
    cluster = make_cluster(flags=("--quota-backend-bytes=2MiB",))
    cluster.start()
    names = {f"10.0.0.{number}:2379": node.endpoint for number, node in enumerate(cluster.nodes, 1)}
    page = Procedure.read(OPERATIONS / "quota.md", names, tmp_path)
    assert NO_SPACE in fill(cluster.nodes[1].endpoint)

    line = run("etcdctl", cluster.nodes[0].endpoint, "alarm", "list").stdout
    assert re.fullmatch(r"memberID:\d+ alarm:NOSPACE \n", line)
    for node in cluster.nodes:
        wait_until(partial(has_health, node, 503), "the alarm reaches every member")
        assert health(node, "/health") == (503, '{"health":"false","reason":"ALARM NOSPACE"}')
        assert [health(node, path)[0] for path in ("/health?exclude=NOSPACE", "/livez", "/readyz")] == [200, 200, 200]
        assert run("etcdctl", node.endpoint, "put", "a", "1").stderr.endswith(f"Error: {NO_SPACE}\n")
        assert run("etcdctl", node.endpoint, "endpoint", "status").stdout.endswith(f", {line}")
        assert run("etcdctl", node.endpoint, "get", "--keys-only", "logs/today").stdout == "logs/today\n\n"
        (raised,) = node.log_events("alarm raised")
        assert (raised["alarm"], f"memberID:{int(str(raised['from']), 16)} alarm:NOSPACE \n") == ("NOSPACE", line)
    endpoint = cluster.nodes[2].endpoint
    assert run("kvctl", endpoint, "put", "a", "1").stderr == f"Error: {NO_SPACE}\n"
    assert "Active Alarm(s): NOSPACE" in run("kvctl", endpoint, "endpoint", "health").stderr

    looked = page.run("look").stdout.splitlines(keepends=True)
    assert looked[0] == line
    assert [each.endswith(f", {line}") for each in looked[1:]] == [True] * 3
    assert page.run("delete").stdout == "1\n"
    page.run("compact")

    def is_free() -> bool:
        sizes = [int(each.rpartition(":")[2]) for each in page.run("check").stdout.splitlines()]
        assert len(sizes) == 3
        return max(sizes) < 1 << 20

    wait_until(is_free, "compaction frees space on every member")
    assert page.run("disarm").stdout == line + "OK\n"
    page.check_all_used()
    for node in cluster.nodes:
        assert run("etcdctl", node.endpoint, "put", "a", "1").stdout == "OK\n"
        wait_until(partial(has_health, node, 200), "every member is healthy again")
        assert len(node.log_events("alarm disarmed")) == 1
    hashes = run("etcdctl", cluster.endpoints, "endpoint", "hashkv").stdout.splitlines()
    assert len({each.split(", ")[-1] for each in hashes}) == 1


def test_an_alarm_survives_a_restart_and_a_greater_quota_lets_disarm(make_node: Any, tmp_path: Path) -> None:
    node = make_node("--quota-backend-bytes=1MiB")
    node.start()
    fill(node.endpoint)
    before = run("etcdctl", node.endpoint, "alarm", "list").stdout
    node.kill()
    node.start()
    assert run("etcdctl", node.endpoint, "alarm", "list").stdout == before != ""
    for form in ("json", "fields", "protobuf", "table"):
        theirs, ours = [run(tool, node.endpoint, "alarm", "list", "-w", form) for tool in ("etcdctl", "kvctl")]
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert run("etcdctl", node.endpoint, "alarm", "disarm").stdout == before
    assert NO_SPACE in run("etcdctl", node.endpoint, "put", "big", "v" * 60_000).stderr
    assert run("etcdctl", node.endpoint, "alarm", "list").stdout == before, "still over the quota: raised again"
    node.stop()
    node.flags.append("--quota-backend-bytes=-1")
    node.start()
    assert NO_SPACE in run("etcdctl", node.endpoint, "put", "tiny", "1").stderr
    assert run("kvctl", node.endpoint, "alarm", "disarm", "-w", "json").stdout.startswith('{"alarms":[{"memberID":')
    assert run("etcdctl", node.endpoint, "put", "big", "v" * 90_000).stdout == "OK\n"
    assert node.metrics()["etcd_server_quota_backend_bytes"] == -1


def test_many_writers_at_once_do_not_carry_the_store_over_its_quota(make_node: Any) -> None:
    quota = 4 << 20
    node = make_node(f"--quota-backend-bytes={quota}")
    node.start()
    value = b"v" * 500_000
    with grpc.insecure_channel(node.endpoint, options=[("grpc.max_receive_message_length", -1)]) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", pb.PutRequest.SerializeToString, pb.PutResponse.FromString)
        calls = [put.future(pb.PutRequest(key=b"k%d" % number, value=value), timeout=30) for number in range(40)]
        codes = [call.code() for call in calls]
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    taken = codes.count(grpc.StatusCode.OK)
    assert 5 <= taken <= 8
    used = "etcd_mvcc_db_total_size_in_use_in_bytes"
    wait_until(lambda: node.metrics()[used] >= taken * len(value), "everything that was taken is committed")
    assert node.metrics()[used] <= quota
    assert len(run("etcdctl", node.endpoint, "alarm", "list").stdout.splitlines()) == 1
    assert len(node.log_events("alarm raised")) == 1


# --- beside etcd -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server, spoken to in plain gRPC; headers are left out of answers."""

    endpoint: str
    channel: grpc.Channel

    def __call__(self, service: str, method: str, request: Message) -> Any:
        answer_type = getattr(pb, type(request).__name__.replace("Request", "Response"))
        call = self.channel.unary_unary(f"/etcdserverpb.{service}/{method}", type(request).SerializeToString, answer_type.FromString)
        try:
            answer = call(request, timeout=10)
        except grpc.RpcError as error:
            return error.code(), error.details()
        answer.ClearField("header")
        return str(answer)

    def put(self, key: bytes, value: bytes = b"v", **fields: Any) -> Any:
        return _without_revisions(self("KV", "Put", pb.PutRequest(key=key, value=value, **fields)))

    def txn(self, success: list[pb.RequestOp], failure: list[pb.RequestOp] | None = None) -> Any:
        return _without_revisions(self("KV", "Txn", pb.TxnRequest(success=success, failure=failure or [])))

    def alarm(self, action: Any, member: int, kind: int) -> Any:
        return self("Maintenance", "Alarm", pb.AlarmRequest(action=action, memberID=member, alarm=kind))  # type: ignore[arg-type]

    @property
    def member(self) -> int:
        answer = self("Maintenance", "Status", pb.StatusRequest())
        return int(str(answer).partition("leader: ")[2].split()[0])


def masked(side: Side, answer: Any) -> Any:
    """The server's own id is masked."""
    return answer.replace(str(side.member), "ME") if isinstance(answer, str) else answer


def _without_revisions(answer: Any) -> Any:
    return answer if isinstance(answer, tuple) else "\n".join(line for line in answer.splitlines() if "revision" not in line)


@pytest.fixture
def sides(make_node: Any, tmp_path: Path, ports: PortAllocator) -> Iterator[tuple[Side, Side]]:
    """etcd and kvserver, each a single member with a small quota."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian package etcd-server)")
    client, peer = ports.next_port(), ports.next_port()
    command = ["etcd", f"--data-dir={tmp_path / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}"]
    command += [f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}", "--name=solo"]
    command += [f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=solo=http://127.0.0.1:{peer}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
    etcd = subprocess.Popen(
        [*command, "--quota-backend-bytes=1048576"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        node = make_node("--quota-backend-bytes=1MiB")
        node.start()
        with grpc.insecure_channel(f"127.0.0.1:{client}") as theirs, grpc.insecure_channel(node.endpoint) as ours:
            grpc.channel_ready_future(theirs).result(30)
            etcd_side = Side(endpoint=f"127.0.0.1:{client}", channel=theirs)
            wait_until(lambda: etcd_side.put(b"ready") == "", "etcd serves")
            yield etcd_side, Side(endpoint=node.endpoint, channel=ours)
    finally:
        etcd.kill()
        etcd.wait(10)


PUT = pb.RequestOp(request_put=pb.PutRequest(key=b"p"))
RANGE = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", count_only=True))
DELETE = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"none"))
GET, ACTIVATE, DEACTIVATE = pb.AlarmRequest.GET, pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE


def both(sides: tuple[Side, Side], ask: Callable[[Side], Any]) -> Any:
    """The one answer of both servers."""
    theirs, ours = [masked(side, ask(side)) for side in sides]
    assert theirs == ours
    return ours


def test_the_quota_and_its_alarm_behave_as_in_etcd(sides: tuple[Side, Side]) -> None:
    for side in sides:
        for number in range(200):
            if isinstance(side.put(b"k%d" % number, b"v" * 50_000), tuple):
                break
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, NO_SPACE)
    assert both(sides, lambda side: side.put(b"k", b"v" * 50_000)) == refused
    assert both(sides, lambda side: run("etcdctl", side.endpoint, "alarm", "list").stdout) == "memberID:ME alarm:NOSPACE \n"
    assert both(sides, lambda side: side.put(b"small")) == refused
    assert both(sides, lambda side: side.txn([PUT])) == refused
    assert both(sides, lambda side: side.txn([RANGE], [PUT])) == refused
    for ops in ([RANGE], [DELETE], [DELETE, RANGE], []):
        assert not isinstance(both(sides, partial(Side.txn, success=ops)), tuple)
    assert not isinstance(both(sides, lambda side: side("KV", "DeleteRange", pb.DeleteRangeRequest(key=b"k0"))), tuple)
    assert both(sides, lambda side: run("etcdctl", side.endpoint, "alarm", "disarm").stdout) == "memberID:ME alarm:NOSPACE \n"
    assert both(sides, lambda side: side("Maintenance", "Alarm", pb.AlarmRequest())) == ""
    assert both(sides, lambda side: side.put(b"k", b"v" * 50_000)) == refused, "still over the quota"
    assert both(sides, lambda side: side.alarm(GET, 0, pb.NOSPACE)) == "alarms {\n  memberID: ME\n  alarm: NOSPACE\n}\n"
    for side in sides:
        side("KV", "DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        now = json.loads(run("etcdctl", side.endpoint, "get", "none", "-w", "json").stdout)["header"]["revision"]
        assert run("etcdctl", side.endpoint, "compaction", "--physical", str(now)).returncode == 0
    assert run("etcdctl", sides[0].endpoint, "defrag").returncode == 0, "which etcd needs and we don't"
    assert both(sides, lambda side: side.put(b"k")) == refused, "there is room, and the alarm is raised all the same"
    assert both(sides, lambda side: run("etcdctl", side.endpoint, "alarm", "disarm").stdout) == "memberID:ME alarm:NOSPACE \n"
    assert both(sides, lambda side: side.put(b"k")) == ""


def test_alarm_requests_are_answered_as_in_etcd(sides: tuple[Side, Side]) -> None:
    for member, kind in [(5, 0), (0, 1), (9, 7), (9, 7), (3, 2), (2**64 - 1, 1)]:
        both(sides, partial(Side.alarm, action=ACTIVATE, member=member, kind=kind))
    for kind in (1, 2, 7, 99):
        theirs, ours = [sorted(side.alarm(GET, 12345, kind).splitlines()) for side in sides]
        assert theirs == ours
        assert (ours == []) == (kind == 99)
    for member, kind in [(0, 0), (77, 1), (9, 7), (9, 7), (5, 0), (0, 2), (3, 0)]:
        both(sides, partial(Side.alarm, action=DEACTIVATE, member=member, kind=kind))
    left = both(sides, lambda side: "".join(sorted(run("etcdctl", side.endpoint, "alarm", "list").stdout.splitlines(keepends=True))))
    assert left == "alarm:NOSPACE \nmemberID:18446744073709551615 alarm:NOSPACE \nmemberID:3 alarm:CORRUPT \n"


def test_damaged_data_refuses_writes_as_in_etcd_and_reads_as_well(sides: tuple[Side, Side]) -> None:
    for side in sides:
        side.put(b"a")
        side.alarm(ACTIVATE, 3, pb.CORRUPT)
    refused = (grpc.StatusCode.DATA_LOSS, CORRUPT_CLUSTER)
    assert both(sides, lambda side: side.put(b"a")) == refused
    assert both(sides, lambda side: side.txn([DELETE])) == refused
    assert both(sides, lambda side: side("KV", "DeleteRange", pb.DeleteRangeRequest(key=b"a"))) == refused
    assert both(sides, lambda side: side("KV", "Compact", pb.CompactionRequest(revision=1))) == refused
    theirs, ours = [side("KV", "Range", pb.RangeRequest(key=b"a", count_only=True)) for side in sides]
    assert (theirs, ours) == ("count: 1\n", refused)
    theirs, ours = [side.txn([RANGE]) for side in sides]
    assert (isinstance(theirs, str), ours) == (True, refused)


def test_where_we_are_stricter_than_etcd(sides: tuple[Side, Side]) -> None:
    """A nested put is a put; and an alarm request that doesn't exist is refused, where etcd crashes."""
    nested = pb.RequestOp(request_txn=pb.TxnRequest(success=[PUT]))
    for side in sides:
        side.alarm(ACTIVATE, 1, pb.NOSPACE)
    theirs, ours = [side.txn([nested]) for side in sides]
    assert (isinstance(theirs, str), ours) == (True, (grpc.StatusCode.RESOURCE_EXHAUSTED, NO_SPACE))
    unknown = pb.AlarmRequest.FromString(b"\x08\x09")
    assert sides[1]("Maintenance", "Alarm", unknown)[0] is grpc.StatusCode.UNIMPLEMENTED
