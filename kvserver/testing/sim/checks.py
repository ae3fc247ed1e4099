"""What must hold at every moment: raft's safety properties, checked from outside, for all members together.

    promise                what is compared
    election safety        one leader per term; one vote per member and term
    log matching           (index, term) names one entry with one predecessor, in whatever log it turns up
    leader completeness    a new leader's log holds what leaders of earlier terms committed
    commit rule            a leader commits only entries of its own term, and only what a quorum of each half has synced
    one change at a time   a leader appends a configuration change only when it has applied all earlier ones
    state machine safety   every member applies the same entry at the same index, and has the same state behind it
    durability             votes and acknowledgements leave after the disk has what they vouch for; nothing is applied before it is synced
    monotone               terms, commit, applied

Rules: by induction. Log matching of every entry that enters a log makes a term at an index stand for the whole prefix, so that commit and
leader completeness compare one position instead of logs. The first member to do something defines what the others must do.

Source: Ongaro's thesis, figure 3.2 and 3.6.3; raft-core.md.
"""

from __future__ import annotations

from typing import Protocol

from kvserver.testing.sim.disk import SimWal, StoreState
from kvserver.testing.sim.kernel import ViolationError
from raft.messages import Message, MessageType
from raft.raw_node import RawNode
from raft.ready import Ready
from raft.types import NO_NODE, ConfState, Entry, EntryType, HardState, Index, NodeId, Term
from wal.state import LogState


class Subject(Protocol):
    """A running member, as the checks see it. `log` is where its log stands as of its last Ready."""

    @property
    def id(self) -> NodeId: ...
    @property
    def raw(self) -> RawNode: ...
    @property
    def wal(self) -> SimWal: ...
    @property
    def log(self) -> LogState: ...
    @log.setter
    def log(self, value: LogState) -> None: ...


