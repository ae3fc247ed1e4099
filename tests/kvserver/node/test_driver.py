"""The driver round a real core: proposals, failures of the core, snapshots wanted, compaction as soon as it is safe."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest

from kvserver.node.compaction import WindowLimits
from kvserver.node.driver import Driver, DriverHooks
from kvserver.node.forward_window import ForwardWindow
from kvserver.node.forwarded import Forwarded
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from raft.config import Config
from raft.messages import LOCAL_APPEND_THREAD, Message, MessageType
from raft.raw_node import RawNode
from raft.types import ConfState, Entry, HardState, Index, NodeId, Term

SELF, PEER = NodeId(1), NodeId(2)


class SilentLog:
    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


@dataclass
class Proposal:
    content: bytes
    is_wanted: bool = True
    taken_under: int | None = None

    def taken(self, term: Term) -> None:
        self.taken_under = term


@dataclass
class InstantQueue:
    """Storage that is done at once, at the next turn of the loop."""

    bench: Bench
    under_way: int = 0

    @property
    def is_idle(self) -> bool:
        return not self.under_way

    def submit(self, message: Message) -> None:
        self.under_way += 1
        asyncio.get_running_loop().call_soon(self._finish, message)

    def _finish(self, message: Message) -> None:
        self.under_way -= 1
        driver = self.bench.driver
        if message.to == LOCAL_APPEND_THREAD:
            self.bench.window.append(message.entries)
        elif message.entries:
            self.bench.durable_index = message.entries[-1].index
            driver.note_applied(message.entries[-1].index, message.entries[-1].term)
        driver.storage_responded(message.responses)


class Bench:
    """A driver with voters 1.. of which only this one exists."""

    def __init__(
        self, voters: int = 1, limits: WindowLimits | None = None, *, max_uncommitted_bytes: int = 0, window: ForwardWindow | None = None
    ) -> None:
        conf_state = ConfState(voters=tuple(NodeId(number) for number in range(1, voters + 1)))
        self.durable_index = Index(0)
        self.window = LogWindow(hard_state=HardState(), conf_state=conf_state, durable=lambda: (self.durable_index, conf_state))
        self.sent: list[Message] = []
        self.floors: list[int] = []
        self.fatal: list[Exception] = []
        self.invalid: list[Exception] = []
        self.compacted: list[int] = []
        self.snapshots: list[Message] = []
        self.accepts_snapshot = True
        self.book = PeerBook()
        config = Config(
            id=SELF,
            election_ticks=10,
            heartbeat_ticks=1,
            storage=self.window,
            random=random.Random(1),
            log_sink=SilentLog(),
            async_storage_writes=True,
            max_size_per_msg_bytes=1 << 20,
            max_uncommitted_size_bytes=max_uncommitted_bytes,
        )
        self.refused: list[Message] = []
        self.handed_back: list[Message] = []
        core = RawNode(config)
        self.forwarded = Forwarded(
            core,
            max_bytes=10_000,
            max_wait_ticks=70,
            senders=self,
            on_held=lambda: None,
            on_invalid=lambda message, error: self.invalid.append(error),
        )
        self.driver = Driver(
            raw=core,
            forwarded=self.forwarded,
            forward_window=window,
            window=self.window,
            peers=self.book,
            outbox=self,
            durability=self,
            limits=limits or WindowLimits(),
            tick_s=3600.0,
            hooks=DriverHooks(
                on_leader=lambda leader, previous, term: None,
                on_read_state=lambda context, index: None,
                on_snapshot_wanted=self.want_snapshot,
                on_new_term_applied=lambda term: None,
                on_compacted=lambda decision, dropped, took_s: self.compacted.append(dropped),
                on_invalid=lambda message, error: self.invalid.append(error),
                on_fatal=self.fatal.append,
            ),
        )
        queue: Any = InstantQueue(self)
        self.driver.start(queue, queue)

    def send(self, messages: Any, floor: Index) -> None:
        self.sent.extend(messages)
        self.floors.append(floor)

    def refuse(self, message: Message) -> None:
        self.refused.append(message)

    def hand_back(self, message: Message) -> None:
        self.handed_back.append(message)

    def want_snapshot(self, message: Message) -> bool:
        self.snapshots.append(message)
        return self.accepts_snapshot


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def leader():
    bench = Bench()
    bench.driver.campaign()
    await settle()
    assert bench.driver.is_leader
    yield bench
    bench.driver.stop()


async def test_the_proposals_of_one_turn_travel_together_and_in_order(leader: Bench) -> None:
    first = leader.window.last_index() + 1
    proposals = [Proposal(b"%d" % number) for number in range(10)]
    for proposal in proposals:
        leader.driver.propose(proposal)
    await settle()
    assert [proposal.taken_under for proposal in proposals] == [1] * 10
    held = leader.window.entries(Index(first), Index(leader.window.last_index() + 1), 1 << 30)
    assert [entry.data for entry in held] == [b"%d" % number for number in range(10)]
    assert leader.driver.applied_index == leader.window.last_index()


async def test_a_proposal_is_handed_over_at_once_when_the_disk_is_idle_and_with_the_others_when_it_is_busy(leader: Bench) -> None:
    first, second, third = Proposal(b"1"), Proposal(b"2"), Proposal(b"3")
    leader.driver.propose(first)
    assert first.taken_under == 1
    leader.driver.propose(second)
    leader.driver.propose(third)
    assert (second.taken_under, third.taken_under) == (None, None)
    await settle()
    assert (second.taken_under, third.taken_under) == (1, 1)


async def test_without_a_leader_proposals_wait_and_abandoned_ones_are_dropped() -> None:
    bench = Bench(voters=3)
    proposals = [Proposal(b"x") for _ in range(100)]
    for proposal in proposals:
        bench.driver.propose(proposal)
    await settle()
    for proposal in proposals[1:]:
        proposal.is_wanted = False
    bench.driver._tick()
    assert bench.driver._proposals == proposals[:1]
    assert [proposal.taken_under for proposal in proposals] == [None] * 100
    bench.driver.stop()


async def test_a_failing_core_is_fatal_and_nothing_follows(leader: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: RawNode) -> None:
        raise RuntimeError("broken core")

    monkeypatch.setattr(RawNode, "tick", broken)
    leader.driver._tick()
    assert [str(error) for error in leader.fatal] == ["broken core"]
    leader.driver.propose(Proposal(b"late"))
    leader.driver.report_unreachable(PEER)
    await settle()
    assert len(leader.fatal) == 1


async def test_an_impossible_message_is_reported_and_the_member_goes_on(leader: Bench) -> None:
    local = Message(type=MessageType.HUP, to=SELF, from_=PEER)
    leader.driver.step(local, Index(0))
    assert len(leader.invalid) == 1
    assert leader.fatal == []
    proposal = Proposal(b"still here")
    leader.driver.propose(proposal)
    await settle()
    assert proposal.taken_under == 1


async def test_a_wanted_snapshot_pins_its_position_unless_a_stream_is_under_way() -> None:
    bench = Bench(voters=3, limits=WindowLimits(max_entries=0, max_bytes=0))
    raw, driver, lagging = bench.driver.raw, bench.driver, NodeId(3)
    driver.campaign()
    await settle()
    driver.step(Message(type=MessageType.VOTE_RESP, to=SELF, from_=PEER, term=raw.term), Index(0))
    await settle()
    assert driver.is_leader
    for number in range(200):
        driver.propose(Proposal(b"%d" % number))
        await settle()
        last = bench.window.last_index()
        driver.step(Message(type=MessageType.APP_RESP, to=SELF, from_=PEER, term=raw.term, index=last), Index(0))
        await settle()
    assert bench.window.first_index() > 100, "the zero window keeps nothing for the lagging member"

    async def hear_from_lagging() -> None:
        driver.step(Message(type=MessageType.HEARTBEAT_RESP, to=SELF, from_=lagging, term=raw.term), Index(0))
        await settle()

    bench.accepts_snapshot = False
    await hear_from_lagging()
    assert (len(bench.snapshots), bench.book.pins) == (1, {})
    driver.report_snapshot(lagging, delivered=False)
    bench.accepts_snapshot = True
    await hear_from_lagging()
    assert (len(bench.snapshots), bench.book.pins) == (2, {lagging: bench.durable_index})
    driver.report_snapshot(lagging, delivered=False)
    assert bench.book.pins == {}
    assert bench.fatal == []
    driver.stop()


async def test_the_floor_that_rides_with_messages_follows_an_installed_snapshot() -> None:
    bench = Bench(voters=2)
    bench.window.reset(Index(500), Term(1))
    bench.driver.campaign()
    await settle()
    assert bench.floors
    assert set(bench.floors) == {500}
    bench.driver.stop()


async def test_a_single_node_compacts_to_the_slack(leader: Bench) -> None:
    for _ in range(50):
        for _ in range(10):
            leader.driver.propose(Proposal(b"v" * 100))
        await settle()
    assert leader.window.entry_count < 110
    assert sum(leader.compacted) >= 390


async def test_waiting_for_a_leader_change_leaves_nothing_behind_when_cancelled(leader: Bench) -> None:
    task = asyncio.get_running_loop().create_task(leader.driver.wait_leader_change())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leader.driver._waiters.leader == []


# --- forwarded writes --------------------------------------------------------------------------------------------------------------------


def forwarded_write(data: bytes) -> Message:
    return Message(type=MessageType.PROP, from_=PEER, to=SELF, entries=[Entry(index=Index(0), term=Term(0), data=data)])


def contents(bench: Bench, first: int) -> list[bytes]:
    """What is in the log from `first` on, without raft's own."""
    held = bench.window.entries(Index(first), Index(bench.window.last_index() + 1), 1 << 30)
    return [entry.data for entry in held if entry.data]


