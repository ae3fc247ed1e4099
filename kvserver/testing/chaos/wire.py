"""Requests and answers of a history as messages on the wire, and what an error says about the outcome.

Rules: one call per operation, at one endpoint, never repeated. FAILED is claimed only where the client library says that nothing was sent,
or the server that nothing happened; everything else, refused connections after the first byte and lost answers included, is UNKNOWN. So the
checker also puts the server's "certainly no effect" errors to the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from kvserver import errors
from kvserver.client import Client, ClientError, ConnectError, ServerError, methods
from kvserver.pb import kv_pb2
from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.chaos.model import (
    Action,
    Answer,
    Compare,
    Delete,
    DeleteResult,
    Kind,
    Kv,
    Outcome,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Request,
    Result,
    Target,
)


class MalformedAnswerError(errors.KvError):
    """An answer lacks what every server must give; the text says what."""


def _leaves(base: type[errors.RequestError]) -> list[type[errors.RequestError]]:
    found = [base]
    for child in base.__subclasses__():
        found.extend(_leaves(child))
    return found


CERTAIN_MESSAGES: Final = frozenset(
    error.message for error in _leaves(errors.RequestError) if (error.retryable or error.deterministic) and error.message
)
"""Error texts after which a mutation certainly had no effect."""

_RELATIONS: Final = {
    Relation.EQUAL: pb.Compare.EQUAL,
    Relation.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Relation.GREATER: pb.Compare.GREATER,
    Relation.LESS: pb.Compare.LESS,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that brought no answer."""

    outcome: Outcome
    error: str


async def call(client: Client, endpoint: str, request: Request, timeout_s: float) -> Answer | Failure:
    """Send the request to one endpoint, once; `timeout_s` begins when the connection is up.

    Raises:
        MalformedAnswerError: what came back is no answer to it.
    """
    try:
        match request.kind:
            case Kind.PUT:
                put = await client.call_endpoint(endpoint, methods.PUT, _put(request.success[0]), timeout_s=timeout_s)
                return Answer(revision=put.header.revision, results=(_put_result(put),))
            case Kind.DELETE:
                delete = await client.call_endpoint(endpoint, methods.DELETE_RANGE, _delete(request.success[0]), timeout_s=timeout_s)
                return Answer(revision=delete.header.revision, results=(_delete_result(delete),))
            case Kind.RANGE:
                message = _range(request.success[0], serializable=request.serializable)
                found = await client.call_endpoint(endpoint, methods.RANGE, message, timeout_s=timeout_s)
                return Answer(revision=found.header.revision, results=(_range_result(found),))
            case Kind.TXN:
                return _txn_answer(await client.call_endpoint(endpoint, methods.TXN, txn_of(request), timeout_s=timeout_s))
            case unknown:
                assert_never(unknown)
    except ClientError as error:
        return Failure(outcome_of(error), str(error))


def outcome_of(error: ClientError) -> Outcome:
    """What is known about a mutation that ended so."""
    if isinstance(error, ConnectError) or (isinstance(error, ServerError) and error.details in CERTAIN_MESSAGES):
        return Outcome.FAILED
    return Outcome.UNKNOWN


def txn_of(request: Request) -> pb.TxnRequest:
    """The request as a transaction's message."""
    return pb.TxnRequest(
        compare=[_compare(each) for each in request.compares],
        success=[_operation(each, request.serializable) for each in request.success],
        failure=[_operation(each, request.serializable) for each in request.failure],
    )


def kv_of(message: kv_pb2.KeyValue) -> Kv:
    """A key-value as it came."""
    return Kv(message.key, message.value, message.create_revision, message.mod_revision, message.version)


def _put(action: Action) -> pb.PutRequest:
    assert isinstance(action, Put)
    return pb.PutRequest(key=action.key, value=action.value, prev_kv=action.wants_previous)


def _delete(action: Action) -> pb.DeleteRangeRequest:
    assert isinstance(action, Delete)
    return pb.DeleteRangeRequest(key=action.key, range_end=action.end, prev_kv=action.wants_previous)


def _range(action: Action, *, serializable: bool) -> pb.RangeRequest:
    assert isinstance(action, Range)
    return pb.RangeRequest(key=action.key, range_end=action.end, revision=action.revision, serializable=serializable)


def _operation(action: Action, serializable: bool) -> pb.RequestOp:
    match action:
        case Put():
            return pb.RequestOp(request_put=_put(action))
        case Delete():
            return pb.RequestOp(request_delete_range=_delete(action))
        case Range():
            return pb.RequestOp(request_range=_range(action, serializable=serializable))
        case unknown:
            assert_never(unknown)


def _compare(compare: Compare) -> pb.Compare:
    message = pb.Compare(key=compare.key, result=_RELATIONS[compare.relation])
    operand = compare.operand
    if isinstance(operand, bytes):
        message.target, message.value = pb.Compare.VALUE, operand
        return message
    match compare.target:
        case Target.VERSION:
            message.target, message.version = pb.Compare.VERSION, operand
        case Target.CREATE:
            message.target, message.create_revision = pb.Compare.CREATE, operand
        case Target.MOD:
            message.target, message.mod_revision = pb.Compare.MOD, operand
        case Target.VALUE:
            raise TypeError(f"a value compared with the number {operand}")
        case unknown:
            assert_never(unknown)
    return message


def _put_result(message: pb.PutResponse) -> PutResult:
    return PutResult(previous=kv_of(message.prev_kv) if message.HasField("prev_kv") else None)


def _delete_result(message: pb.DeleteRangeResponse) -> DeleteResult:
    return DeleteResult(deleted=message.deleted, previous=tuple(map(kv_of, message.prev_kvs)))


def _range_result(message: pb.RangeResponse) -> RangeResult:
    return RangeResult(kvs=tuple(map(kv_of, message.kvs)), count=message.count)


def _txn_answer(message: pb.TxnResponse) -> Answer:
    return Answer(revision=message.header.revision, succeeded=message.succeeded, results=tuple(_results(message.responses)))


def _results(messages: Sequence[pb.ResponseOp]) -> list[Result]:
    found: list[Result] = []
    for message in messages:
        match message.WhichOneof("response"):
            case "response_put":
                found.append(_put_result(message.response_put))
            case "response_delete_range":
                found.append(_delete_result(message.response_delete_range))
            case "response_range":
                found.append(_range_result(message.response_range))
            case other:
                raise MalformedAnswerError(f"a transaction of puts, deletes and ranges was answered with {other}")
    return found
