"""Known mistakes, planted one at a time in the real code: what the simulator must find.

Every entry replaces a few functions through pytest's `monkeypatch` and says within how many seeds the mistake must show, and as the breach
of which promise (any of several words that its text begins with). The code that is replaced belongs to others and may be renamed: a name
that is gone fails the test loudly, as `monkeypatch` insists on existing names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest

import kvserver.testing.sim.member as shell
import raft.core
import raft.election
import raft.follower
import raft.leader
import raft.quorum
from kvserver.node import window_keeper
from kvserver.node.compaction import PeerClaim, Situation, WindowLimits, decide
from kvserver.node.log_window import LogWindow
from kvserver.testing.sim.disk import SimWal, StoreState
from raft.inflights import Inflights
from raft.log import RaftLog
from raft.messages import Message, MessageType
from raft.raw_node import RawNode
from raft.ready import StateType
from raft.state import RaftState
from raft.tracker import Tracker
from raft.types import NO_NODE, Entry, Index, Snapshot, Term
from raft.unstable import Unstable
from tests.kvserver.node.window_plants import term_not_kept

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Planted:
    """One mistake. `is_slow`: it shows rarely, so looking for it takes longer than CI wants."""

    name: str
    plant: Callable[[Patch], None]
    promises: tuple[str, ...]
    within_seeds: int
    is_slow: bool = False
    nodes: int = 5


SAFETY = ("election safety", "log matching", "leader completeness", "commit rule", "state machine safety", "durability", "WAL rules")
ANY = (*SAFETY, "no error reaches the top", "progress after healing", "linearizable reads", "monotone")


# --- elections --------------------------------------------------------------------------------------------------------------------------


def _votes_twice(patch: Patch) -> None:
    original = raft.quorum.majority_vote_result

    def counted(voters: Any, votes: Any) -> Any:
        granted = [vote for voter, vote in votes.items() if vote and voter in voters]
        return raft.quorum.VoteResult.WON if 2 * len(granted) > len(voters) // 2 else original(voters, votes)

    patch.setattr(raft.quorum, "majority_vote_result", counted)


def _log_check_ignored(patch: Patch) -> None:
    patch.setattr(RaftLog, "is_up_to_date", lambda self, index, term: True)


def _votes_for_anybody(patch: Patch) -> None:
    original = raft.election.handle_vote_request

    def careless(r: RaftState, message: Message) -> None:
        if message.type is MessageType.VOTE:
            r.vote = r.lead = NO_NODE
        original(r, message)

    patch.setitem(raft.core._COMMON_HANDLERS, MessageType.VOTE, careless)


def _vote_lost_at_restart(patch: Patch) -> None:
    original = SimWal.recover

    def forgetful(self: SimWal, applied_index: Index, sink: Any) -> Any:
        recovered = original(self, applied_index, sink)
        return replace(recovered, hard_state=replace(recovered.hard_state, vote=NO_NODE))

    patch.setattr(SimWal, "recover", forgetful)


def _term_lost_at_restart(patch: Patch) -> None:
    original = SimWal.recover

    def forgetful(self: SimWal, applied_index: Index, sink: Any) -> Any:
        recovered = original(self, applied_index, sink)
        if recovered.hard_state.term <= recovered.last_term:
            return recovered
        return replace(recovered, hard_state=replace(recovered.hard_state, vote=NO_NODE, term=recovered.last_term))

    patch.setattr(SimWal, "recover", forgetful)


def _sent_early(patch: Patch, kind: MessageType) -> None:
    original = RaftState.send

    def hasty(self: RaftState, message: Message) -> None:
        original(self, message)
        if message.type is kind and message.to != self.id:
            self.messages.append(self.messages_after_append.pop())

    patch.setattr(RaftState, "send", hasty)


def _vote_before_durable(patch: Patch) -> None:
    _sent_early(patch, MessageType.VOTE_RESP)


# --- replication and commit ---------------------------------------------------------------------------------------------------------------


def _old_term_by_counting(patch: Patch) -> None:
    def careless(self: RaftLog, index: Index, term: Term) -> bool:
        if index <= self.commit_index:
            return False
        self.commit_to(index)
        return True

    patch.setattr(RaftLog, "maybe_commit", careless)


def _acknowledged_before_durable(patch: Patch) -> None:
    _sent_early(patch, MessageType.APP_RESP)


def _leader_counts_itself_early(patch: Patch) -> None:
    original = raft.leader.append

    def hasty(r: RaftState, entries: Any) -> bool:
        taken = original(r, entries)
        if r.id in r.tracker.progress:
            r.tracker.progress[r.id].maybe_update(r.log.last_index)
        return taken

    patch.setattr(raft.leader, "append", hasty)


def _applied_before_durable(patch: Patch) -> None:
    patch.setattr(RaftLog, "max_appliable_index", lambda self, *, allow_unstable: self.commit_index)


def _joint_commit_by_one_half(patch: Patch) -> None:
    def by_half(self: Tracker) -> Index:
        return raft.quorum.majority_index([self.progress[node].match_index for node in self.config.voters.incoming])

    patch.setattr(Tracker, "committed_index", by_half)


def _learners_counted(patch: Patch) -> None:
    patch.setattr(Tracker, "committed_index", lambda self: raft.quorum.majority_index([p.match_index for p in self.progress.values()]))


def _heartbeat_commit_unbounded(patch: Patch) -> None:
    original = RaftState.send

    def generous(self: RaftState, message: Message) -> None:
        if message.type is MessageType.HEARTBEAT:
            message.commit = self.log.commit_index
        original(self, message)

    patch.setattr(RaftState, "send", generous)


def _tail_not_truncated(patch: Patch) -> None:
    def keep(self: LogWindow, entries: Any) -> None:
        for entry in entries:
            if entry.index > self.last_index():
                self._push(entry)

    patch.setattr(LogWindow, "append", keep)


def _stale_write_counts(patch: Patch) -> None:
    original = Unstable.stable_to

    def trusting(self: Unstable, index: Index, term: Term) -> None:
        held = self.term(index)
        original(self, index, term if held is None or index < self.offset else held)

    patch.setattr(Unstable, "stable_to", trusting)
    answer = raft.core._answer_lower_term

    def counting(r: RaftState, message: Message) -> None:
        if message.type is MessageType.STORAGE_APPEND_RESP and message.index:
            r.log.unstable.stable_to(message.index, message.log_term)
        answer(r, message)

    patch.setattr(raft.core, "_answer_lower_term", counting)


def _window_of_flow_never_frees(patch: Patch) -> None:
    patch.setattr(Inflights, "free_through", lambda self, index: None)


# --- configurations, reads, transfers, snapshots ----------------------------------------------------------------------------------------


def _pending_change_ignored(patch: Patch) -> None:
    original = raft.leader._refusal

    def lax(r: RaftState, change: Any) -> str:
        pending, r.pending_conf_index = r.pending_conf_index, Index(0)
        reason = original(r, change)
        r.pending_conf_index = pending
        return reason

    patch.setattr(raft.leader, "_refusal", lax)


def _read_without_quorum(patch: Patch) -> None:
    patch.setattr(raft.leader, "_start_read", lambda r, request: raft.leader._answer_read(r, request, r.log.commit_index))


def _read_before_first_commit(patch: Patch) -> None:
    patch.setattr(RaftLog, "has_current_term_commit", lambda self, term: True)


def _transfer_without_deadline(patch: Patch) -> None:
    original = raft.core._tick_leader

    def patient(r: RaftState) -> None:
        transferee = r.lead_transferee
        original(r)
        if r.state is StateType.LEADER and transferee in r.tracker.config.voters:
            r.lead_transferee = transferee

    patch.setattr(raft.core, "_tick_leader", patient)


def _old_snapshot_accepted(patch: Patch) -> None:
    restore = raft.follower._restore

    def careless(r: RaftState, snapshot: Snapshot, position: str) -> bool:
        if snapshot.metadata.index <= r.log.commit_index and r.log.unstable.snapshot is None:
            r.log.restore(snapshot)
            return True
        return restore(r, snapshot, position)

    patch.setattr(raft.follower, "_restore", careless)


def _snapshot_of_another_term(patch: Patch) -> None:
    original = StoreState.copy

    def mistaken(self: StoreState) -> StoreState:
        copied = original(self)
        if copied.term > 1:
            copied.term = Term(copied.term - 1)
        return copied

    patch.setattr(StoreState, "copy", mistaken)


def _snapshot_outcome_unreported(patch: Patch) -> None:
    patch.setattr(RawNode, "report_snapshot", lambda self, node, ok: None)


# --- the log window -----------------------------------------------------------------------------------------------------------------------


def _compaction_ignores_peers(patch: Patch) -> None:
    patch.setattr(window_keeper, "decide", lambda window, claims, situation, limits: decide(window, (), situation, limits))


def _compaction_ignores_grace(patch: Patch) -> None:
    def cold(window: Any, claims: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> Any:
        silent = [replace(claim, last_contact_s=-1e9, is_voter=False) for claim in claims]
        return decide(window, silent, replace(situation, role_since_s=-1e9), limits)

    patch.setattr(window_keeper, "decide", cold)


def _compaction_beyond_durable(patch: Patch) -> None:
    def bold(window: Any, claims: Any, situation: Situation, limits: WindowLimits) -> Any:
        return decide(window, claims, replace(situation, safe_index=window.last_index()), limits)

    patch.setattr(window_keeper, "decide", bold)


def _caps_ignored(patch: Patch) -> None:
    def endless(window: Any, claims: Any, situation: Situation, limits: WindowLimits) -> Any:
        return decide(window, claims, situation, WindowLimits(max_entries=1 << 40, max_bytes=1 << 40, grace_s=1e9))

    patch.setattr(window_keeper, "decide", endless)


def _byte_account_drifts(patch: Patch) -> None:
    original = LogWindow._truncate

    def leaking(self: LogWindow, index: int) -> None:
        end = self._end_offset
        original(self, index)
        self._end_offset = end

    patch.setattr(LogWindow, "_truncate", leaking)


def _pins_never_end(patch: Patch) -> None:
    patch.setattr(shell.PeerBook, "unpin", lambda self, peer: None)
    patch.setattr(shell.PeerBook, "expire", lambda self, now_s, **_: None)


def _commits_of_one_term_only(patch: Patch) -> None:
    """A leader's first entry is skipped: what earlier terms left is never committed, and reads wait for ever."""
    original = raft.leader.append

    def stingy(r: RaftState, entries: tuple[Entry, ...]) -> bool:
        if len(entries) == 1 and not entries[0].data and r.tracker.progress[r.id].match_index == r.log.last_index:
            return True
        return original(r, entries)

    patch.setattr(raft.leader, "append", stingy)


