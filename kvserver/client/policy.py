"""When a failed call may be sent again: pure decisions.

The rule: a mutation is never retried once sent, because a retry could apply it twice. The exceptions are errors with which the server says
that the request certainly had no effect (`kvserver.errors`, `retryable`). A read may be retried on every unavailability.
Caveat: UNAVAILABLE is also what gRPC itself reports for a connection that broke while a call was under way; it proves nothing.
"""

from __future__ import annotations

from typing import Final

from kvserver import errors
from kvserver.client.errors import UNAVAILABLE, ServerError
from kvserver.client.methods import Method, RequestT, ResponseT
from kvserver.pb import rpc_pb2 as pb

FIRST_BACKOFF_S: Final = 0.025
MAX_BACKOFF_S: Final = 0.5


def _leaves(base: type[errors.RequestError]) -> list[type[errors.RequestError]]:
    found = [base]
    for child in base.__subclasses__():
        found.extend(_leaves(child))
    return found


NO_EFFECT_MESSAGES: Final = frozenset(error.message for error in _leaves(errors.RequestError) if error.retryable)
"""Status messages after which even a mutation may be sent to another endpoint."""


def may_retry(method: Method[RequestT, ResponseT], error: ServerError) -> bool:
    """Whether the same request may go to the next endpoint after this error."""
    if error.details in NO_EFFECT_MESSAGES:
        return True
    return method.read_only and error.code == UNAVAILABLE


def backoff_s(attempt: int) -> float:
    """Pause before attempt 1, 2, ...: doubles from 25 ms up to 500 ms."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 16))


def changes_nothing(txn: pb.TxnRequest) -> bool:
    """Whether a transaction only reads, in both branches and at every depth."""
    for op in (*txn.success, *txn.failure):
        kind = op.WhichOneof("request")
        if kind == "request_txn":
            if not changes_nothing(op.request_txn):
                return False
        elif kind != "request_range":
            return False
    return True
