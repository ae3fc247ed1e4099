"""The store against a model of etcd's semantics that keeps every state as a dict, over random histories."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvserver.errors import CompactedError, DeterministicError, FutureRevisionError, KeyNotFoundError
from kvserver.mvcc import TABLES
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.storage import EngineConfig

FAST_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Nothing here loses power, so fsync may as well be fast."""

LONG = b"k" * 490
KEYS = st.sampled_from([b"a", LONG + b"a"]) | st.sampled_from([b"\x00", b"a\x00", b"b", b"bb", b"\xff", LONG, LONG * 2, LONG * 2 + b"b"])
ENDS = st.one_of(KEYS, st.sampled_from([b"", b"", b"\x00"]))
VALUES = st.binary(max_size=3)

PUTS = st.builds(PutRequest, key=KEYS, value=VALUES, prev_kv=st.booleans()) | st.builds(
    PutRequest, key=KEYS, ignore_value=st.just(True), ignore_lease=st.booleans()
)
DELETES = st.builds(DeleteRangeRequest, key=KEYS, range_end=ENDS, prev_kv=st.booleans())
RANGES = st.builds(RangeRequest, key=KEYS, range_end=ENDS, limit=st.sampled_from([0, 1, 2]), keys_only=st.booleans())
COMPARES = st.builds(
    Compare,
    key=KEYS,
    range_end=ENDS,
    target=st.just(Compare.VERSION),
    result=st.sampled_from([Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL]),
    version=st.sampled_from([0, 1, 2]),
)


def _ops(inner: st.SearchStrategy[RequestOp]) -> st.SearchStrategy[RequestOp]:
    return st.builds(lambda txn: RequestOp(request_txn=txn), txns(inner))


def txns(ops: st.SearchStrategy[RequestOp]) -> st.SearchStrategy[TxnRequest]:
    return st.builds(
        TxnRequest, compare=st.lists(COMPARES, max_size=2), success=st.lists(ops, max_size=3), failure=st.lists(ops, max_size=2)
    )


OPS = st.recursive(
    st.one_of(
        st.builds(lambda put: RequestOp(request_put=put), PUTS),
        st.builds(lambda delete: RequestOp(request_delete_range=delete), DELETES),
        st.builds(lambda range_: RequestOp(request_range=range_), RANGES),
    ),
    _ops,
    max_leaves=4,
)
STEPS = st.lists(
    st.one_of(
        PUTS,
        PUTS,
        DELETES,
        txns(OPS),
        st.tuples(st.just("compact"), st.integers(-1, 4)),
        st.tuples(st.just("range"), RANGES, st.integers(-2, 12)),
        st.tuples(st.just("hash"), st.integers(0, 6)),
        st.tuples(st.sampled_from(["commit", "reopen", "crash", "yield"]), st.just(0)),
    ),
    min_size=4,
    max_size=30,
)


@dataclass(frozen=True)
class Change:
    sub: int
    key: bytes
    kv: KeyValue | None


@dataclass
class Model:
    """All states by revision, and the changes that led from one to the next."""

    states: list[dict[bytes, KeyValue]] = field(default_factory=lambda: [{}, {}])
    changes: list[list[Change]] = field(default_factory=lambda: [[], []])
    compacted: int = -1
    sub: int = 0

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def begin(self) -> None:
        self.states.append(dict(self.states[-1]))
        self.changes.append([])

    def end(self) -> None:
        if not self.changes[-1]:
            self.states.pop()
            self.changes.pop()

    def put(self, request: PutRequest) -> KeyValue | None:
        state, main = self.states[-1], self.revision
        old = state.get(request.key)
        value = old.value if request.ignore_value and old else request.value
        kv = KeyValue(
            key=request.key,
            value=value,
            create_revision=old.create_revision if old else main,
            mod_revision=main,
            version=old.version + 1 if old else 1,
        )
        state[request.key] = kv
        self.changes[-1].append(Change(len(self.changes[-1]), request.key, kv))
        return old

    def delete(self, request: DeleteRangeRequest) -> list[KeyValue]:
        doomed = self.inside(self.states[-1], request.key, request.range_end)
        for kv in doomed:
            del self.states[-1][kv.key]
            self.changes[-1].append(Change(len(self.changes[-1]), kv.key, None))
        return doomed

    def inside(self, state: dict[bytes, KeyValue], key: bytes, end: bytes) -> list[KeyValue]:
        def holds(each: bytes) -> bool:
            return each == key if not end else each >= key and (end == b"\x00" or each < end)

        return [state[each] for each in sorted(state) if holds(each)]

    def compare(self, request: Compare) -> bool:
        kvs = self.inside(self.states[-2], request.key, request.range_end) or [KeyValue()]
        sign = {
            Compare.EQUAL: lambda a, b: a == b,
            Compare.GREATER: lambda a, b: a > b,
            Compare.LESS: lambda a, b: a < b,
            Compare.NOT_EQUAL: lambda a, b: a != b,
        }[request.result]
        return all(sign(kv.version, request.version) for kv in kvs)

    def run(self, request: TxnRequest, trace: list[Any]) -> None:
        succeeded = all(self.compare(compare) for compare in request.compare)
        trace.append(succeeded)
        for op in request.success if succeeded else request.failure:
            match op.WhichOneof("request"):
                case "request_put":
                    old = self.put(op.request_put)
                    trace.append(old if op.request_put.prev_kv else None)
                case "request_delete_range":
                    doomed = self.delete(op.request_delete_range)
                    trace.append((len(doomed), doomed if op.request_delete_range.prev_kv else []))
                case "request_range":
                    trace.append(self.answer(self.states[-1], op.request_range))
                case _:
                    self.run(op.request_txn, trace)

    def answer(self, state: dict[bytes, KeyValue], request: RangeRequest) -> tuple[int, bool, list[KeyValue]]:
        kvs = self.inside(state, request.key, request.range_end)
        shown = kvs[: request.limit] if request.limit else kvs
        if request.keys_only:
            shown = [KeyValue.FromString(kv.SerializeToString()) for kv in shown]
            for kv in shown:
                kv.ClearField("value")
        return len(kvs), len(shown) < len(kvs), shown

    def hash(self, revision: int) -> int:
        live = {id(kv) for kv in self.states[revision].values()}
        if not live:
            live = {id(kv) for kv in self.states[max(self.compacted, 0)].values()}
        data = b"key"
        for main in range(revision + 1):
            for change in self.changes[main]:
                if main <= self.compacted and id(change.kv) not in live:
                    continue
                data += main.to_bytes(8, "big") + b"_" + change.sub.to_bytes(8, "big")
                data += b"t" + KeyValue(key=change.key).SerializeToString() if change.kv is None else change.kv.SerializeToString()
        return int(google_crc32c.value(data))