PLANTED = (
    Planted("votes are counted twice", _votes_twice, SAFETY, 60),
    Planted("the candidate's log is not compared", _log_check_ignored, SAFETY, 60),
    Planted("a member votes for anybody who asks", _votes_for_anybody, ("election safety", "WAL rules"), 40),
    Planted("the vote is lost at a restart", _vote_lost_at_restart, ("election safety", "WAL rules"), 100),
    Planted("the term is lost at a restart", _term_lost_at_restart, ANY, 100),
    Planted("a vote leaves before it is durable", _vote_before_durable, ("durability",), 10),
    Planted("entries of an older term commit by counting", _old_term_by_counting, ("commit rule",), 40),
    Planted("a follower acknowledges before it is durable", _acknowledged_before_durable, ("durability",), 10),
    Planted("the leader counts itself before it is durable", _leader_counts_itself_early, ("commit rule", "durability"), 20),
    Planted("entries are applied before they are durable", _applied_before_durable, ("durability", "no error"), 20),
    Planted("a joint commit counts one half", _joint_commit_by_one_half, ("commit rule",), 400, is_slow=True),
    Planted("learners count for the commit", _learners_counted, ("commit rule",), 40),
    Planted("heartbeats carry a commit index beyond the match", _heartbeat_commit_unbounded, ("no error", *SAFETY), 20),
    Planted("the window keeps an overwritten tail", _tail_not_truncated, (*SAFETY, "no error", "previous term"), 100),
    Planted("a write of an earlier term counts as durable", _stale_write_counts, (*SAFETY, "no error"), 400, is_slow=True),
    Planted("the flow window never frees", _window_of_flow_never_frees, ("progress",), 20),
    Planted("a second configuration change is let in", _pending_change_ignored, ("one change at a time",), 60),
    Planted("a read is answered without a quorum", _read_without_quorum, ("linearizable reads",), 400, is_slow=True),
    Planted("a read is answered before the term's first commit", _read_before_first_commit, ("linearizable reads",), 200),
    Planted("a transfer has no deadline", _transfer_without_deadline, ("progress",), 400, is_slow=True),
    Planted("a snapshot below the commit index is accepted", _old_snapshot_accepted, ANY, 40),
    Planted("a snapshot carries another term", _snapshot_of_another_term, ANY, 20),
    Planted("a snapshot's outcome is not reported", _snapshot_outcome_unreported, ("progress",), 60),
    Planted("a leader skips its first entry", _commits_of_one_term_only, ANY, 20),
    Planted("compaction ignores the peers", _compaction_ignores_peers, ("peers are served", "pins hold"), 40),
    Planted("compaction ignores the grace", _compaction_ignores_grace, ("peers are served",), 40),
    Planted("compaction passes what is durable", _compaction_beyond_durable, ("compaction safety", "no error"), 20),
    Planted("the window's caps are ignored", _caps_ignored, ("window bound",), 20),
    Planted("the term before the window is not kept", term_not_kept, ("previous term",), 20),
    Planted("the window's byte account drifts", _byte_account_drifts, ("window account", "progress", "window bound"), 100),
    Planted("pins never end", _pins_never_end, ("progress", "window bound"), 200),
)
