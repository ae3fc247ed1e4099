"""The care for disk space: what it refuses, whom it tells, when it lets go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import NoSpaceError
from kvserver.logs import Logger
from kvserver.node import space_watch
from kvserver.node.forwarding import ForwardKind
from kvserver.node.handover import HandOver
from kvserver.node.proposals import Proposals
from kvserver.node.space import SETTLED_BYTES, Disks, Refusal
from kvserver.node.space_watch import NO, YES, SpaceParts, SpaceWatch
from kvserver.node.worker import Worker
from kvserver.pb import rpc_pb2
from kvserver.peer import PeerNotConnectedError
from kvserver.types import NodeId
from raft.messages import Message, MessageType
from raft.types import Entry, Index, Term
from wal import Files

SELF, PEER, THIRD = NodeId(1), NodeId(2), NodeId(3)
STORE, WAL = Path("store"), Path("wal")
SEGMENT_BYTES = 1 << 20
PUT = rpc_pb2.PutRequest(key=b"k")
FULL = OSError("full")


class Bench:
    """Everything round one watch, faked."""

    def __init__(self, worker: Worker) -> None:
        self.lines: list[str] = []
        self.has_spare = True
        self.refillable = True
        self.on_spare_lost: Callable[[], None] | None = None
        self.has_room = True
        self.size_bytes = self.size_in_use_bytes = self.buffered_payload_bytes = 0
        self.free = SETTLED_BYTES
        self.looks: list[Path] = []
        self.is_leader = True
        self.leader_id = SELF
        self.asked: list[tuple[NodeId, int, bytes]] = []
        self.answers: dict[NodeId, bytes] = {}
        self.given_to: list[NodeId] = []
        self.fatal: list[Exception] = []
        self.resolved: list[tuple[ProposalId, Any]] = []
        self.refused: list[bool] = []
        self.watch = SpaceWatch(
            SpaceParts(
                member_id=SELF,
                wal=self,
                worker=worker,
                store=self,
                files=cast(Files, self),
                disks=Disks(store=STORE, wal=WAL, is_one=False),
                segment_bytes=SEGMENT_BYTES,
                driver=self,
                proposals=cast(Proposals, self),
                hand_over=cast(HandOver, self),
                ask=self.ask,
                contact_s=1.0,
                on_fatal=self.fatal.append,
                log=Logger(self),
            )
        )

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def refill_spare(self) -> bool:
        self.has_spare = self.refillable
        return self.has_spare

    def free_bytes(self, directory: Path) -> int:
        self.looks.append(directory)
        return self.free

    def ask(self, peer: NodeId, kind: int, payload: bytes, *, timeout_s: float) -> Awaitable[bytes]:
        assert timeout_s > 0

        async def answer() -> bytes:
            self.asked.append((peer, kind, payload))
            if peer not in self.answers:
                raise PeerNotConnectedError(peer)
            return self.answers[peer]

        return answer()

    def candidates(self, since_s: float) -> list[NodeId]:
        assert since_s <= asyncio.get_running_loop().time()
        return [PEER, THIRD]

    async def give_to(self, peer: NodeId) -> bool:
        self.given_to.append(peer)
        self.is_leader = False
        return True

    def resolve(self, proposal: ProposalId, result: PbMessage | Exception) -> None:
        self.resolved.append((proposal, result))

    def refuse_waiting(self, refuses: Callable[[bytes], bool], error: type[Exception]) -> None:
        assert error is NoSpaceError
        self.refused.append(refuses(commands.encode(CommandKind.PUT, ProposalId(SELF, 1, 1), b"")))

    def refuses(self, kind: CommandKind = CommandKind.PUT, request: PbMessage = PUT) -> bool:
        try:
            self.watch.check(kind, request)
        except NoSpaceError:
            return True
        return False

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - lets the watch's task and the worker run
                await asyncio.sleep(0.001)

    async def rounds(self, count: int = 3) -> None:
        """Wait until the task has gone round so often and drawn its conclusions; each round looks at what is free."""
        before = len(self.looks)
        await self.until(lambda: len(self.looks) > before + count)

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of that event."""
        return [line for line in map(json.loads, self.lines) if line["msg"] == event]


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(space_watch, "RETRY_S", 0.005)
    worker = Worker("wal")
    made = Bench(worker)
    yield made
    await made.watch.stop()
    await worker.stop()
    assert made.fatal == []


async def test_a_full_store_refuses_growth_until_a_commit_succeeded_and_space_has_settled(bench: Bench) -> None:
    assert not bench.refuses()
    bench.watch.note_store(FULL)
    assert bench.refuses()
    assert bench.refused == [True]
    assert not bench.refuses(CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"k"))
    bench.free = 0
    bench.watch.note_store(None)
    await bench.rounds()
    assert bench.refuses(), "a few bytes are no space"
    bench.free = SETTLED_BYTES
    await bench.until(lambda: not bench.refuses())
    assert any("writes are taken" in line for line in bench.lines)


