"""Flips bits of a store's file and compares every answer with that of the intact one; a process of its own, because LMDB may end it.

    python flips.py INTACT WORK_FILE rows|pages OFFSET:BIT...

Prints `begin OFFSET:BIT` before a case and its outcome after it: `refused` (the store doesn't open), `corrupt` (some answers were
CorruptError, all others right, and it was reported), `same` (all answers right), `WRONG ...` (a wrong answer).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from google.protobuf.message import Message

from kvserver import commands
from kvserver.apply import Applier, ApplyMetDamageError, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import CorruptError, DeterministicError
from kvserver.pb.rpc_pb2 import CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.storage import EngineConfig, StoreUnreadableError
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Revision, Term

CORRUPT = b"corrupt"
KEYS = [b"key%03d" % number for number in range(0, 120, 2)]
LONG = [b"L" * 600 + b"%d" % number for number in range(4)]
MISSING = [b"", b"key001", b"key060x", b"zzz", b"L" * 600, b"L" * 700]


def fill(store: Store, applier: Applier) -> None:
    """The history that the tests read: puts, overwrites, deletions, long keys, a large value, a compaction in the past."""
    for round_number in range(3):
        for number, key in enumerate(KEYS + LONG):
            if (number + round_number) % 3:
                apply(store, applier, PutRequest(key=key, value=key * (1 + number % 7) + b"%d" % round_number))
        apply(store, applier, DeleteRangeRequest(key=KEYS[7 + round_number * 5]))
        apply(store, applier, DeleteRangeRequest(key=LONG[round_number]))
    apply(store, applier, PutRequest(key=b"large", value=b"large" * 2_000))


async def build(path: Path) -> None:
    """A closed store with that history, half of it compacted."""
    store = Store.open(path)
    one = NodeId(1)
    store.bootstrap(ClusterId(77), {one: Member(id=one, peer_urls=("http://127.0.0.1:2380",))}, ConfState(voters=(one,)))
    applier = Applier(store)
    fill(store, applier)
    apply(store, applier, CompactionRequest(revision=40))
    await store.wait_compacted(Revision(40))
    await store.close()


def apply(store: Store, applier: Applier, request: Message) -> bytes:
    """Apply one request; its result as bytes."""
    kinds = {
        PutRequest: CommandKind.PUT,
        DeleteRangeRequest: CommandKind.DELETE_RANGE,
        TxnRequest: CommandKind.TXN,
        CompactionRequest: CommandKind.COMPACT,
    }
    index = Index(store.applied_index + 1)
    data = commands.encode(kinds[type(request)], ProposalId(NodeId(1), 1, index), request.SerializeToString())
    result = applier.apply_entry(index, Term(1), data).result
    return result.SerializeToString(deterministic=True) if isinstance(result, Message) else repr(result).encode()


def reads(newest: int) -> Iterator[RangeRequest]:
    """Every kind of Range over the store."""
    for revision in (0, newest // 2, newest - 20):
        for key in [*KEYS, *LONG, *MISSING[1:], b"large"]:
            yield RangeRequest(key=key, revision=revision)
        for lo, hi in ((b"\0", b"\0"), (b"key020", b"key061"), (b"key04", b"L"), (b"L", b"M"), (b"key110", b"\0")):
            for keys_only in (False, True):
                yield RangeRequest(key=lo, range_end=hi, revision=revision, keys_only=keys_only)
            yield RangeRequest(key=lo, range_end=hi, revision=revision, count_only=True)
            yield RangeRequest(key=lo, range_end=hi, revision=revision, limit=5)
            yield RangeRequest(key=lo, range_end=hi, revision=revision, limit=3, sort_order=RangeRequest.DESCEND)
            yield RangeRequest(key=lo, range_end=hi, revision=revision, sort_order=RangeRequest.DESCEND, sort_target=RangeRequest.VALUE)


def writes() -> Iterator[Message]:
    """Requests whose answers show what the writer read."""
    for key in (KEYS[1], KEYS[20], KEYS[7], b"key060x", b"zzz", LONG[1], LONG[3]):
        yield PutRequest(key=key, value=b"new", prev_kv=True)
    yield DeleteRangeRequest(key=b"key03", range_end=b"key05", prev_kv=True)
    same = Compare(key=KEYS[30], target=Compare.VERSION, result=Compare.GREATER, version=1)
    whole = RequestOp(request_range=RangeRequest(key=b"key06", range_end=b"key09"))
    yield TxnRequest(compare=[same], success=[whole], failure=[RequestOp(request_put=PutRequest(key=b"else"))])


async def answers(store: Store) -> AsyncIterator[bytes]:
    """Everything that the store answers, CORRUPT where it refuses to."""
    newest = int(store.current_revision)
    yield repr((newest, store.applied_index, store.compacted_revision, store.membership, store.conf_state, store.alarms)).encode()
    for request in reads(newest):
        yield await _guarded(lambda request=request: store.range(request))  # type: ignore[misc]
    yield await _guarded(lambda: store.read(RangeRequest(key=b"\0", range_end=b"\0")))
    yield await _guarded(store.hash_kv)
    yield await _guarded(lambda: store.hash_kv(Revision(newest // 2)))
    applier = Applier(store)
    for change in writes():
        try:
            yield apply(store, applier, change)
        except ApplyMetDamageError:
            return  # apply stops for good


async def _guarded(ask: Callable[[], object]) -> bytes:
    try:
        result = ask()
        if isinstance(result, Awaitable):
            result = await result
    except CorruptError:
        return CORRUPT
    except DeterministicError as error:
        return repr(error).encode()
    return result.SerializeToString(deterministic=True) if isinstance(result, Message) else repr(result).encode()


async def outcome(path: Path, every_row: bool, expected: list[bytes] | None) -> tuple[str, list[bytes]]:
    """Open the store and ask it everything."""
    reported: list[str] = []
    try:
        store = Store.open(path, config=EngineConfig(verify_on_open=every_row), on_corrupt=reported.append)
    except StoreUnreadableError:
        return "refused", []
    found: list[bytes] = []
    try:
        found.extend([answer async for answer in answers(store)])
    finally:
        await store.close(commit=False)
    if expected is None:
        return "same", found
    for position, (got, wanted) in enumerate(zip(found, expected, strict=False)):
        if got not in (wanted, CORRUPT):
            return f"WRONG answer {position}: {got[:200]!r} instead of {wanted[:200]!r}", found
    if len(found) < len(expected) or CORRUPT in found:
        return "corrupt" if reported else "WRONG: corrupt without a report", found
    return "same", found


def main() -> None:
    """See the module."""
    intact, work, mode, *cases = sys.argv[1:]
    path = Path(work)
    shutil.copy(intact, path)
    _, expected = asyncio.run(outcome(path, True, None))
    for case in cases:
        print("begin", case, flush=True)
        offset, bit = map(int, case.split(":"))
        shutil.copy(intact, path)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes((byte ^ 1 << bit,)))
        result, _ = asyncio.run(outcome(path, mode == "rows", expected))
        print(result, flush=True)


if __name__ == "__main__":
    main()
