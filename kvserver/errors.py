"""Domain errors: what a request can be answered with other than success, and what stops a node.

Rules: one base per kind. A `RequestError` leaf is one row of the client contract's error table; its `message` is etcd's, byte for byte
(without a status code: `rpc.errors` owns that mapping). `deterministic` says that every member reaches the same error from the same
state, so apply may return it as a result; `retryable` says that the request certainly had no effect and may be sent again.
A `FatalError` stops the node with its text and never reaches a client.

Source: etcd's api/v3/v3rpc/rpctypes/error.go for the texts.
"""

from __future__ import annotations

from typing import ClassVar


class KvError(Exception):
    """Base of all errors that kvserver raises on purpose."""


class FatalError(KvError):
    """The node can't go on (failed fsync, corrupt directory, unknown command version); the text says what to do."""


class RequestError(KvError):
    """A request's documented refusal or failure."""

    message: ClassVar[str] = ""
    deterministic: ClassVar[bool] = False
    retryable: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(self.message)


class DeterministicError(RequestError):
    """Every member reaches this error from the same state."""

    deterministic = True


# --- arguments -------------------------------------------------------------------------------------------------------------------------


class EmptyKeyError(DeterministicError):
    message = "etcdserver: key is not provided"


class KeyNotFoundError(DeterministicError):
    message = "etcdserver: key not found"


class ValueProvidedError(DeterministicError):
    message = "etcdserver: value is provided"


class LeaseProvidedError(DeterministicError):
    message = "etcdserver: lease is provided"


class TooManyOpsError(DeterministicError):
    message = "etcdserver: too many operations in txn request"


class DuplicateKeyError(DeterministicError):
    message = "etcdserver: duplicate key given in txn request"


class InvalidSortOptionError(DeterministicError):
    message = "etcdserver: invalid sort option"


class RequestTooLargeError(RequestError):
    message = "etcdserver: request is too large"


class AnswerTooLargeError(RequestError):
    """What a write is to answer (ranges, previous values) is more than answers may take; nothing was proposed."""

    message = (
        "etcdserver: the answer of this write would be larger than the server's answers may be, nothing was written: "
        "ask for less of it (prev_kv, ranges), or raise --max-answer-bytes"
    )


class AppliedAnswerTooLargeError(RequestError):
    """As `AnswerTooLargeError`, noticed when it was applied: the keys have grown meanwhile."""

    message = "etcdserver: the write was applied, but its answer (prev_kv, ranges) is larger than the server's answers may be"


class RangeTooSlowError(RequestError):
    """A read takes longer than it may hold on to a state of the store; again, it would take as long."""

    message = "etcdserver: reading this range takes longer than a read may (5 s): give it a limit, or read it in parts"


class LeaseNotFoundError(DeterministicError):
    message = "etcdserver: requested lease not found"


class LeaseExistsError(DeterministicError):
    message = "etcdserver: lease already exists"


class LeaseTtlTooLargeError(DeterministicError):
    message = "etcdserver: too large lease TTL"


# --- revisions -------------------------------------------------------------------------------------------------------------------------


class CompactedError(DeterministicError):
    message = "etcdserver: mvcc: required revision has been compacted"


class FutureRevisionError(DeterministicError):
    message = "etcdserver: mvcc: required revision is a future revision"


# --- availability ----------------------------------------------------------------------------------------------------------------------


class NoLeaderError(RequestError):
    message = "etcdserver: no leader"
    retryable = True


class LeaderChangedError(RequestError):
    message = "etcdserver: leader changed"


class StoppedError(RequestError):
    message = "etcdserver: server stopped"


class RequestTimeoutError(RequestError):
    message = "etcdserver: request timed out"


class TimeoutDueToLeaderFailError(RequestError):
    message = "etcdserver: request timed out, possibly due to previous leader failure"


class TimeoutDueToConnectionLostError(RequestError):
    message = "etcdserver: request timed out, possibly due to connection lost"


class TimeoutWaitAppliedIndexError(RequestError):
    message = "etcdserver: request timed out, waiting for the applied index took too long"


class TooManyRequestsError(RequestError):
    message = "etcdserver: too many requests"
    retryable = True


class NoSpaceError(DeterministicError):
    message = "etcdserver: mvcc: database space exceeded"


class CorruptError(RequestError):
    """Damage was met, or the CORRUPT alarm is raised. `row` and `reason` say what is damaged, for the log; empty where it is the alarm."""

    message = "etcdserver: corrupt cluster"

    def __init__(self, row: str = "", reason: str = "") -> None:
        self.row = row
        self.reason = reason
        super().__init__()


class UnhealthyError(RequestError):
    message = "etcdserver: unhealthy cluster"


# --- membership and leadership ---------------------------------------------------------------------------------------------------------


class MemberNotFoundError(DeterministicError):
    message = "etcdserver: member not found"


class MemberIdExistsError(DeterministicError):
    message = "etcdserver: member ID already exist"


class PeerUrlExistsError(DeterministicError):
    message = "etcdserver: Peer URLs already exists"


class MemberNotLearnerError(DeterministicError):
    message = "etcdserver: can only promote a learner member"


class LearnerNotReadyError(RequestError):
    message = "etcdserver: can only promote a learner member which is in sync with leader"


class TooManyLearnersError(RequestError):
    message = "etcdserver: too many learner members in cluster"


class MemberUrlsInvalidError(RequestError):
    message = "etcdserver: given member URLs are invalid"


class NotEnoughStartedMembersError(RequestError):
    message = "etcdserver: re-configuration failed due to not enough started members"


class TimeoutLeaderTransferError(RequestError):
    message = "etcdserver: request timed out, leader transfer took too long"


class NotLeaderError(RequestError):
    message = "etcdserver: not leader"


class BadLeaderTransfereeError(RequestError):
    message = "etcdserver: bad leader transferee"


class NotCapableError(RequestError):
    """Not every member is known to understand the command that this would take."""

    message = "etcdserver: not capable"
    retryable = True


class NotSupportedForLearnerError(RequestError):
    message = "etcdserver: rpc not supported for learner"


# --- saving the store ------------------------------------------------------------------------------------------------------------------


class SnapshotNoRoomError(RequestError):
    """A copy of the store would not fit on the member's disk; the member's log has the numbers."""

    message = "etcdserver: the disk of this member has no room for a copy of its store"


class SnapshotFailedError(RequestError):
    message = "etcdserver: this member could not copy its store, its log says why"


# --- calls -----------------------------------------------------------------------------------------------------------------------------


class UnimplementedError(RequestError):
    """The method is part of the contract and not yet served by this version."""

    message = "etcdserver: method not implemented by this version of kvserver"


class DeadlineExceededError(RequestError):
    message = "context deadline exceeded"


class HealthServiceUnknownError(RequestError):
    """grpc.health.v1: only "" (the server as a whole) is known."""

    message = "unknown service"