async def test_a_commit_that_fails_again_keeps_the_store_short(bench: Bench) -> None:
    bench.watch.note_store(FULL)
    bench.free = 0
    bench.watch.note_store(None)
    bench.watch.note_store(FULL)
    bench.free = SETTLED_BYTES
    await bench.rounds()
    assert bench.refuses()


async def test_pages_that_are_free_in_the_file_count_as_space(bench: Bench) -> None:
    bench.free = 0
    bench.size_bytes, bench.size_in_use_bytes = 2 * SETTLED_BYTES, SETTLED_BYTES
    bench.watch.note_store(FULL)
    bench.watch.note_store(None)
    await bench.until(lambda: not bench.refuses())


async def test_a_full_write_buffer_refuses_deletions_as_well(bench: Bench) -> None:
    bench.watch.note_store(FULL)
    bench.has_room = False
    assert bench.refuses(CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"k"))
    with pytest.raises(NoSpaceError):
        bench.watch.check_change()


async def test_a_lost_spare_is_refilled_when_there_is_space(bench: Bench) -> None:
    bench.refillable = bench.has_spare = False
    assert bench.on_spare_lost is not None
    await asyncio.to_thread(bench.on_spare_lost)
    await bench.until(bench.refuses)
    await bench.rounds()
    assert bench.refuses()
    bench.refillable = True
    await bench.until(lambda: not bench.refuses())
    assert bench.has_spare


async def test_a_held_append_refuses_everything_until_it_is_saved_and_the_spare_is_back(bench: Bench) -> None:
    bench.refillable = False
    bench.watch.note_append(FULL)
    assert bench.watch.refusal is Refusal.EVERYTHING
    bench.watch.note_append(None)
    assert bench.watch.refusal is Refusal.GROWTH
    bench.refillable = True
    await bench.until(lambda: not bench.refuses())


async def test_a_member_that_starts_without_a_spare_is_short_from_the_beginning() -> None:
    worker = Worker("wal")

    class Spareless(Bench):
        def __init__(self) -> None:
            self.__dict__["has_spare"] = False
            super().__init__(worker)

        def __setattr__(self, name: str, value: object) -> None:
            if name != "has_spare":
                super().__setattr__(name, value)

    bench = Spareless()
    try:
        assert bench.refuses()
    finally:
        await bench.watch.stop()
        await worker.stop()


def let_pass(monkeypatch: pytest.MonkeyPatch, duration_s: float) -> None:
    """Put the loop's clock forward."""
    loop = asyncio.get_running_loop()
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + duration_s)


async def test_the_log_says_at_once_how_much_must_be_free_and_where(bench: Bench) -> None:
    bench.buffered_payload_bytes = 1000
    bench.watch.note_store(FULL)
    bench.watch.note_append(FULL)
    store, wal = bench.said("short of disk space: writes are refused")
    assert store["needed_bytes"] == {"store": SETTLED_BYTES + 1000}
    assert store["reason"] == "full"
    assert wal["needed_bytes"] == {"store": SETTLED_BYTES + 1000, "wal": 2 * SEGMENT_BYTES}


async def test_a_shortage_that_lasts_is_logged_each_minute_with_what_is_free_and_no_more_when_it_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = "still short of disk space: writes are refused"
    bench.free, bench.refillable = 123, False
    bench.watch.note_store(FULL)
    bench.watch.note_append(FULL)
    await bench.rounds()
    assert bench.said(event) == []
    for minute in (1, 2):
        let_pass(monkeypatch, space_watch.REMIND_S)
        await bench.until(lambda minute=minute: len(bench.said(event)) == 2 * minute)  # type: ignore[misc]
        await bench.rounds(6)
        assert len(bench.said(event)) == 2 * minute, "once for each disk, and then not for a minute"
    store, wal = bench.said(event)[-2:]
    assert (store["what"], store["directory"], store["free_bytes"], store["needed_bytes"]) == ("store", "store", 123, SETTLED_BYTES)
    assert (wal["what"], wal["directory"], wal["free_bytes"], wal["needed_bytes"]) == ("wal wal_spare", "wal", 123, 2 * SEGMENT_BYTES)
    assert store["short_s"] >= 2 * space_watch.REMIND_S
    bench.free, bench.refillable = SETTLED_BYTES, True
    bench.watch.note_append(None)
    bench.watch.note_store(None)
    await bench.until(lambda: not bench.refuses())
    (end,) = bench.said("there is disk space again: writes are taken")
    assert end["short_s"] >= 2 * space_watch.REMIND_S
    let_pass(monkeypatch, space_watch.REMIND_S)
    bench.free = 0
    bench.watch.note_store(FULL)
    await bench.rounds()
    assert len(bench.said(event)) == 4, "the minute begins with the shortage"


