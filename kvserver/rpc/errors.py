"""From a domain error to a status: the one table.

Rules: every leaf of `RequestError` has a row (a test walks the classes); the message is the error's own, byte for byte what etcd's clients
compare. An exception that is not a `RequestError` never reaches a client: it is logged with its traceback and answered `INTERNAL_MESSAGE`.
`GO_NAMES` are the names that grpc's metrics use for codes.

Source: the error table of the client contract; etcd's rpctypes for the pairs of code and message. Two are UNKNOWN though rpctypes gives
them another code: etcd's own table leads `too many requests` and `not enough started members` to its client's error values, which carry no
status, and so that is what its clients see on the wire. Go's client finds both by their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from grpc import StatusCode

from kvserver import errors
from kvserver.errors import RequestError

__all__ = ["GO_NAMES", "INTERNAL_MESSAGE", "STATUS_CODES", "oversized_message", "status_of"]

INTERNAL_MESSAGE: Final = "etcdserver: internal error, see the server's log"

STATUS_CODES: Final[Mapping[type[RequestError], StatusCode]] = {
    errors.EmptyKeyError: StatusCode.INVALID_ARGUMENT,
    errors.KeyNotFoundError: StatusCode.INVALID_ARGUMENT,
    errors.ValueProvidedError: StatusCode.INVALID_ARGUMENT,
    errors.LeaseProvidedError: StatusCode.INVALID_ARGUMENT,
    errors.TooManyOpsError: StatusCode.INVALID_ARGUMENT,
    errors.DuplicateKeyError: StatusCode.INVALID_ARGUMENT,
    errors.InvalidSortOptionError: StatusCode.INVALID_ARGUMENT,
    errors.RequestTooLargeError: StatusCode.INVALID_ARGUMENT,
    errors.AnswerTooLargeError: StatusCode.RESOURCE_EXHAUSTED,
    errors.AppliedAnswerTooLargeError: StatusCode.RESOURCE_EXHAUSTED,
    errors.RangeTooSlowError: StatusCode.RESOURCE_EXHAUSTED,
    errors.LeaseNotFoundError: StatusCode.NOT_FOUND,
    errors.LeaseExistsError: StatusCode.FAILED_PRECONDITION,
    errors.LeaseTtlTooLargeError: StatusCode.OUT_OF_RANGE,
    errors.CompactedError: StatusCode.OUT_OF_RANGE,
    errors.FutureRevisionError: StatusCode.OUT_OF_RANGE,
    errors.NoLeaderError: StatusCode.UNAVAILABLE,
    errors.LeaderChangedError: StatusCode.UNAVAILABLE,
    errors.StoppedError: StatusCode.UNAVAILABLE,
    errors.RequestTimeoutError: StatusCode.UNAVAILABLE,
    errors.TimeoutDueToLeaderFailError: StatusCode.UNAVAILABLE,
    errors.TimeoutDueToConnectionLostError: StatusCode.UNAVAILABLE,
    errors.TimeoutWaitAppliedIndexError: StatusCode.UNAVAILABLE,
    errors.TooManyRequestsError: StatusCode.UNKNOWN,
    errors.NoSpaceError: StatusCode.RESOURCE_EXHAUSTED,
    errors.CorruptError: StatusCode.DATA_LOSS,
    errors.UnhealthyError: StatusCode.UNAVAILABLE,
    errors.MemberNotFoundError: StatusCode.NOT_FOUND,
    errors.MemberIdExistsError: StatusCode.FAILED_PRECONDITION,
    errors.PeerUrlExistsError: StatusCode.FAILED_PRECONDITION,
    errors.MemberNotLearnerError: StatusCode.FAILED_PRECONDITION,
    errors.LearnerNotReadyError: StatusCode.FAILED_PRECONDITION,
    errors.TooManyLearnersError: StatusCode.FAILED_PRECONDITION,
    errors.MemberUrlsInvalidError: StatusCode.INVALID_ARGUMENT,
    errors.NotEnoughStartedMembersError: StatusCode.UNKNOWN,
    errors.TimeoutLeaderTransferError: StatusCode.UNAVAILABLE,
    errors.NotLeaderError: StatusCode.FAILED_PRECONDITION,
    errors.BadLeaderTransfereeError: StatusCode.FAILED_PRECONDITION,
    errors.NotSupportedForLearnerError: StatusCode.FAILED_PRECONDITION,
    errors.NotCapableError: StatusCode.FAILED_PRECONDITION,
    errors.SnapshotNoRoomError: StatusCode.RESOURCE_EXHAUSTED,
    errors.SnapshotFailedError: StatusCode.UNKNOWN,
    errors.UnimplementedError: StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceededError: StatusCode.DEADLINE_EXCEEDED,
    errors.HealthServiceUnknownError: StatusCode.NOT_FOUND,
}

GO_NAMES: Final[Mapping[StatusCode, str]] = {
    code: "OK" if code is StatusCode.OK else "Canceled" if code is StatusCode.CANCELLED else code.name.title().replace("_", "")
    for code in StatusCode
}


def status_of(error: RequestError) -> tuple[StatusCode, str]:
    """The code and the message that a client sees; a room's own refinement of an error counts as that error."""
    known = next((kind for kind in type(error).__mro__ if kind in STATUS_CODES), None)
    return StatusCode.UNKNOWN if known is None else STATUS_CODES[known], str(error)


def oversized_message(size_bytes: int, limit_bytes: int) -> str:
    """What a client hears whose message is larger than what is received at all; the code is RESOURCE_EXHAUSTED."""
    return f"grpc: received message larger than max ({size_bytes} vs. {limit_bytes})"