def trace_of(request: TxnRequest, response: Any, trace: list[Any]) -> list[Any]:
    trace.append(response.succeeded)
    ops = request.success if response.succeeded else request.failure
    for op, answer in zip(ops, response.responses, strict=True):
        match op.WhichOneof("request"):
            case "request_put":
                put = answer.response_put
                trace.append(put.prev_kv if put.HasField("prev_kv") else None)
            case "request_delete_range":
                trace.append((answer.response_delete_range.deleted, list(answer.response_delete_range.prev_kvs)))
            case "request_range":
                found = answer.response_range
                trace.append((found.count, found.more, list(found.kvs)))
            case _:
                trace_of(op.request_txn, answer.response_txn, trace)
    return trace


def puts_on_missing_keys(model: Model, request: TxnRequest) -> bool:
    """Whether a put of the branches that run wants to keep something of a key that doesn't exist before the transaction."""
    succeeded = all(model.compare(compare) for compare in request.compare)
    for op in request.success if succeeded else request.failure:
        put = op.request_put
        if op.HasField("request_put") and (put.ignore_value or put.ignore_lease) and put.key not in model.states[-2]:
            return True
        if op.HasField("request_txn") and puts_on_missing_keys(model, op.request_txn):
            return True
    return False


class Runner:
    """Runs steps on machine and model and compares."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.model = Model()
        self.durable: tuple[int, Model] = (0, self.frozen())

    def frozen(self) -> Model:
        model = self.model
        return replace(model, states=[dict(state) for state in model.states], changes=[list(each) for each in model.changes])

    async def step(self, step: Any) -> None:
        model, machine = self.model, self.machine
        match step:
            case PutRequest():
                result = machine.apply(step)
                if (step.ignore_value or step.ignore_lease) and step.key not in model.states[-1]:
                    assert isinstance(result, KeyNotFoundError)
                    return
                model.begin()
                old = model.put(step)
                assert result.header.revision == model.revision
                assert (result.prev_kv if result.HasField("prev_kv") else None) == (old if step.prev_kv else None)
            case DeleteRangeRequest():
                result = machine.apply(step)
                model.begin()
                doomed = model.delete(step)
                model.end()
                assert (result.deleted, result.header.revision) == (len(doomed), model.revision)
                assert list(result.prev_kvs) == (doomed if step.prev_kv else [])
            case TxnRequest():
                self.txn(step)
            case ("compact", back):
                self.compact(model.revision - back)
            case ("range", request, back):
                await self.range(request, model.revision - back)
            case ("hash", back):
                await self.hash(model.revision - back)
            case _:
                await self.disturb(step[0])
        assert machine.store.current_revision == self.model.revision
        assert machine.store.compacted_revision == self.model.compacted

    def txn(self, request: TxnRequest) -> None:
        model = self.model
        model.begin()
        if puts_on_missing_keys(model, request):
            model.end()
            assert isinstance(self.machine.apply(request), KeyNotFoundError)
            return
        trace: list[Any] = []
        model.run(request, trace)
        model.end()
        response = self.machine.apply(request)
        assert trace_of(request, response, []) == trace
        assert response.header.revision == model.revision

    def compact(self, revision: int) -> None:
        result = self.machine.apply(CompactionRequest(revision=revision))
        if revision <= self.model.compacted:
            assert isinstance(result, CompactedError)
        elif revision > self.model.revision:
            assert isinstance(result, FutureRevisionError)
        else:
            assert not isinstance(result, DeterministicError)
            self.model.compacted = revision

    async def range(self, request: RangeRequest, revision: int) -> None:
        model = self.model
        asked = RangeRequest.FromString(request.SerializeToString())
        asked.revision = revision
        try:
            found = await self.machine.store.read(asked)
        except CompactedError:
            assert 0 < revision < model.compacted
            return
        except FutureRevisionError:
            assert revision > model.revision
            return
        assert revision <= 0 or model.compacted <= revision <= model.revision
        state = model.states[revision if revision > 0 else model.revision]
        assert (found.count, found.more, list(found.kvs)) == model.answer(state, request)
        assert found.header.revision == model.revision

    async def hash(self, revision: int) -> None:
        if revision <= 0 or revision < self.model.compacted:
            return
        found = await self.machine.store.hash_kv(revision)
        assert (found.hash, found.revision) == (self.model.hash(revision), revision)

    async def check_every_revision(self) -> None:
        model = self.model
        for revision in range(max(model.compacted, 1), model.revision + 1):
            everything = RangeRequest(key=b"\x00", range_end=b"\x00")
            await self.range(everything, revision)
            for key in (b"a", LONG + b"a"):
                await self.range(RangeRequest(key=key), revision)
            await self.hash(revision)

    async def disturb(self, kind: str) -> None:
        machine = self.machine
        match kind:
            case "commit":
                await machine.flush()
                self.durable = (machine.store.applied_index, self.frozen())
            case "reopen":
                await machine.reopen()
                self.durable = (machine.store.applied_index, self.frozen())
            case "crash":
                await machine.reopen(commit=False)
                index, self.model = self.durable
                self.durable = (index, self.frozen())
                assert machine.store.applied_index == index
            case _:
                await asyncio.sleep(0)


def everything(machine: Any) -> list[Any]:
    reader = machine.store._engine.reader
    return [list(reader.iterate(table)) for table in range(len(TABLES))]


@contextlib.asynccontextmanager
async def machines(machine_type: Any, *names: str) -> AsyncIterator[list[Any]]:
    """Machines on a fast disk, closed whatever happens: a search for a smaller example opens hundreds."""
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as directory:
        opened = [machine_type(Path(directory) / name, EngineConfig(interval_s=600)) for name in names]
        try:
            yield opened
        finally:
            for machine in opened:
                await machine.store.close()


@settings(max_examples=70, deadline=None)
@given(steps=STEPS)
@example(steps=[PutRequest(key=LONG), DeleteRangeRequest(key=LONG), PutRequest(key=LONG), ("compact", 0)])
@example(steps=[PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), ("compact", 1)])
def test_store_equals_the_model_over_any_history(machine_type: Any, steps: list[Any]) -> None:
    async def scenario() -> None:
        async with machines(machine_type, "db") as [machine]:
            await machine.flush()
            runner = Runner(machine)
            for step in steps:
                await runner.step(step)
            await runner.check_every_revision()
            await machine.store.wait_compacted(machine.store.compacted_revision)
            await runner.check_every_revision()

    asyncio.run(scenario())


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
@example(
    steps=[PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), PutRequest(key=b"b"), ("compact", 0), PutRequest(key=b"a"), ("compact", 0)]
)
@example(steps=[PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), ("compact", 0), PutRequest(key=b"a"), DeleteRangeRequest(key=b"a")])
@example(steps=[PutRequest(key=b"a"), ("compact", 0), PutRequest(key=b"a"), ("compact", 0), PutRequest(key=b"a"), ("compact", 0)])
def test_same_commands_give_the_same_bytes_whatever_else_happened(machine_type: Any, steps: list[Any]) -> None:
    """One member commits, reopens and removes at once, the other only at the end: nothing may tell them apart."""

    async def scenario() -> None:
        async with machines(machine_type, "busy", "lazy") as [busy, lazy]:
            # Nothing is awaited here, so nothing is removed or committed.
            results = [_plain(lazy.apply(request)) for step in steps if (request := _request(lazy, step))]
            for step in steps:
                if request := _request(busy, step):
                    assert _plain(busy.apply(request)) == results.pop(0)
                    await busy.store.wait_compacted(busy.store.compacted_revision)
                elif step[0] in ("reopen", "commit"):
                    await busy.reopen()
            await lazy.store.wait_compacted(lazy.store.compacted_revision)
            assert everything(busy) == everything(lazy)

    asyncio.run(scenario())


def _request(machine: Any, step: Any) -> Any:
    """The request that a step is, if it is one."""
    if isinstance(step, tuple):
        return CompactionRequest(revision=machine.store.current_revision - step[1]) if step[0] == "compact" else None
    return step


def _plain(result: Any) -> Any:
    return type(result) if isinstance(result, DeterministicError) else result