async def test_status_is_told_what_is_wanting_as_last_measured(bench: Bench) -> None:
    assert bench.watch.describe() == ()
    bench.free = 77
    bench.watch.note_store(FULL)
    assert bench.watch.describe() == (f"short of disk space (store): writes are taken again at {SETTLED_BYTES}",)
    await bench.rounds()
    assert bench.watch.describe() == (f"short of disk space (store): 77 bytes free; writes are taken again at {SETTLED_BYTES}",)
    bench.free = SETTLED_BYTES
    bench.watch.note_store(None)
    await bench.until(lambda: not bench.refuses())
    assert bench.watch.describe() == ()


async def test_leadership_goes_to_the_first_voter_that_says_it_has_space(bench: Bench) -> None:
    bench.answers = {PEER: NO, THIRD: YES}
    bench.watch.note_store(FULL)
    await bench.until(lambda: bench.given_to == [THIRD])
    assert [(peer, kind) for peer, kind, _ in bench.asked] == [(PEER, ForwardKind.HAS_SPACE), (THIRD, ForwardKind.HAS_SPACE)]


async def test_a_leader_keeps_leading_when_nobody_says_that_it_has_space(bench: Bench) -> None:
    bench.answers = {PEER: NO}  # the third one doesn't answer
    bench.watch.note_store(FULL)
    await bench.until(lambda: len(bench.asked) == 2)
    await bench.rounds()
    assert bench.given_to == []
    assert len(bench.asked) == 2, "asked again before the pause"


async def test_a_member_that_becomes_leader_while_it_is_short_looks_at_once(bench: Bench) -> None:
    bench.is_leader = False
    bench.watch.note_store(FULL)
    await bench.rounds()
    assert bench.asked == []
    bench.answers, bench.is_leader = {PEER: YES}, True
    bench.watch.note_leader()
    await bench.until(lambda: bench.given_to == [PEER])


def forwarded(*counters: int) -> Message:
    entries = tuple(
        Entry(
            index=Index(0),
            term=Term(0),
            data=commands.encode(CommandKind.PUT if counter else CommandKind.DELETE_RANGE, ProposalId(PEER, 7, counter), b""),
        )
        for counter in counters
    )
    return Message(type=MessageType.PROP, to=SELF, from_=PEER, entries=entries)


async def test_a_forwarded_write_that_is_refused_is_told_to_its_member(bench: Bench) -> None:
    message = forwarded(1, 0, 2)
    assert bench.watch.admit(message) is message
    bench.is_leader = False
    bench.watch.note_store(FULL)
    assert bench.watch.admit(message) is message, "a follower passes it on"
    bench.is_leader, bench.answers = True, {PEER: b""}
    admitted = bench.watch.admit(message)
    assert admitted is not None
    assert list(admitted.entries) == [message.entries[1]]
    assert bench.watch.admit(forwarded(3)) is None
    await bench.until(lambda: len([each for each in bench.asked if each[1] == ForwardKind.NO_SPACE]) == 2)
    heartbeat = Message(type=MessageType.HEARTBEAT_RESP, to=SELF, from_=PEER)
    assert bench.watch.admit(heartbeat) is heartbeat
    notice = next(payload for _, kind, payload in bench.asked if kind == ForwardKind.NO_SPACE)
    bench.leader_id = PEER
    bench.watch.note_store(None)
    bench.watch.take_notice(PEER, notice)
    assert [proposal for proposal, _ in bench.resolved] == [ProposalId(SELF, 7, 1), ProposalId(SELF, 7, 2)]
    assert all(isinstance(result, NoSpaceError) for _, result in bench.resolved)


async def test_after_a_notice_of_the_leader_growth_is_refused_here_for_a_while(bench: Bench) -> None:
    bench.leader_id = PEER
    bench.watch.take_notice(PEER, b"")
    assert bench.refuses()
    assert not bench.refuses(CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"k"))
    bench.watch.note_leader()
    assert not bench.refuses(), "another leader may have space"
    bench.watch.take_notice(THIRD, b"")
    assert not bench.refuses(), "only the leader's word counts"


async def test_a_notice_that_can_not_be_read_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no list"):
        bench.watch.take_notice(PEER, b"123")


async def test_a_member_says_of_itself_whether_it_has_space(bench: Bench) -> None:
    assert bench.watch.answer_has_space() == YES
    bench.watch.note_store(FULL)
    assert bench.watch.answer_has_space() == NO
