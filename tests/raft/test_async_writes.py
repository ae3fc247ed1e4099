"""Asynchronous storage writes: what is handed to which thread, and what its acknowledgements mean."""

from __future__ import annotations

from random import Random

from raft import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message
from raft.types import HardState, Index, NodeId, Term
from tests.raft.kit import Lines, Member, T, conf_state, entry, kinds, member, snapshot_at, storage_with


class AsyncMember(Member):
    """A member whose storage work lies in queues until a test does it."""

    def __init__(self, node: int, peers: list[int], **options: object) -> None:
        super().__init__(node, storage_with(conf_state(peers)), async_storage_writes=True, **options)
        self.appends: list[Message] = []
        self.applies: list[Message] = []
        self.outbox: list[Message] = []

    def collect(self) -> None:
        """Take every Ready, and sort its messages."""
        while self.raw.has_ready():
            for message in self.raw.ready().messages:
                queue = {LOCAL_APPEND_THREAD: self.appends, LOCAL_APPLY_THREAD: self.applies}.get(message.to, self.outbox)
                queue.append(message)

    def write(self) -> list[Message]:
        """Do the oldest append; the responses."""
        request = self.appends.pop(0)
        stated = HardState(term=request.term, vote=request.vote, commit=request.commit)
        if stated != HardState():
            self.storage.set_hard_state(stated)
        if request.snapshot is not None:
            self.storage.apply_snapshot(request.snapshot)
        self.storage.append(request.entries)
        return self._answer(request)

    def apply(self) -> list[Message]:
        """Do the oldest application; the responses."""
        request = self.applies.pop(0)
        self.applied.extend(request.entries)
        return self._answer(request)

    def _answer(self, request: Message) -> list[Message]:
        for response in request.responses:
            if response.to == self.raw.id:
                self.raw.step(response)
            else:
                self.outbox.append(response)
        return request.responses


def async_leader() -> AsyncMember:
    """Leader of a single-voter cluster, nothing written yet."""
    found = AsyncMember(1, [1])
    found.raw.campaign()
    found.collect()
    found.write()
    found.collect()
    assert found.raw.is_leader
    return found


def test_vote_for_oneself_counts_when_it_is_written() -> None:
    found = AsyncMember(1, [1])
    found.raw.campaign()
    found.collect()
    (request,) = found.appends
    assert (request.term, request.vote, kinds(request.responses)) == (1, 1, [T.VOTE_RESP])
    assert not found.raw.is_leader
    found.write()
    assert found.raw.is_leader


def test_entries_commit_when_written_and_are_applied_only_then() -> None:
    found = async_leader()
    found.raw.propose(b"a")
    found.collect()
    assert (found.raw.commit_index, found.applies) == (0, [])
    while found.appends:
        found.write()
    found.collect()
    assert found.raw.commit_index == 2
    assert [each.index for request in found.applies for each in request.entries] == [1, 2]
    assert found.raw.applied_index == 0
    while found.applies:
        found.apply()
    assert found.raw.applied_index == 2


def test_committed_entries_wait_until_they_are_stable_here() -> None:
    found = AsyncMember(1, [1, 2, 3])
    found.raw.step(Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(1), entries=[entry(1, 1), entry(1, 2)], commit=Index(2)))
    found.collect()
    assert found.raw.commit_index == 2
    assert found.applies == []
    found.write()
    found.collect()
    assert [each.index for each in found.applies[0].entries] == [1, 2]


def test_several_appends_may_be_under_way() -> None:
    found = async_leader()
    for number in range(5):
        found.raw.propose(b"%d" % number)
        found.collect()
    assert [[each.index for each in request.entries] for request in found.appends] == [[1], [2], [3], [4], [5], [6]]
    found.write()
    assert found.raw.commit_index == 1


