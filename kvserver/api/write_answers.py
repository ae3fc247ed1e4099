"""The room of what a write answers: ranges within a transaction, previous values.

Purpose: a write is applied by every member, and only the one that proposed it builds the answer, in one go on the event loop. So its size
is measured before it is proposed, and room is taken for it as for a read's.

Rules
- One that is larger than all answers together may be is refused before it is proposed (`AnswerTooLargeError`): unlike a read's it can't be
  built on a thread, and a write must not be refused for its answer when it is applied.
- What was measured may have grown by then. The bound of the answer is the same when it is applied; beyond it the client hears
  `AppliedAnswerTooLargeError`.
- A few single keys are not measured: the request limit bounds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from kvserver.api.answers import FORMS, FREE_BYTES, Answers, AnswerSlot
from kvserver.api.protocols import Call, KvReader
from kvserver.errors import AnswerTooLargeError
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, RequestOp, TxnRequest

__all__ = ["SINGLE_KEYS", "may_answer_much", "operations", "take_room"]

SINGLE_KEYS: Final = 2
"""So many values of single keys may be answered unmeasured."""


async def take_room(reader: KvReader, answers: Answers, request: TxnRequest | DeleteRangeRequest, call: Call) -> AnswerSlot:
    """The slot of the answer, with room for it.

    Raises:
        AnswerTooLargeError: it would be larger than all the room there is.
        TooManyRequestsError, RangeTooSlowError, RequestTimeoutError, CorruptError.
    """
    slot = answers.slot(call)
    if may_answer_much(request):
        limit_bytes = answers.large.max_bytes // FORMS
        needed_bytes = await reader.measure_write(request, limit_bytes)
        if needed_bytes > limit_bytes:
            raise AnswerTooLargeError
        if needed_bytes > FREE_BYTES:
            await slot.wait(needed_bytes)
    return slot


def may_answer_much(request: TxnRequest | DeleteRangeRequest) -> bool:
    """Whether the answer may hold more than a few values."""
    if isinstance(request, DeleteRangeRequest):
        return request.prev_kv and bool(request.range_end)
    singles = 0
    for op in operations(request):
        if op.HasField("request_range"):
            answers, range_end = not op.request_range.count_only, op.request_range.range_end
        elif op.HasField("request_delete_range"):
            answers, range_end = op.request_delete_range.prev_kv, op.request_delete_range.range_end
        else:
            answers, range_end = op.request_put.prev_kv, b""
        if answers:
            singles += 1
            if range_end or singles > SINGLE_KEYS:
                return True
    return False


def operations(request: TxnRequest) -> Iterator[RequestOp]:
    """Every operation of both branches, those of nested transactions included."""
    branches: Iterable[Iterable[RequestOp]] = (request.success, request.failure)
    for branch in branches:
        for operation in branch:
            if operation.HasField("request_txn"):
                yield from operations(operation.request_txn)
            else:
                yield operation
