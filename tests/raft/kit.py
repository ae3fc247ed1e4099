"""Members and networks in memory for the tests of the core.

`Member` drives one core synchronously: whatever a Ready asks for is done at once. `Network` joins members by a list of messages that tests
may cut, drop, hold or reorder. Nothing is random but by the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from raft import Config, MemoryStorage, Message, MessageType, RawNode, decode_conf_change
from raft.describe import describe_entry
from raft.errors import ProposalDroppedError, RaftError
from raft.types import ConfState, Entry, EntryType, HardState, Index, NodeId, Snapshot, SnapshotMetadata, Term

T = MessageType


class Lines:
    """A log sink that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, message: str) -> None:
        """Keep it."""
        self.lines.append(message)

    info = warning = error = debug

    def has(self, part: str) -> bool:
        """Some line contains `part`."""
        return any(part in line for line in self.lines)


class Fixed:
    """A random source that always draws the same offset."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def randrange(self, n: int, /) -> int:
        """The fixed offset, within range."""
        return min(self.offset, n - 1)


def conf_state(voters: Iterable[int], learners: Iterable[int] = ()) -> ConfState:
    """A configuration that is not joint."""
    return ConfState(voters=tuple(map(NodeId, voters)), learners=tuple(map(NodeId, learners)))


def snapshot_at(index: int, term: int, state: ConfState, data: bytes = b"") -> Snapshot:
    """A snapshot of a position."""
    return Snapshot(metadata=SnapshotMetadata(index=Index(index), term=Term(term), conf_state=state), data=data)


def entry(term: int, index: int, data: bytes = b"") -> Entry:
    """A normal entry."""
    return Entry(term=Term(term), index=Index(index), data=data)


def storage_with(state: ConfState, terms: Sequence[int] = (), *, start: int = 0, hard_state: HardState | None = None) -> MemoryStorage:
    """A storage whose log has entries of these terms from `start` + 1 on; the position `start` (if not 0) is a snapshot of term 1."""
    storage = MemoryStorage(state)
    if start:
        storage.apply_snapshot(snapshot_at(start, 1, state))
    storage.append([entry(term, start + 1 + position) for position, term in enumerate(terms)])
    if hard_state is None and terms:
        hard_state = HardState(term=Term(terms[-1]))
    if hard_state is not None:
        commit = max(hard_state.commit, start)
        storage.set_hard_state(HardState(term=hard_state.term, vote=hard_state.vote, commit=Index(commit)))
    return storage


class Member:
    """One core with its storage and an appending state machine."""

    def __init__(self, node: int, storage: MemoryStorage, *, random: Any = None, **options: Any) -> None:
        self.log = Lines()
        self.storage = storage
        options.setdefault("election_ticks", 10)
        options.setdefault("heartbeat_ticks", 1)
        self.options = options
        self.config = Config(id=NodeId(node), storage=storage, random=random or Fixed(), log_sink=self.log, **options)
        self.raw = RawNode(self.config)
        self.applied: list[Entry] = []
        self.read_states: list[tuple[int, bytes]] = []
        self.snapshots: list[Snapshot] = []

    def drain(self) -> list[Message]:
        """Carry out every Ready there is; what is to be sent to others."""
        sent: list[Message] = []
        while self.raw.has_ready():
            ready = self.raw.ready()
            if ready.hard_state is not None:
                self.storage.set_hard_state(ready.hard_state)
            if ready.snapshot is not None:
                self.storage.apply_snapshot(ready.snapshot)
                self.snapshots.append(ready.snapshot)
            self.storage.append(ready.entries)
            for committed in ready.committed_entries:
                self.applied.append(committed)
                if committed.type is not EntryType.NORMAL:
                    self._apply_conf_change(committed)
            self.read_states.extend((state.index, state.context) for state in ready.read_states)
            sent.extend(ready.messages)
            self.raw.advance()
        return sent

    def _apply_conf_change(self, committed: Entry) -> None:
        """Install the configuration, and begin the log behind it: a member that joins starts with a snapshot."""
        state = self.raw.apply_conf_change(decode_conf_change(committed.type, committed.data))
        if committed.index > self.storage.snapshot().metadata.index:
            self.storage.create_snapshot(committed.index, state, b"")
            self.storage.compact(committed.index)

    def step(self, kind: MessageType, from_: int, **fields: Any) -> list[Message]:
        """Step a message (of the member's own term unless given) and carry out what follows; what is to be sent."""
        fields.setdefault("term", self.raw.term)
        self.raw.step(Message(type=kind, from_=NodeId(from_), to=self.raw.id, **fields))
        return self.drain()

    def tick(self, times: int = 1) -> list[Message]:
        """Tick, and carry out what follows."""
        sent: list[Message] = []
        for _ in range(times):
            self.raw.tick()
            sent.extend(self.drain())
        return sent

    def propose(self, data: bytes = b"x") -> list[Message]:
        """Propose, and carry out what follows."""
        self.raw.propose(data)
        return self.drain()

    @property
    def log_terms(self) -> list[int]:
        """The terms of the stored entries."""
        first, last = self.storage.first_index(), self.storage.last_index()
        return [self.storage.term(Index(index)) for index in range(first, last + 1)]

    @property
    def applied_data(self) -> list[bytes]:
        """What the state machine got, without empty entries and configuration changes."""
        return [each.data for each in self.applied if each.data and each.type is EntryType.NORMAL]

    def progress(self, node: int) -> Any:
        """The progress of a peer."""
        return {each: progress for each, progress, _ in self.raw.progress()}[NodeId(node)]

    def restart(self) -> Member:
        """A new core on the same storage; what was not stored is forgotten."""
        return Member(int(self.raw.id), self.storage, **self.options)


def member(
    node: int = 1, peers: Iterable[int] = (1, 2, 3), *, learners: Iterable[int] = (), terms: Sequence[int] = (), **options: Any
) -> Member:
    """A member of a cluster of `peers`, with a log of these terms."""
    return Member(node, storage_with(conf_state(peers, learners), terms), **options)


def leader(peers: Iterable[int] = (1, 2, 3), **options: Any) -> Member:
    """Member 1 as leader of term 1, by the votes of all; its first entry is not acknowledged by anybody else."""
    peers = list(peers)
    found = member(1, peers, **options)
    found.raw.campaign()
    found.drain()
    for peer in peers[1:]:
        if not found.raw.is_leader:
            found.step(T.VOTE_RESP, peer)
    assert found.raw.is_leader
    return found


class Network:
    """Members and the messages between them."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = {int(each.raw.id): each for each in members}
        self.under_way: list[Message] = []
        self.cuts: set[tuple[int, int]] = set()
        self.ignored: set[MessageType] = set()
        self.on_message: Callable[[Message], bool] = lambda message: True
        self.delivered: list[Message] = []

    def __getitem__(self, node: int) -> Member:
        return self.members[node]

    def cut(self, one: int, other: int) -> None:
        """Drop what goes between two members."""
        self.cuts |= {(one, other), (other, one)}

    def isolate(self, node: int) -> None:
        """Cut a member off from all others."""
        for other in self.members:
            if other != node:
                self.cut(node, other)

    def heal(self) -> None:
        """Let everything through again."""
        self.cuts.clear()
        self.ignored.clear()
        self.on_message = lambda message: True

    def settle(self, limit: int = 10_000) -> None:
        """Carry out and deliver until nothing is left to do."""
        for _ in range(limit):
            for each in self.members.values():
                self.under_way.extend(each.drain())
            if not self.under_way:
                return
            messages, self.under_way = self.under_way, []
            for message in messages:
                self.deliver(message)
        raise AssertionError("the network does not settle")

    def deliver(self, message: Message) -> None:
        """Deliver one message, unless it is cut off or ignored."""
        passes = (int(message.from_), int(message.to)) not in self.cuts and message.type not in self.ignored
        if not passes or int(message.to) not in self.members or not self.on_message(message):
            return
        self.delivered.append(message)
        try:
            self.members[int(message.to)].raw.step(message)
        except (ProposalDroppedError, RaftError):
            return

    def campaign(self, node: int) -> None:
        """Let a member stand for election, and settle."""
        self.members[node].raw.campaign()
        self.settle()

    def propose(self, node: int, data: bytes = b"x") -> None:
        """Propose at a member, and settle."""
        self.members[node].raw.propose(data)
        self.settle()

    def tick(self, node: int, times: int = 1) -> None:
        """Tick a member, settling after each."""
        for _ in range(times):
            self.members[node].raw.tick()
            self.settle()

    @property
    def leaders(self) -> list[int]:
        """Who believes to lead."""
        return [node for node, each in self.members.items() if each.raw.is_leader]


def network(count: int = 3, *, learners: Iterable[int] = (), logs: dict[int, Sequence[int]] | None = None, **options: Any) -> Network:
    """Members 1 to `count` (and learners) of one configuration; `logs` gives the terms of the entries some of them start with."""
    voters, learners = range(1, count + 1), list(learners)
    return Network(
        member(node, voters, learners=learners, terms=(logs or {}).get(node, ()), random=Random(node), **options)
        for node in [*voters, *learners]
    )


def kinds(messages: Iterable[Message]) -> list[MessageType]:
    """The types of messages."""
    return [message.type for message in messages]


def of_kind(messages: Iterable[Message], kind: MessageType) -> list[Message]:
    """The messages of a type."""
    return [message for message in messages if message.type is kind]


def shown(entries: Iterable[Entry]) -> list[str]:
    """Entries as text."""
    return [describe_entry(each) for each in entries]