async def test_with_a_full_tail_others_writes_wait_and_take_turns_with_the_members_own() -> None:
    bench = Bench(max_uncommitted_bytes=1000)
    bench.driver.campaign()
    await settle()
    first = bench.window.last_index() + 1
    bench.driver.propose(Proposal(b"0" * 900))
    for number in range(1, 4):
        bench.driver.propose(Proposal(b"%d" % number * 900))
        bench.driver.step(forwarded_write(b"%d" % (number + 3) * 900), Index(0))
    await settle()
    for _ in range(20):
        await settle()
    assert [data[:1] for data in contents(bench, first)] == [b"0", b"4", b"1", b"2", b"3", b"5", b"6"], "own ones go in batches"
    assert (bench.refused, bench.handed_back, bench.fatal, bench.forwarded.held_bytes) == ([], [], [], 0)
    bench.driver.stop()


async def test_a_write_for_which_there_is_no_room_to_wait_is_refused_and_never_proposed() -> None:
    bench = Bench(voters=2, max_uncommitted_bytes=1000)
    bench.driver.campaign()
    await settle()
    bench.driver.step(Message(type=MessageType.VOTE_RESP, from_=PEER, to=SELF, term=bench.driver.term), Index(0))
    await settle()
    assert bench.driver.is_leader
    for number in range(5):
        bench.driver.step(forwarded_write(b"%d" % number * 4000), Index(0))
        await settle()
    assert [message.entries[0].data[:1] for message in bench.refused] == [b"3", b"4"], "one is in raft, two wait"
    bench.driver.stop()