class SafetyChecks:
    """The history of one cluster so far, and the comparison of everything new with it."""

    def __init__(self, founding: ConfState) -> None:
        self._wals: dict[NodeId, SimWal] = {}
        self._leaders: dict[Term, NodeId] = {}
        self._votes: dict[tuple[NodeId, Term], NodeId] = {}
        self._entries: dict[tuple[Index, Term], tuple[Term, Entry]] = {}
        self._committed_terms: list[Term] = [Term(0)]
        self._commit_by_term: dict[Term, Index] = {}
        self._applied: list[Entry | None] = [None]
        self._states: list[tuple[int, ConfState]] = [(0, founding)]
        self._seen: dict[NodeId, tuple[Term, Index]] = {}

    @property
    def commit_index(self) -> Index:
        """The highest index that any member knows to be committed."""
        return Index(len(self._committed_terms) - 1)

    @property
    def applied_entries(self) -> list[Entry | None]:
        """Everything applied so far by anyone, by index (slot 0 is empty)."""
        return self._applied

    @property
    def leader_terms(self) -> int:
        """How many terms had a leader."""
        return len(self._leaders)

    def committed_term(self, index: Index) -> Term:
        """The term of a committed index."""
        return self._committed_terms[index]

    def started(self, member: Subject) -> None:
        """A member starts, for the first time or again."""
        self._wals[member.id] = member.wal
        # A term that was not on disk yet is forgotten, and the commit index there is a hint; what is applied may be applied again.
        self._seen[member.id] = (member.raw.term, member.raw.commit_index)

    # --- after every step of a core ---------------------------------------------------------------------------------------------------

    def stepped(self, member: Subject) -> None:
        """A core was stepped, ticked or reconfigured; its Ready is still to come."""
        raw = member.raw
        if raw.is_leader and raw.commit_index > self.commit_index:
            self._check_commit_rule(member)

    def _check_commit_rule(self, member: Subject) -> None:
        raw = member.raw
        index = raw.commit_index
        if index > member.log.last_index or member.log.term_at(index) != raw.term:
            raise ViolationError("commit rule", f"{member.id} commits {index} in term {raw.term}, which is no entry of that term")
        voters = raw.tracker_config.voters
        for half in (voters.incoming, voters.outgoing):
            holders = sum(1 for node in half if node in self._wals and self._wals[node].holds_durably(index, raw.term))
            if half and holders <= len(half) // 2:
                text = f"{member.id} commits {index} of term {raw.term}, which {holders} of {sorted(half)} hold durably"
                raise ViolationError("commit rule", text)
        self._commit_by_term[raw.term] = index
        self._note_commit(member, index)

    # --- Readys -----------------------------------------------------------------------------------------------------------------------

    def ready(self, member: Subject, ready: Ready) -> None:
        """A Ready is about to be carried out."""
        if ready.snapshot is not None:
            metadata = ready.snapshot.metadata
            self._check_committed(member.id, metadata.index, metadata.term, "a snapshot")
            member.log = LogState(start_index=metadata.index, start_term=metadata.term)
        if ready.entries:
            self._check_entries(member, ready.entries)
        self._note_position(member)

    def _check_entries(self, member: Subject, entries: list[Entry]) -> None:
        log = member.log
        before = Index(entries[0].index - 1)
        if before > log.last_index:
            raise ViolationError("log matching", f"{member.id} appends {entries[0].index} behind {log.last_index}")
        previous = log.term_at(before) if before >= log.start_index else None
        for entry in entries:
            known = self._entries.get((entry.index, entry.term))
            if known is None:
                if previous is None:
                    raise ViolationError("log matching", f"{member.id} appends {entry.term}/{entry.index} below its log's start")
                self._entries[(entry.index, entry.term)] = (previous, entry)
            elif known[1] is not entry and (known[1] != entry or previous not in (None, known[0])):
                raise ViolationError("log matching", f"{member.id} has another entry {entry.term}/{entry.index}, or another one before it")
            elif previous not in (None, known[0]):
                raise ViolationError("log matching", f"{member.id} has {entry.term}/{entry.index} behind an entry of term {previous}")
            log.append(entry.index, entry.term)
            previous = entry.term
            if entry.type is not EntryType.NORMAL and member.raw.is_leader and entry.term == member.raw.term:
                self._check_single_change(member, entry)

    def _check_single_change(self, member: Subject, change: Entry) -> None:
        """A leader that appends a configuration change has applied all earlier ones."""
        log = member.log
        for index in range(max(member.raw.applied_index, log.start_index) + 1, change.index):
            known = self._entries.get((Index(index), log.term_at(Index(index))))
            if known is not None and known[1].type is not EntryType.NORMAL:
                text = f"{member.id} appends a configuration change at {change.index}, the one at {index} is not applied"
                raise ViolationError("one change at a time", text)

    def _note_position(self, member: Subject) -> None:
        raw = member.raw
        term, commit = raw.term, raw.commit_index
        seen_term, seen_commit = self._seen[member.id]
        if term != seen_term or commit != seen_commit:
            if term < seen_term or commit < seen_commit:
                text = f"{member.id} went back from term {seen_term}, commit {seen_commit} to term {term}, commit {commit}"
                raise ViolationError("monotone", text)
            self._seen[member.id] = (term, commit)
            self._note_commit(member, commit)
        if raw.is_leader and self._leaders.get(term) != member.id:
            self._check_leader(member, term)

    def _note_commit(self, member: Subject, commit: Index) -> None:
        log = member.log
        if commit > log.last_index:
            raise ViolationError("commit rule", f"{member.id} commits {commit} beyond its log's end {log.last_index}")
        for index in range(len(self._committed_terms), commit + 1):
            self._committed_terms.append(log.term_at(Index(index)))
        if commit >= log.start_index:
            self._check_committed(member.id, commit, log.term_at(commit), "its commit index")

    def _check_committed(self, member: NodeId, index: Index, term: Term, what: str) -> None:
        if index > self.commit_index or self._committed_terms[index] != term:
            known = self._committed_terms[index] if index <= self.commit_index else None
            raise ViolationError("state machine safety", f"{what} of {member} is {term}/{index}, committed is term {known} there")

    def _check_leader(self, member: Subject, term: Term) -> None:
        other = self._leaders.setdefault(term, member.id)
        if other != member.id:
            raise ViolationError("election safety", f"{member.id} and {other} both lead term {term}")
        log = member.log
        for earlier, index in self._commit_by_term.items():
            if earlier < term and index >= log.start_index:
                held = log.term_at(index) if index <= log.last_index else None
                if held != self._committed_terms[index]:
                    text = f"{member.id} leads term {term} without {index}, committed in term {earlier} (it holds term {held} there)"
                    raise ViolationError("leader completeness", text)

    # --- messages and disks -----------------------------------------------------------------------------------------------------------

    def sending(self, member: Subject, message: Message) -> None:
        """A message leaves a member."""
        kind = message.type
        if kind is MessageType.APP_RESP:
            durable = member.wal.durable
            # Once a later term is on disk, what was taken in an earlier one may have been overwritten: then it can't have been committed.
            if not message.reject and message.index > durable.last_index and durable.hard_state.term <= message.term:
                text = f"{member.id} acknowledges {message.index}, its disk holds {durable.last_index}"
                raise ViolationError("durability", text)
        elif kind is MessageType.VOTE_RESP and not message.reject:
            held = member.wal.durable.hard_state
            if held.term < message.term or (held.term == message.term and held.vote != message.to):
                text = f"{member.id} votes for {message.to} in term {message.term}, its disk holds {held}"
                raise ViolationError("durability", text)
            self._check_vote(member.id, message.term, message.to)

    def synced(self, member: NodeId, hard_state: HardState) -> None:
        """A hard state is on disk."""
        if hard_state.vote != NO_NODE:
            self._check_vote(member, hard_state.term, hard_state.vote)

    def _check_vote(self, member: NodeId, term: Term, candidate: NodeId) -> None:
        other = self._votes.setdefault((member, term), candidate)
        if other != candidate:
            raise ViolationError("election safety", f"{member} votes for {candidate} and for {other} in term {term}")

    # --- the state machine ------------------------------------------------------------------------------------------------------------

    def applied(self, member: Subject, entry: Entry, state: StoreState) -> None:
        """A member applied `entry`, which led to `state`."""
        self._check_committed(member.id, entry.index, entry.term, "an entry applied")
        if not member.wal.holds_durably(entry.index, entry.term):
            raise ViolationError("durability", f"{member.id} applies {entry.index} before it is on its disk")
        if entry.index == len(self._applied):
            self._applied.append(entry)
            self._states.append((state.digest, state.conf_state))
            return
        known = self._applied[entry.index]
        if known is not entry and known != entry:
            raise ViolationError("state machine safety", f"{member.id} applied another entry at {entry.index}")
        self.check_state(member.id, state)

    def check_state(self, member: NodeId, state: StoreState) -> None:
        """A state, however it was reached, is the one that belongs to its index."""
        if state.index >= len(self._states) or self._states[state.index] != (state.digest, state.conf_state):
            raise ViolationError("state machine safety", f"{member} has another state at index {state.index}")
        if state.index and state.term != self._committed_terms[state.index]:
            raise ViolationError("state machine safety", f"{member} has term {state.term} at index {state.index}")

    def commands(self) -> list[tuple[Index, bytes]]:
        """The commands applied so far, in order."""
        return [(entry.index, entry.data) for entry in self._applied if entry is not None and entry.data and entry.type is EntryType.NORMAL]