def test_acknowledgement_of_an_earlier_term_leaves_the_tail_unstable() -> None:
    found = AsyncMember(1, [1, 2, 3])
    found.raw.step(Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(1), entries=[entry(1, 1)]))
    found.collect()
    found.raw.step(Message(type=T.APP, from_=NodeId(3), to=NodeId(1), term=Term(2), entries=[entry(2, 1)], commit=Index(1)))
    found.collect()
    found.write()
    found.collect()
    # The disk holds the entry of term 1 now; applying what it holds would be wrong.
    assert found.applies == []
    found.write()
    found.collect()
    assert [each.term for each in found.applies[0].entries] == [2]


def test_installed_snapshot_counts_in_a_later_term_too() -> None:
    found = AsyncMember(1, [1, 2, 3])
    snapshot = snapshot_at(11, 1, conf_state([1, 2, 3]))
    found.raw.step(Message(type=T.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(1), snapshot=snapshot))
    found.collect()
    found.raw.step(Message(type=T.HEARTBEAT, from_=NodeId(3), to=NodeId(1), term=Term(2)))
    found.write()
    assert found.raw.applied_index == 11


def test_heartbeats_are_answered_while_the_disk_is_slow() -> None:
    found = AsyncMember(1, [1, 2, 3])
    found.raw.step(Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(1), entries=[entry(1, 1)]))
    found.collect()
    found.raw.step(Message(type=T.HEARTBEAT, from_=NodeId(2), to=NodeId(1), term=Term(1)))
    found.collect()
    assert kinds(found.outbox) == [T.HEARTBEAT_RESP]
    found.write()
    assert T.APP_RESP in kinds(found.outbox)


def test_routine_notices_go_to_their_own_sink_or_nowhere() -> None:
    notices: list[str] = []
    for sink in (notices.append, None):
        found = AsyncMember(1, [1], routine_log=sink)
        found.raw.campaign()
        found.collect()
        found.write()
        found.collect()
        stale = found.appends[0].responses[-1]
        found.write()
        found.raw.step(stale)
        assert not found.log.has("missing from unstable log")
    assert len(notices) == 1


def test_random_interleavings_of_three_asynchronous_members_agree() -> None:
    for seed in range(15):
        random = Random(seed)
        members = {node: AsyncMember(node, [1, 2, 3], random=Random(seed * 3 + node)) for node in (1, 2, 3)}
        proposed = 0
        for _ in range(600):
            node = random.choice(list(members.values()))
            action = random.random()
            if action < 0.15:
                node.raw.tick()
            elif action < 0.3 and node.raw.is_leader:
                node.raw.propose(b"%d" % proposed)
                proposed += 1
            elif action < 0.5 and node.appends:
                node.write()
            elif action < 0.7 and node.applies:
                node.apply()
            elif node.outbox:
                message = node.outbox.pop(random.randrange(len(node.outbox)) if action < 0.75 else 0)
                if random.random() < 0.9 and int(message.to) in members:
                    members[int(message.to)].raw.step(message)
            node.collect()
        logs = [[(each.term, each.index, each.data) for each in node.applied] for node in members.values()]
        longest = max(logs, key=len)
        assert all(log == longest[: len(log)] for log in logs), f"seed {seed}"
        assert isinstance(members[1].log, Lines)


def test_ready_without_changes_has_no_storage_work() -> None:
    found = member(1, async_storage_writes=True)
    assert not found.raw.has_ready()
    assert found.raw.ready().messages == []


def test_what_is_committed_can_be_read_before_it_is_applied_and_before_it_is_durable_here() -> None:
    follower = AsyncMember(1, [1, 2, 3])
    entries = (entry(1, 1), entry(1, 2), entry(1, 3))
    sent = Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(1), entries=entries, commit=Index(2))
    follower.raw.step(sent)
    assert [each.index for each in follower.raw.committed_entries(Index(1), 1 << 20)] == [1, 2], "the third is not committed"
    assert [each.index for each in follower.raw.committed_entries(Index(1), 1)] == [1], "at least one, and no more than fits"
    assert follower.raw.committed_entries(Index(3), 1 << 20) == []
    follower.collect()
    follower.write()
    assert [each.index for each in follower.raw.committed_entries(Index(2), 1 << 20)] == [2]
