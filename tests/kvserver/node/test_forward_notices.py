"""Notices of writes that were not proposed: who is told what, how often it is logged, and what the sender makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import MemberChange, MemberChangeKind, encode_change
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import TooManyRequestsError
from kvserver.logs import Logger
from kvserver.node import forward_notices
from kvserver.node.forward_notices import ForwardNotices, proposal_of
from kvserver.node.forwarding import ForwardKind
from kvserver.peer import PeerNotConnectedError
from kvserver.types import Member, NodeId
from raft.confchange import ConfChange, ConfChangeType
from raft.confchange_codec import encode_conf_change
from raft.messages import Message, MessageType
from raft.types import Entry, EntryType, Index, Term

SELF, PEER, THIRD = NodeId(1), NodeId(2), NodeId(3)


class Bench:
    """Notices of one member; what it asks others is written down, and answered when the test says so."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.asked: list[tuple[NodeId, int, bytes]] = []
        self.resolved: list[tuple[ProposalId, Any]] = []
        self.taken_back: list[ProposalId] = []
        self.counts = {"refused": 0, "handed back": 0}
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_connected = True
        self.notices = ForwardNotices(
            member_id=SELF,
            ask=self.ask,
            on_refused=lambda: self.count("refused"),
            on_handed_back=lambda: self.count("handed back"),
            log=Logger(self),
        )
        self.notices.proposals = self

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def ask(self, peer: NodeId, kind: int, payload: bytes, *, timeout_s: float) -> Awaitable[bytes]:
        async def answer() -> bytes:
            self.asked.append((peer, kind, payload))
            await self.answers.wait()
            if not self.is_connected:
                raise PeerNotConnectedError(peer)
            return b""

        return answer()

    def resolve(self, proposal: ProposalId, result: Any) -> None:
        self.resolved.append((proposal, result))

    def take_back(self, proposal: ProposalId) -> None:
        self.taken_back.append(proposal)


def put(counter: int, member: NodeId = PEER) -> Entry:
    return Entry(index=Index(0), term=Term(0), data=commands.encode(CommandKind.PUT, ProposalId(member, 7, counter), b"payload"))


def message(*entries: Entry, sender: NodeId = PEER) -> Message:
    return Message(type=MessageType.PROP, from_=sender, to=SELF, entries=entries)


def ids(*counters: int) -> bytes:
    return b"".join((7).to_bytes(8, "big") + counter.to_bytes(8, "big") for counter in counters)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_sender_is_told_of_its_writes_and_of_nobody_elses() -> None:
    bench = Bench()
    bench.notices.refuse(message(put(1), put(2, THIRD), put(3)))
    bench.notices.hand_back(message(put(4)))
    await settle()
    assert bench.asked == [(PEER, ForwardKind.NO_ROOM, ids(1, 3)), (PEER, ForwardKind.HANDED_BACK, ids(4))]
    assert bench.counts == {"refused": 1, "handed back": 1}


async def test_what_gathers_while_one_notice_is_under_way_goes_with_the_next() -> None:
    bench = Bench()
    bench.answers.clear()
    for counter in range(1, 5):
        bench.notices.refuse(message(put(counter)))
        await settle()
    assert [payload for _, _, payload in bench.asked] == [ids(1)]
    bench.answers.set()
    await settle()
    assert [payload for _, _, payload in bench.asked] == [ids(1), ids(2, 3, 4)]


async def test_what_gathers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_notices, "MAX_GATHERED", 5)
    monkeypatch.setattr(forward_notices, "MAX_IDS", 2)
    bench = Bench()
    bench.answers.clear()
    for counter in range(1, 20):
        bench.notices.refuse(message(put(counter)))
        await settle()
    bench.answers.set()
    await settle()
    assert [payload for _, _, payload in bench.asked] == [ids(1), ids(2, 3), ids(4, 5), ids(6)]


async def test_a_member_that_can_not_be_told_is_no_trouble_and_the_next_notice_goes_on() -> None:
    bench = Bench()
    bench.is_connected = False
    bench.notices.refuse(message(put(1)))
    await settle()
    bench.is_connected = True
    bench.notices.refuse(message(put(2)))
    await settle()
    assert [payload for _, _, payload in bench.asked] == [ids(1), ids(2)]


async def test_refusals_are_logged_once_in_a_while() -> None:
    bench = Bench()
    for counter in range(1, 100):
        bench.notices.refuse(message(put(counter)))
    (line,) = map(json.loads, bench.lines)
    assert (line["msg"], line["count"]) == ("refused writes that other members forward: no room", 1)
    await bench.notices.stop()


async def test_the_sender_answers_what_was_refused_and_proposes_again_what_came_back() -> None:
    bench = Bench()
    assert bench.notices.take(ForwardKind.NO_ROOM, ids(1)) == b""
    assert bench.notices.take(ForwardKind.HANDED_BACK, ids(2, 3)) == b""
    ((refused, error),) = bench.resolved
    assert (refused, type(error)) == (ProposalId(SELF, 7, 1), TooManyRequestsError)
    assert bench.taken_back == [ProposalId(SELF, 7, 2), ProposalId(SELF, 7, 3)]
    with pytest.raises(ValueError, match="17 bytes are no list"):
        bench.notices.take(ForwardKind.NO_ROOM, bytes(17))


async def test_a_write_of_this_member_that_came_back_here_is_settled_here() -> None:
    bench = Bench()
    bench.notices.hand_back(message(put(1, SELF), sender=SELF))
    await settle()
    assert (bench.asked, bench.taken_back) == ([], [ProposalId(SELF, 7, 1)])


async def test_a_stop_ends_what_is_under_way_and_begins_nothing() -> None:
    bench = Bench()
    bench.answers.clear()
    bench.notices.refuse(message(put(1)))
    await settle()
    await bench.notices.stop()
    bench.notices.refuse(message(put(2)))
    await settle()
    assert len(bench.asked) == 1


def test_the_id_of_a_membership_change_is_found_and_what_can_not_be_read_has_none() -> None:
    proposal = ProposalId(PEER, 7, 9)
    change = MemberChange(kind=MemberChangeKind.REMOVE, member=Member(id=THIRD, peer_urls=(), is_learner=False))
    for conf_change in (
        ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=THIRD, context=encode_change(change, proposal)),
        ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=THIRD, context=encode_change(change, proposal)).as_v2(),
    ):
        entry_type, data = encode_conf_change(conf_change)
        assert proposal_of(Entry(index=Index(0), term=Term(0), type=entry_type, data=data)) == proposal
    for entry in (
        Entry(index=Index(0), term=Term(0), data=b""),
        Entry(index=Index(0), term=Term(0), data=b"junk"),
        Entry(index=Index(0), term=Term(0), type=EntryType.CONF_CHANGE, data=b"\xff\xff\xff"),
    ):
        assert proposal_of(entry) is None
