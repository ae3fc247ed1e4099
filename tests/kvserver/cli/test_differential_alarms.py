"""kvctl alarm beside etcdctl alarm: each tool with an etcd of its own, in which the same alarms are raised before every step.

Etcd lists alarms of several kinds in no fixed order, so a step has alarms of one kind, or one alarm.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvserver.client import Client, ClientConfig, methods, parse_endpoint
from kvserver.pb import rpc_pb2 as pb

pytestmark = pytest.mark.etcd

RAISED = [
    [],
    [(10276657743932975437, pb.NOSPACE)],
    [(5, pb.CORRUPT)],
    [(9, 7)],
    [(0, pb.NOSPACE)],
    [(12, pb.NONE)],
]
LINES = [f"alarm {command} -w {form}" for command in ("list", "disarm") for form in ("simple", "json", "protobuf")]
REFUSED = [
    "alarm list x",
    "alarm disarm x y",
    "alarm list -w table",
    "alarm list -w xyz",
    "--endpoints= alarm list",
    "--command-timeout=1ns alarm list",
]


def raise_alarms(endpoint: str, alarms: list[tuple[int, Any]]) -> None:
    async def work() -> None:
        async with Client(ClientConfig(endpoints=(parse_endpoint(endpoint),))) as client:
            for member, kind in alarms:
                await client.call(methods.ALARM, pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=kind))

    asyncio.run(work())


@pytest.mark.parametrize("raised", RAISED, ids=str)
def test_alarm_commands_print_what_etcdctl_prints(etcd: Any, twin: Any, etcdctl: Any, kvctl: Any, raised: list[tuple[int, Any]]) -> None:
    for line in LINES:
        for server in (etcd, twin):
            raise_alarms(server.endpoint, raised)
        expected = etcdctl(etcd.endpoint, line.split(), b"")
        found = kvctl(f"--endpoints={twin.endpoint}", *line.split())
        assert (found.code, found.stdout, found.stderr) == expected, line
        if " disarm " in line:
            assert kvctl(f"--endpoints={twin.endpoint}", "alarm", "list").stdout == b""


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_is_refused_alike(etcd: Any, etcdctl: Any, kvctl: Any, line: str) -> None:
    code, out, err = etcdctl(etcd.endpoint, line.split(), b"")
    found = kvctl(f"--endpoints={etcd.endpoint}", *line.split())
    own_words = b"".join(each for each in err.splitlines(keepends=True) if not each.startswith(b'{"level"'))
    assert (found.code, found.stdout, found.stderr) == (code, out, own_words)


def test_an_unsupported_format_disarms_nothing(etcd: Any, kvctl: Any) -> None:
    raise_alarms(etcd.endpoint, [(1, pb.NOSPACE)])
    refused = kvctl(f"--endpoints={etcd.endpoint}", "alarm", "disarm", "-w", "table")
    assert (refused.code, refused.stderr) == (4, b"Error: table not supported as output format\n")
    assert kvctl(f"--endpoints={etcd.endpoint}", "alarm", "list").stdout == b"memberID:1 alarm:NOSPACE \n"


def test_fields_show_the_alarms_with_and_without_a_header(etcd: Any, kvctl: Any) -> None:
    """Where etcdctl panics: etcd 3.4 answers without a header, and a disarm of several has none."""
    raise_alarms(etcd.endpoint, [(1, pb.NOSPACE)])
    shown = b'"MemberID" : 1\n"AlarmType" : NOSPACE\n\n'
    assert kvctl(f"--endpoints={etcd.endpoint}", "alarm", "list", "-w", "fields").stdout == shown
    assert kvctl(f"--endpoints={etcd.endpoint}", "alarm", "disarm", "-w", "fields").stdout == shown
