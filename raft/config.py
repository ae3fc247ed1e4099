"""What a core is configured with, and what it is given from outside: randomness, a log sink, a storage.

Rules: values are validated on construction; nothing here is read from the environment. The core owns no clock and no random generator.

Source: Ongaro's thesis, 9 (timing); etcd-io/raft's Config for the meaning of the limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from raft.errors import ConfigError
from raft.messages import is_local_target
from raft.storage import Storage
from raft.types import NO_NODE, Index, NodeId

NO_LIMIT: Final = 2**64 - 1


class RandomSource(Protocol):
    """Where randomized election timeouts come from; seeded by whoever owns it."""

    def randrange(self, n: int, /) -> int:
        """A number in [0, n)."""


class LogSink(Protocol):
    """Where the core's lines go. Called on state changes and refusals, never per replicated entry."""

    def debug(self, message: str) -> None:
        """Detail of replication: probes, rejections, snapshots."""

    def info(self, message: str) -> None:
        """A change of role, term, leader, vote or configuration."""

    def warning(self, message: str) -> None:
        """Something that should be rare."""

    def error(self, message: str) -> None:
        """A request that can't be served safely, or a message that contradicts the log."""


class ReadOnlyOption(Enum):
    """How linearizable reads are confirmed."""

    SAFE = "safe"
    """By a round of heartbeats to a quorum."""
    LEASE_BASED = "lease-based"
    """By the lease that CheckQuorum implies: cheaper, but only as good as the members' clocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One member's settings.

    Args:
        id: this member; neither 0 nor one of the storage threads' ids.
        election_ticks: ticks without a leader before a campaign; the actual timeout is drawn from [election_ticks, 2 * election_ticks - 1].
        heartbeat_ticks: ticks between heartbeats; at least 1 and below `election_ticks`.
        storage: the durable log, read only.
        random: source of election timeouts.
        log_sink: receives the core's lines.
        applied: the last index that the state machine already holds; entries up to it are not handed out again.
        async_storage_writes: Ready carries MsgStorageAppend / MsgStorageApply instead of waiting for `advance`.
        max_size_per_msg_bytes: encoded entries per MsgApp; the first entry always passes. 0: one entry per message.
        max_committed_size_per_ready_bytes: encoded committed entries being applied at any time. 0: as `max_size_per_msg_bytes`.
        max_uncommitted_size_bytes: payload of the leader's uncommitted tail; beyond it proposals are dropped. 0: no limit.
        max_inflight_msgs: MsgApps to one replicating peer that may be unacknowledged; at least 1.
        max_inflight_bytes: payload of the same; at least `max_size_per_msg_bytes`. 0: no limit.
        check_quorum: a leader that hears from no quorum for an election timeout steps down, and members keep a lease for their leader.
        pre_vote: ask before raising the term (thesis 9.6).
        read_only: how reads are confirmed; LEASE_BASED requires `check_quorum`.
        disable_proposal_forwarding: followers drop proposals instead of sending them on to the leader.
        disable_conf_change_validation: let configuration changes into the log although one may be pending.
        step_down_on_removal: a leader that is removed or demoted becomes a follower once it applies that change.
        routine_log: takes the notices of asynchronous writes that occur once per disk write under load (an append acknowledged
            twice, an entry overwritten meanwhile); None drops them unformatted.

    Raises:
        ConfigError: a value is out of range.
    """

    id: NodeId
    election_ticks: int
    heartbeat_ticks: int
    storage: Storage
    random: RandomSource
    log_sink: LogSink
    applied: Index = Index(0)
    async_storage_writes: bool = False
    max_size_per_msg_bytes: int = 1024 * 1024
    max_committed_size_per_ready_bytes: int = 0
    max_uncommitted_size_bytes: int = 0
    max_inflight_msgs: int = 256
    max_inflight_bytes: int = 0
    check_quorum: bool = False
    pre_vote: bool = False
    read_only: ReadOnlyOption = ReadOnlyOption.SAFE
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False
    routine_log: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.id == NO_NODE:
            raise ConfigError("cannot use none as id")
        if is_local_target(self.id):
            raise ConfigError("cannot use a storage thread's id as id")
        if self.heartbeat_ticks <= 0:
            raise ConfigError("heartbeat_ticks must be greater than 0")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ConfigError("election_ticks must be greater than heartbeat_ticks")
        if self.applied < 0:
            raise ConfigError("applied must not be negative")
        if self.max_inflight_msgs <= 0:
            raise ConfigError("max_inflight_msgs must be greater than 0")
        limits = (
            self.max_size_per_msg_bytes,
            self.max_committed_size_per_ready_bytes,
            self.max_uncommitted_size_bytes,
            self.max_inflight_bytes,
        )
        if min(limits) < 0:
            raise ConfigError("limits must not be negative")
        if 0 < self.max_inflight_bytes < self.max_size_per_msg_bytes:
            raise ConfigError("max_inflight_bytes must be at least max_size_per_msg_bytes")
        if self.read_only is ReadOnlyOption.LEASE_BASED and not self.check_quorum:
            raise ConfigError("check_quorum must be enabled when reads are lease based")

    @property
    def applying_limit_bytes(self) -> int:
        """The effective bound of what is being applied."""
        return self.max_committed_size_per_ready_bytes or self.max_size_per_msg_bytes or 1

    @property
    def uncommitted_limit_bytes(self) -> int:
        """The effective bound of the uncommitted tail."""
        return self.max_uncommitted_size_bytes or NO_LIMIT

    @property
    def inflight_limit_bytes(self) -> int:
        """The effective bound of one peer's unacknowledged payload."""
        return self.max_inflight_bytes or NO_LIMIT
