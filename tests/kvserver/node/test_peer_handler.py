"""What the transport tells the node, and what the node makes of it: which received snapshots are of use, what is admitted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import peers
from kvserver.node.driver import Driver
from kvserver.node.inflow import Inflow
from kvserver.node.peer_handler import NodePeerHandler
from kvserver.node.peers import PeerBook
from kvserver.peer import SnapshotOutcome
from kvserver.types import ClusterId, NodeId
from raft.messages import Message, MessageType
from raft.types import Index, Snapshot, SnapshotMetadata, Term


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


class FakeDriver:
    """A driver whose core is installing the snapshot at `pending`."""

    def __init__(self, pending: int | None = None) -> None:
        self.raw = self
        self.pending_snapshot_index = pending
        self.stepped: list[Message] = []
        self.contacts: list[int] = []
        self.reported: list[tuple[int, bool]] = []

    def note_contact(self, peer: NodeId) -> None:
        self.contacts.append(peer)

    def report_snapshot(self, peer: NodeId, *, delivered: bool) -> None:
        self.reported.append((peer, delivered))

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
    nothing = Metrics(version="test").appends_held.add
    handler.inflow = Inflow(handler.driver, limit_bytes=1, max_held_bytes=1, on_held=nothing, on_dropped=nothing)
    return handler


@pytest.mark.parametrize(("pending", "kept"), [(50, True), (None, False), (51, False)])
def test_a_snapshot_that_raft_does_not_take_is_of_no_use_and_raft_answers_all_the_same(pending: int | None, kept: bool) -> None:
    """Neither one of what is applied, nor one of what is merely committed: the log brings that."""
    driver = FakeDriver(pending)
    snapshot = Snapshot(metadata=SnapshotMetadata(index=Index(50), term=Term(2)))
    message = Message(type=MessageType.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(2), snapshot=snapshot)
    assert handler_over(driver).on_snapshot_received(message, Path("received"), 7) is kept
    assert driver.stepped == [message]


def test_what_is_not_admitted_never_reaches_raft_but_shows_that_the_peer_is_alive() -> None:
    driver = FakeDriver()
    handler = handler_over(driver)
    heartbeat = Message(type=MessageType.HEARTBEAT, from_=NodeId(2), to=NodeId(1), term=Term(2))
    forwarded = Message(type=MessageType.PROP, from_=NodeId(2), to=NodeId(1))
    handler.admit = lambda message: None if message.type is MessageType.PROP else message
    handler.on_message(heartbeat, Index(0))
    handler.on_message(forwarded, Index(0))
    assert driver.stepped == [heartbeat]
    assert driver.contacts == [2]


async def test_raft_hears_of_a_failed_snapshot_after_a_pause_that_grows_and_of_a_delivered_one_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raft asks for the next one at once, and each costs the leader a copy of its store: a full disk stays full for a while."""
    driver = FakeDriver()
    handler = handler_over(driver)
    failed = SnapshotOutcome(to=NodeId(2), ok=False, reason="no space", sent_bytes=0, duration_s=0.1)
    pause_s = 1000.0  # far more than this test takes, however slow the machine
    monkeypatch.setattr(peers, "FIRST_SNAPSHOT_PAUSE_S", pause_s)
    monkeypatch.setattr(peers, "MAX_SNAPSHOT_PAUSE_S", 4 * pause_s)
    loop, ahead_s = asyncio.get_running_loop(), 0.0
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + ahead_s)

    async def let_pass(duration_s: float) -> None:
        nonlocal ahead_s
        ahead_s += duration_s
        for _ in range(3):  # the timers that are due fire
            await asyncio.sleep(0)

    handler.on_snapshot_result(failed)
    await let_pass(0.5 * pause_s)
    assert driver.reported == []
    await let_pass(0.5 * pause_s)
    assert driver.reported == [(2, False)]
    handler.on_snapshot_result(failed)
    await let_pass(1.5 * pause_s)
    assert driver.reported == [(2, False)], "the second pause is twice as long"
    await let_pass(0.5 * pause_s)
    assert driver.reported == [(2, False)] * 2
    handler.on_snapshot_result(replace(failed, ok=True))
    assert driver.reported[-1] == (2, True)


def test_the_pause_after_failed_snapshots_doubles_up_to_a_bound_and_ends_with_success() -> None:
    book = PeerBook()
    pauses = [book.pause_after_failure_s(NodeId(2)) for _ in range(20)]
    assert pauses[:3] == [peers.FIRST_SNAPSHOT_PAUSE_S * factor for factor in (1, 2, 4)]
    assert pauses[-1] == peers.MAX_SNAPSHOT_PAUSE_S
    assert book.pause_after_failure_s(NodeId(3)) == peers.FIRST_SNAPSHOT_PAUSE_S
    book.note_delivered(NodeId(2))
    assert book.pause_after_failure_s(NodeId(2)) == peers.FIRST_SNAPSHOT_PAUSE_S
