"""The state of one member, and the moves that every role shares: sending, and changing roles.

Purpose: `RaftState` is what the role modules (follower, candidate, leader, ...) work on. Nothing here decides; `raft.core` dispatches, the
roles decide.

Rules
- Messages that vouch for something on disk (`must_be_durable_first`) go to `messages_after_append`, all others to `messages`; `RawNode`
  hands them out.
- Every change of term goes through `reset`, which also forgets votes, progress, transfers, reads and the uncommitted size.

Invariants: term never falls; vote changes only from nobody, or together with the term; `lead` is this member exactly while it leads.

Source: Ongaro's thesis, figure 3.1.
"""

from __future__ import annotations

from raft.config import Config
from raft.log import RaftLog
from raft.messages import Message, MessageType, must_be_durable_first
from raft.progress import Progress
from raft.read_only import ReadOnly
from raft.ready import ReadState, StateType
from raft.tracker import Tracker
from raft.types import NO_NODE, HardState, Index, NodeId, Term

_VOTE_TYPES = frozenset({MessageType.VOTE, MessageType.VOTE_RESP, MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP})
_TERMLESS_TYPES = frozenset({MessageType.PROP, MessageType.READ_INDEX})


class RaftState:
    """One member's volatile and persistent state. Mutable; owned by `RawNode`."""

    __slots__ = (
        "config",
        "election_elapsed_ticks",
        "election_timeout_ticks",
        "heartbeat_elapsed_ticks",
        "id",
        "is_learner",
        "lead",
        "lead_transferee",
        "log",
        "log_sink",
        "messages",
        "messages_after_append",
        "pending_conf_index",
        "pending_read_requests",
        "read_only",
        "read_states",
        "state",
        "term",
        "tracker",
        "uncommitted_size_bytes",
        "vote",
    )

    def __init__(self, config: Config, log: RaftLog) -> None:
        self.config = config
        self.id = config.id
        self.log_sink = config.log_sink
        self.log = log
        self.tracker = Tracker(config.max_inflight_msgs, config.inflight_limit_bytes)
        self.term = Term(0)
        self.vote = NO_NODE
        self.lead = NO_NODE
        self.state = StateType.FOLLOWER
        self.is_learner = False
        self.lead_transferee = NO_NODE
        self.pending_conf_index = Index(0)
        """A configuration change may be in the log up to here: no other is proposed until it is applied."""
        self.uncommitted_size_bytes = 0
        self.read_only = ReadOnly()
        self.pending_read_requests: list[Message] = []
        """Reads that arrived before this leader's first commit in its term."""
        self.read_states: list[ReadState] = []
        self.messages: list[Message] = []
        self.messages_after_append: list[Message] = []
        self.election_elapsed_ticks = 0
        """Ticks since the leader was heard from or a vote was granted; on a leader, since its last CheckQuorum."""
        self.heartbeat_elapsed_ticks = 0
        self.election_timeout_ticks = config.election_ticks
        """The randomized timeout of this election period."""

    # --- reading ----------------------------------------------------------------------------------

    def hard_state(self) -> HardState:
        """What must be on disk."""
        return HardState(term=self.term, vote=self.vote, commit=self.log.commit_index)

    @property
    def is_promotable(self) -> bool:
        """The member may campaign: it is a voter and does not wait for a snapshot to be installed."""
        progress = self.tracker.progress.get(self.id)
        return progress is not None and not progress.is_learner and self.log.unstable.snapshot is None

    @property
    def log_position(self) -> str:
        """The end of the log as vote lines show it."""
        return f"logterm: {self.log.last_term}, index: {self.log.last_index}"

    # --- sending ----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue `message`, stamped with sender and term. It must be new: it is changed here.

        Vote messages come with their term, which may lie ahead of the member's own; proposals and read requests go without one, as they are
        for whoever leads.
        """
        kind = message.type
        if message.from_ == NO_NODE:
            message.from_ = self.id
        if kind in _VOTE_TYPES:
            assert message.term, f"term should be set when sending {kind.name}"
        elif kind not in _TERMLESS_TYPES:
            message.term = self.term
        if must_be_durable_first(kind):
            self.messages_after_append.append(message)
        else:
            assert message.to != self.id, f"{kind.name} must not be self-addressed"
            self.messages.append(message)

    # --- changing roles ---------------------------------------------------------------------------

    def reset(self, term: Term) -> None:
        """Begin a period of `term`: nobody leads, nothing is known of the others."""
        if self.term != term:
            self.term = term
            self.vote = NO_NODE
        self.lead = NO_NODE
        self.election_elapsed_ticks = 0
        self.heartbeat_elapsed_ticks = 0
        election_ticks = self.config.election_ticks
        self.election_timeout_ticks = election_ticks + self.config.random.randrange(election_ticks)
        self.lead_transferee = NO_NODE
        self.pending_conf_index = Index(0)
        self.uncommitted_size_bytes = 0
        self.read_only = ReadOnly()
        self.pending_read_requests = []
        tracker = self.tracker
        tracker.reset_votes()
        last_index = self.log.last_index
        for node, progress in tracker.progress.items():
            tracker.progress[node] = Progress(
                next_index=Index(last_index + 1),
                inflights=tracker.new_inflights(),
                match_index=last_index if node == self.id else Index(0),
                is_learner=progress.is_learner,
            )

    def become_follower(self, term: Term, lead: NodeId) -> None:
        """Follow `lead` (0: nobody yet) in `term`."""
        self.reset(term)
        self.lead = lead
        self.state = StateType.FOLLOWER
        self.log_sink.info(f"{self.id:x} became follower at term {self.term}")

    def become_candidate(self) -> None:
        """Stand for election in the next term, with one's own vote."""
        assert self.state is not StateType.LEADER, "invalid transition [leader -> candidate]"
        self.reset(Term(self.term + 1))
        self.vote = self.id
        self.state = StateType.CANDIDATE
        self.log_sink.info(f"{self.id:x} became candidate at term {self.term}")

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won; term and vote stay (thesis 9.6)."""
        assert self.state is not StateType.LEADER, "invalid transition [leader -> pre-candidate]"
        self.tracker.reset_votes()
        self.lead = NO_NODE
        self.state = StateType.PRE_CANDIDATE
        self.log_sink.info(f"{self.id:x} became pre-candidate at term {self.term}")

    def become_leader(self) -> None:
        """Lead the current term. The caller appends the term's first entry."""
        assert self.state is not StateType.FOLLOWER, "invalid transition [follower -> leader]"
        self.reset(self.term)
        self.lead = self.id
        self.state = StateType.LEADER
        progress = self.tracker.progress.get(self.id)
        if progress is not None:
            progress.become_replicate()
            progress.is_recently_active = True
        # Whether the tail holds a change that is not applied yet is not worth a scan: wait until all of it is applied.
        self.pending_conf_index = self.log.last_index
