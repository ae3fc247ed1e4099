"""What a member has promised, and what may therefore be found after any end.

Purpose: `History` is written down beside the member (and, as remarks, in the journal of its disk); `Promise` is its position at one moment.

Rules: every record that the log is told to write adds a state; an answer (raft's response to a durable save) ends the states before it:
from then on only the state it answers for, and later ones, may be found. The content of the store follows from its applied index alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId
from raft.types import Entry, HardState, Index, Term
from tests.wal.life import State
from wal import Marker

KEYS = 40
FOUNDING = Marker(Index(1), Term(1))


@dataclass(frozen=True, slots=True)
class Promise:
    """A moment: the states before `written` exist, those before `answered` may not be found any more."""

    answered: int
    written: int


def command(index: int, term: int) -> Entry:
    """The entry of this position: mostly a put, of a size that varies; now and then raft's own empty entry or a compaction."""
    if index % 31 == 0:
        return Entry(index=Index(index), term=Term(term), data=b"")
    if index == 97:
        request = rpc_pb2.CompactionRequest(revision=40)
        data = commands.encode(CommandKind.COMPACT, ProposalId(NodeId(1), 1, index), request.SerializeToString())
        return Entry(index=Index(index), term=Term(term), data=data)
    key, value = pair_of(index, term)
    request_bytes = rpc_pb2.PutRequest(key=key, value=value).SerializeToString()
    return Entry(index=Index(index), term=Term(term), data=commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), request_bytes))


def pair_of(index: int, term: int) -> tuple[bytes, bytes]:
    size = (40, 90, 333, 1_400)[index % 4]
    return b"key-%02d" % (index % KEYS), (b"%d.%d " % (index, term) * size)[:size]


@dataclass(slots=True)
class History:
    """The states of one log since it was founded, and every entry ever given to it."""

    states: list[State] = field(
        default_factory=lambda: [State(FOUNDING, (), HardState(term=FOUNDING.term, commit=FOUNDING.index), FOUNDING)]
    )
    answered: int = 0
    committed: dict[int, Entry] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.states[-1]

    def promise(self) -> Promise:
        return Promise(self.answered, len(self.states))

    def write(self, entries: list[Entry], hard_state: HardState | None) -> None:
        """The log is told to record this."""
        for entry in entries:
            self.states.append(self.state.with_entry(entry))
        if hard_state is not None and hard_state != self.state.hard_state:
            self.states.append(self.state.with_hard_state(hard_state))

    def write_marker(self, marker: Marker, hard_state: HardState) -> None:
        self.states.append(self.state.with_marker(marker, hard_state))

    def answer(self) -> None:
        """What was recorded so far is promised."""
        self.answered = len(self.states) - 1

    def adopt(self, state: State) -> None:
        """A restart found this state: it goes on from there, and no other may be found any more."""
        self.states.append(state)
        self.answered = len(self.states) - 1

    def allowed(self, promise: Promise) -> Iterator[State]:
        """The states that may be found, newest first."""
        return reversed(self.states[promise.answered : promise.written])

    def highest_commit(self, promise: Promise) -> int:
        """No log may say that more is committed."""
        return max(state.hard_state.commit for state in self.states[: promise.written])

    def content(self, applied: int) -> dict[bytes, bytes]:
        """What the store holds once the committed entries through `applied` are applied."""
        found = {}
        for index in range(2, applied + 1):
            entry = self.committed[index]
            if entry.data and index != 97:
                key, value = pair_of(index, entry.term)
                found[key] = value
        return found
