"""What the transport tells the node: received snapshots that nobody wants leave no file behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node.driver import Driver
from kvserver.node.peer_handler import NodePeerHandler
from kvserver.node.peers import PeerBook
from kvserver.types import ClusterId, NodeId
from raft.messages import Message, MessageType
from raft.types import Index, Snapshot, SnapshotMetadata, Term


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


class FakeDriver:
    def __init__(self, applied_index: int) -> None:
        self.applied_index = Index(applied_index)
        self.stepped: list[Message] = []

    def step(self, message: Message, floor: Index) -> None:
        del floor
        self.stepped.append(message)


def handler_over(driver: FakeDriver) -> NodePeerHandler:
    handler = NodePeerHandler(
        cluster_id=ClusterId(1),
        members=dict,
        removed=frozenset,
        on_removed=lambda: None,
        book=PeerBook(),
        metrics=Metrics(version="test"),
        log=Logger(SilentOutput()),
    )
    handler.driver = cast("Driver", cast("Any", driver))
    return handler


@pytest.mark.parametrize(("applied_index", "kept"), [(49, True), (50, False), (51, False)])
def test_a_snapshot_of_what_is_applied_already_is_removed_and_raft_answers_all_the_same(
    tmp_path: Path, applied_index: int, kept: bool
) -> None:
    driver = FakeDriver(applied_index)
    path = tmp_path / "received"
    path.write_bytes(b"a store")
    snapshot = Snapshot(metadata=SnapshotMetadata(index=Index(50), term=Term(2)))
    message = Message(type=MessageType.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(2), snapshot=snapshot)
    handler_over(driver).on_snapshot_received(message, path)
    assert driver.stepped == [message]
    assert path.exists() is kept
