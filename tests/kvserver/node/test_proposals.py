"""Proposals: bounds, results, leader loss, deadlines."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import (
    CompactedError,
    LeaderChangedError,
    NoSpaceError,
    RequestTimeoutError,
    RequestTooLargeError,
    StoppedError,
    TimeoutDueToConnectionLostError,
    TimeoutDueToLeaderFailError,
    TooManyRequestsError,
)
from kvserver.node.forward_window import ForwardWindow
from kvserver.node.proposals import Proposals
from kvserver.pb import rpc_pb2
from raft.types import NodeId, Term

MEMBER, INCARNATION = NodeId(7), 99


class FakeSink:
    """Raft as the proposals see it: takes what it is given, or lets it wait until told otherwise."""

    def __init__(self) -> None:
        self.term = Term(3)
        self.leader = True
        self.accepts = True
        self.taken: list[bytes] = []
        self.waiting: list[Any] = []

    def has_leader(self) -> bool:
        return self.leader

    def propose(self, proposal: Any) -> None:
        self.waiting.append(proposal)
        if self.accepts:
            self.take()

    def take_back(self, proposal: Any) -> None:
        self.waiting.append(proposal)

    def take(self) -> None:
        """Take what waits and is still wanted."""
        for proposal in self.waiting:
            if proposal.is_wanted:
                self.taken.append(proposal.content)
                proposal.taken(self.term)
        self.waiting.clear()


def make(sink: FakeSink, max_count: int = 10, max_bytes: int = 10_000) -> Proposals:
    return Proposals(member_id=MEMBER, incarnation=INCARNATION, sink=sink, max_count=max_count, max_bytes=max_bytes, on_failed=lambda: None)


def put(size: int = 5) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=b"k", value=b"v" * size)


def soon(delay_s: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + delay_s


def begin(proposals: Proposals, size: int = 5, delay_s: float = 5.0) -> asyncio.Task[object]:
    return asyncio.get_running_loop().create_task(proposals.propose(CommandKind.PUT, put(size), deadline_s=soon(delay_s)))


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_the_applied_result_answers_the_proposal_with_its_id() -> None:
    sink = FakeSink()
    proposals = make(sink)
    first, second = begin(proposals), begin(proposals)
    await turn()
    ids = [commands.decode(data).id for data in sink.taken]
    proposals.resolve(ids[1], rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=2)))
    proposals.resolve(ids[0], rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=1)))
    assert ((await first).header.revision, (await second).header.revision) == (1, 2)  # type: ignore[attr-defined]
    assert (proposals.pending_count, proposals.pending_bytes) == (0, 0)


async def test_a_deterministic_error_is_raised_to_the_proposer() -> None:
    sink = FakeSink()
    proposals = make(sink)
    task = begin(proposals)
    await turn()
    proposals.resolve(commands.decode(sink.taken[0]).id, CompactedError())
    with pytest.raises(CompactedError):
        await task


async def test_a_replayed_entry_of_an_earlier_life_answers_nobody() -> None:
    sink = FakeSink()
    proposals = make(sink)
    task = begin(proposals)
    await turn()
    counter = commands.decode(sink.taken[0]).id.counter
    proposals.resolve(ProposalId(MEMBER, INCARNATION - 1, counter), rpc_pb2.PutResponse())
    proposals.resolve(ProposalId(NodeId(8), INCARNATION, counter), rpc_pb2.PutResponse())
    await turn()
    assert not task.done()
    proposals.stop()
    with pytest.raises(StoppedError):
        await task


async def test_too_many_proposals_are_refused_and_not_proposed() -> None:
    sink = FakeSink()
    proposals = make(sink, max_count=2)
    tasks = [begin(proposals), begin(proposals)]
    await turn()
    with pytest.raises(TooManyRequestsError):
        await proposals.propose(CommandKind.PUT, put(), deadline_s=soon())
    assert len(sink.taken) == 2
    proposals.stop()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_too_many_bytes_are_refused_but_one_proposal_always_fits() -> None:
    sink = FakeSink()
    proposals = make(sink, max_bytes=1000)
    task = begin(proposals, size=900)
    await turn()
    with pytest.raises(TooManyRequestsError):
        await proposals.propose(CommandKind.PUT, put(200), deadline_s=soon())
    proposals.stop()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(RequestTooLargeError):
        await make(sink, max_bytes=1000).propose(CommandKind.PUT, put(2000), deadline_s=soon())


async def test_without_a_leader_a_proposal_waits_and_is_handed_over_once() -> None:
    sink = FakeSink()
    sink.accepts = False
    proposals = make(sink)
    task = begin(proposals)
    await turn()
    assert sink.taken == []
    sink.take()
    assert len(sink.taken) == 1
    proposals.resolve(commands.decode(sink.taken[0]).id, rpc_pb2.PutResponse())
    await task


async def test_a_newer_terms_first_entry_fails_what_was_proposed_before() -> None:
    sink = FakeSink()
    proposals = make(sink)
    old = begin(proposals)
    await turn()
    sink.term = Term(4)
    new = begin(proposals)
    await turn()
    proposals.fail_older_than(Term(4))
    with pytest.raises(LeaderChangedError):
        await old
    assert not new.done()
    proposals.resolve(commands.decode(sink.taken[1]).id, rpc_pb2.PutResponse())
    await new


@pytest.mark.parametrize(
    ("leader", "term", "error"),
    [
        (True, 3, RequestTimeoutError),
        (True, 4, TimeoutDueToLeaderFailError),
        (False, 3, TimeoutDueToConnectionLostError),
    ],
)
async def test_a_deadline_says_what_probably_happened(leader: bool, term: int, error: type[Exception]) -> None:
    sink = FakeSink()
    proposals = make(sink)
    task = begin(proposals, delay_s=0.01)
    await turn()
    sink.leader, sink.term = leader, Term(term)
    with pytest.raises(error):
        await task
    assert proposals.pending_count == 0


async def test_a_proposal_that_nobody_waits_for_any_more_never_reaches_raft() -> None:
    sink = FakeSink()
    sink.accepts = False
    proposals = make(sink)
    with pytest.raises(RequestTimeoutError):
        await begin(proposals, delay_s=0.01)
    sink.take()
    assert sink.taken == []


async def test_a_new_term_does_not_fail_what_raft_never_had() -> None:
    sink = FakeSink()
    sink.accepts = False
    proposals = make(sink)
    task = begin(proposals)
    await turn()
    proposals.fail_older_than(Term(9))
    await turn()
    assert not task.done()
    sink.take()
    proposals.resolve(commands.decode(sink.taken[0]).id, rpc_pb2.PutResponse())
    await task


async def test_a_cancelled_proposal_leaves_nothing_behind() -> None:
    sink = FakeSink()
    proposals = make(sink)
    task = begin(proposals)
    await turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (proposals.pending_count, proposals.pending_bytes) == (0, 0)
    proposals.resolve(commands.decode(sink.taken[0]).id, rpc_pb2.PutResponse())


async def test_what_waits_in_vain_for_a_leader_does_not_hold_its_bytes() -> None:
    sink = FakeSink()
    sink.accepts = False
    proposals = make(sink)
    with pytest.raises(RequestTimeoutError):
        await begin(proposals, size=1000, delay_s=0.01)
    (abandoned,) = sink.waiting
    assert not abandoned.is_wanted
    assert abandoned.content == b""


async def test_what_raft_has_not_got_yet_can_be_refused_and_never_reaches_it() -> None:
    sink = FakeSink()
    sink.accepts = False
    proposals = make(sink)
    deadline_s = asyncio.get_running_loop().time() + 5
    waiting = asyncio.create_task(proposals.propose(CommandKind.PUT, put(), deadline_s=deadline_s))
    spared = asyncio.create_task(proposals.propose(CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"k"), deadline_s=deadline_s))
    await turn()
    proposals.refuse_waiting(lambda content: isinstance(content, bytes) and content[1] == CommandKind.PUT, NoSpaceError)
    with pytest.raises(NoSpaceError):
        await waiting
    sink.take()
    assert len(sink.taken) == 1
    proposals.refuse_waiting(lambda content: True, NoSpaceError)
    assert not spared.done(), "raft has it: nobody may say that it did not happen"
    proposals.stop()
    with pytest.raises(StoppedError):
        await spared


async def test_what_is_checked_first_is_never_proposed() -> None:
    sink = FakeSink()
    proposals = make(sink)

    def check(kind: CommandKind, request: object) -> None:
        raise NoSpaceError

    proposals.check = check
    with pytest.raises(NoSpaceError):
        await proposals.propose(CommandKind.PUT, put(), deadline_s=asyncio.get_running_loop().time() + 5)
    assert sink.waiting == []
    assert proposals.pending_count == 0


async def test_a_client_that_hangs_up_in_the_turn_of_its_error_leaves_no_unheard_exception() -> None:
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context["message"]))
    proposals = make(FakeSink())
    waiting = asyncio.create_task(proposals.propose(CommandKind.PUT, put(), deadline_s=asyncio.get_running_loop().time() + 5))
    await turn()
    proposals.stop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting
    gc.collect()
    assert unheard == []


async def test_a_proposal_that_is_being_applied_in_slices_outlives_its_deadline_and_hears_its_result() -> None:
    sink = FakeSink()
    proposals = make(sink)
    begun, other = begin(proposals, delay_s=0.02), begin(proposals, delay_s=0.02)
    await turn()
    proposal = commands.decode(sink.taken[0]).id
    proposals.note_begun(proposal)
    proposals.note_begun(proposal._replace(incarnation=INCARNATION + 1, counter=2))  # of another life: not ours
    with pytest.raises(RequestTimeoutError):
        await other
    assert not begun.done()
    proposals.resolve(proposal, rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=1)))
    assert (await begun).header.revision == 1  # type: ignore[attr-defined]


async def test_a_proposal_that_is_being_applied_ends_with_its_client() -> None:
    sink = FakeSink()
    proposals = make(sink)
    begun = begin(proposals)
    await turn()
    proposal = commands.decode(sink.taken[0]).id
    proposals.note_begun(proposal)
    begun.cancel()
    await asyncio.gather(begun, return_exceptions=True)
    assert (proposals.pending_count, proposals.is_awaited(proposal)) == (0, False)


# --- forwarded to a leader ---------------------------------------------------------------------------------------------------------------


def forwarding(sink: FakeSink) -> tuple[Proposals, ForwardWindow]:
    window = ForwardWindow(lambda: 1000)
    made = Proposals(
        member_id=MEMBER, incarnation=INCARNATION, sink=sink, max_count=10, max_bytes=10_000, on_failed=lambda: None, window=window
    )
    return made, window


async def test_what_came_back_is_handed_over_again_and_answered_once() -> None:
    sink = FakeSink()
    proposals, _ = forwarding(sink)
    waiting = begin(proposals)
    await turn()
    proposals.take_back(ProposalId(MEMBER, INCARNATION, 1))
    proposals.take_back(ProposalId(MEMBER, INCARNATION, 1))  # it waits already
    assert len(sink.waiting) == 1
    proposals.fail_older_than(Term(9))  # not in raft: a newer term is no news for it
    sink.term = Term(9)
    sink.take()
    assert sink.taken[0] == sink.taken[1]
    proposals.resolve(ProposalId(MEMBER, INCARNATION, 1), rpc_pb2.PutResponse())
    assert await waiting == rpc_pb2.PutResponse()
    proposals.take_back(ProposalId(MEMBER, INCARNATION, 1))
    assert sink.waiting == []


async def test_nothing_comes_back_for_another_member_another_life_or_a_write_that_is_answered() -> None:
    sink = FakeSink()
    proposals, _ = forwarding(sink)
    waiting = begin(proposals)
    await turn()
    for stranger in (ProposalId(NodeId(8), INCARNATION, 1), ProposalId(MEMBER, 1, 1), ProposalId(MEMBER, INCARNATION, 2)):
        proposals.take_back(stranger)
    proposals.resolve(ProposalId(MEMBER, INCARNATION, 1), rpc_pb2.PutResponse())
    proposals.take_back(ProposalId(MEMBER, INCARNATION, 1))
    assert sink.waiting == []
    await waiting


async def test_what_raft_has_and_is_not_answered_counts_in_the_window() -> None:
    sink = FakeSink()
    proposals, window = forwarding(sink)
    sink.accepts = False
    tasks = [begin(proposals, size=100, delay_s=0.2 if number == 4 else 5.0) for number in range(5)]
    await turn()
    assert window.held_bytes == 0
    sink.take()
    each = window.held_bytes // 5
    assert each > 100
    proposals.resolve(ProposalId(MEMBER, INCARNATION, 1), rpc_pb2.PutResponse())
    assert window.held_bytes == 4 * each, "at once: the turn that follows may send the next"
    proposals.resolve(ProposalId(MEMBER, INCARNATION, 2), TooManyRequestsError())
    proposals.take_back(ProposalId(MEMBER, INCARNATION, 3))
    assert window.held_bytes == 2 * each
    with pytest.raises(RequestTimeoutError):
        await tasks[4]
    assert window.held_bytes == each
    proposals.fail_older_than(Term(4))
    assert window.held_bytes == 0
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert window.held_bytes == 0
