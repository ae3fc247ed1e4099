"""What a running member says of itself: the alarms in its log, and what is wrong in its status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvserver.commands import CommandKind
from kvserver.config import ServerConfig, parse
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import Node
from kvserver.pb.rpc_pb2 import NOSPACE, AlarmRequest, AlarmType
from kvserver.server import ClusterFacts
from kvserver.testing.ports import PortAllocator

OTHER = 0xABCDEF


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write_line(self, line: str) -> None:
        self.lines.append(json.loads(line))

    def take(self, *events: str) -> list[tuple[str, str, str]]:
        """The lines of these events since the last look."""
        found = [(line["msg"], line["alarm"], line["from"]) for line in self.lines if line["msg"] in events]
        self.lines = []
        return found


def config_for(root: Path) -> ServerConfig:
    ports = PortAllocator()
    peer, client = (f"http://127.0.0.1:{ports.next_port()}" for _ in range(2))
    flags = [f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"]
    invocation = parse(
        ["--name=a", f"--data-dir={root}", *flags, f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=a={peer}"], {}
    )
    return invocation.config  # type: ignore[union-attr]


async def change(node: Node, action: AlarmRequest.AlarmAction.ValueType, member: int, kind: AlarmType.ValueType = NOSPACE) -> None:
    request = AlarmRequest(action=action, memberID=member, alarm=kind)
    await node.proposals.propose(CommandKind.ALARM, request, deadline_s=node.now_s() + 20.0)


async def test_a_member_logs_every_alarm_that_it_applies_whoever_raised_it_and_those_that_it_finds_at_its_start(tmp_path: Path) -> None:
    config, lines = config_for(tmp_path), Lines()
    events = ("alarm raised", "alarm disarmed", "alarm raised before this start")
    node = await Node.start(config, metrics=Metrics(version="test"), log=Logger(lines))
    try:
        await node.wait_published()
        assert lines.take(*events) == []
        assert await node.alarms.wait_raised(NOSPACE, deadline_s=node.now_s() + 20.0)
        assert lines.take(*events) == [("alarm raised", "NOSPACE", f"{node.member_id:x}")], "once, although it raised it itself"
        await change(node, AlarmRequest.ACTIVATE, OTHER)
        await change(node, AlarmRequest.ACTIVATE, OTHER)
        await change(node, AlarmRequest.DEACTIVATE, 12345)
        assert lines.take(*events) == [("alarm raised", "NOSPACE", "abcdef")]
        await change(node, AlarmRequest.DEACTIVATE, node.member_id)
        assert lines.take(*events) == [("alarm disarmed", "NOSPACE", f"{node.member_id:x}")]
    finally:
        await node.stop()
    node = await Node.start(config, metrics=Metrics(version="test"), log=Logger(lines))
    try:
        await node.wait_published()
        assert lines.take(*events) == [("alarm raised before this start", "NOSPACE", "abcdef")]
    finally:
        await node.stop()


async def test_status_shows_a_want_of_disk_space_while_it_lasts(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    node = await Node.start(config, metrics=Metrics(version="test"), log=Logger(Lines()))
    try:
        facts = ClusterFacts(node, config)
        assert facts.status().errors == ()
        node.space.note_store(OSError("full"))
        (error,) = facts.status().errors
        assert error.startswith("short of disk space (store): ")
        assert str(tmp_path) not in error, "clients need not know where it lies"
    finally:
        await node.stop()