async def test_a_leader_that_steps_down_hands_back_what_waits() -> None:
    bench = Bench(voters=2, max_uncommitted_bytes=1000)
    bench.driver.campaign()
    await settle()
    bench.driver.step(Message(type=MessageType.VOTE_RESP, from_=PEER, to=SELF, term=bench.driver.term), Index(0))
    await settle()
    for number in range(3):
        bench.driver.step(forwarded_write(b"%d" % number * 900), Index(0))
    await settle()
    newer = Term(bench.driver.term + 1)
    bench.driver.step(Message(type=MessageType.HEARTBEAT, from_=PEER, to=SELF, term=newer), Index(0))
    await settle()
    assert [message.entries[0].data[:1] for message in bench.handed_back] == [b"1", b"2"]
    assert not any(message.type is MessageType.PROP for message in bench.sent), "handed back, so not passed on as well"
    bench.driver.stop()


async def test_without_a_leader_a_forwarded_write_goes_back() -> None:
    bench = Bench(voters=2)
    bench.driver.step(forwarded_write(b"1"), Index(0))
    assert len(bench.handed_back) == 1
    bench.driver.stop()


async def test_a_follower_keeps_with_itself_what_is_beyond_its_share() -> None:
    window = ForwardWindow(lambda: 1000)
    bench = Bench(voters=2, window=window)
    bench.driver.step(Message(type=MessageType.HEARTBEAT, from_=PEER, to=SELF, term=Term(1)), Index(0))
    await settle()
    window.take(600)
    bench.driver.propose(Proposal(b"1" * 300))
    await settle()
    window.take(300)
    kept = Proposal(b"2" * 300)
    bench.driver.propose(kept)
    await settle()
    assert kept.taken_under is None
    bench.driver.report_unreachable(PEER)  # what is with the leader may be lost
    await settle()
    assert kept.taken_under == 1
    assert [message.entries[0].data[:1] for message in bench.sent if message.type is MessageType.PROP] == [b"1", b"2"]
    bench.driver.stop()


async def test_what_came_back_is_handed_over_with_the_next_tick_and_before_what_waits(leader: Bench) -> None:
    first = leader.window.last_index() + 1
    returned = Proposal(b"1")
    leader.driver.take_back(returned)
    await settle()
    assert returned.taken_under is None
    leader.driver._proposals.append(Proposal(b"2"))
    leader.driver._tick()
    await settle()
    assert contents(leader, first) == [b"1", b"2"]
