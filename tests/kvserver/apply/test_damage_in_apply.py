"""Damage that an entry meets while it is applied: said with file, row and index; nothing of the entry is committed or read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import Applier, ApplyMetDamageError, Store, UnreadablePayloadError, removal
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import CorruptError, FatalError, StoppedError
from kvserver.mvcc.layout import GONE, KEY, LONG, REV, pack_revision
from kvserver.pb.rpc_pb2 import CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.storage import EngineHooks, StoreUnreadableError
from kvserver.testing.damage import flip_row
from kvserver.types import NodeId, Revision

EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")
LONG_KEY = b"l" * 500
FIRST = pack_revision(2, 0)


def put(key: bytes, **fields: Any) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, **fields))


def on_value(key: bytes) -> Compare:
    return Compare(key=key, target=Compare.VALUE, result=Compare.EQUAL, value=b"1")


CASES = {
    "put over a damaged index row": (KEY, b"a", PutRequest(key=b"a"), "the row 'a' of table key"),
    "put of the previous value": (REV, FIRST, PutRequest(key=b"a", prev_kv=True), "the record of revision 2.0"),
    "put that keeps the value": (REV, FIRST, PutRequest(key=b"a", ignore_value=True), "the record of revision 2.0"),
    "put that keeps the lease": (KEY, b"a", PutRequest(key=b"a", ignore_lease=True), "the row 'a' of table key"),
    "put of a deleted key": (GONE, b"gone", PutRequest(key=b"gone"), "the row 'gone' of table gone"),
    "put beside a damaged row": (KEY, b"b", PutRequest(key=b"aa"), "the row 'b' of table key"),
    "deletion": (KEY, b"a", DeleteRangeRequest(key=b"a"), "the row 'a' of table key"),
    "deletion of a range": (KEY, b"b", DeleteRangeRequest(key=b"a", range_end=b"z"), "the row 'b' of table key"),
    "compare": (REV, FIRST, TxnRequest(compare=[on_value(b"a")], success=[put(b"x")]), "the record of revision 2.0"),
    "txn whose second half meets it": (
        REV,
        FIRST,
        TxnRequest(success=[put(b"x"), put(b"y"), RequestOp(request_range=RangeRequest(key=b"a"))]),
        "the record of revision 2.0",
    ),
}


class Opened:
    """A machine whose store tells the node's hook what ended it."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.fatal: list[FatalError] = []

    @property
    def store(self) -> Store:
        return self.machine.store  # type: ignore[no-any-return]

    async def damage(self, table: int, key: bytes) -> None:
        await self.store.close()
        flip_row(self.machine.path, table, key, offset_bytes=20)
        self.reopen()

    def reopen(self) -> None:
        hooks = EngineHooks(on_fatal=self.fatal.append)
        self.machine.store = Store.open(self.machine.path, hooks=hooks, on_corrupt=self.machine.corrupt.append)
        self.machine.applier = Applier(self.machine.store)

    def meet(self, request: Any) -> ApplyMetDamageError:
        with pytest.raises(ApplyMetDamageError) as met:
            self.machine.apply(request)
        return met.value


@pytest.fixture
async def opened(machine: Any) -> Opened:
    for request in (PutRequest(key=b"a", value=b"1"), PutRequest(key=b"b", value=b"2"), PutRequest(key=b"gone")):
        machine.apply(request)
    machine.apply(DeleteRangeRequest(key=b"gone"))
    machine.apply(PutRequest(key=LONG_KEY))
    return Opened(machine)


@pytest.mark.parametrize(("table", "key", "request_", "row"), CASES.values(), ids=CASES)
async def test_it_is_told_with_file_row_and_index_and_leaves_no_trace(
    opened: Opened, table: int, key: bytes, request_: Any, row: str
) -> None:
    await opened.damage(table, key)
    before = opened.store.applied_index
    error = opened.meet(request_)
    assert (error.path, error.row, error.reason, error.index) == (opened.machine.path, row, "fails its checksum", before + 1)
    for word in (
        str(opened.machine.path),
        row,
        "fails its checksum",
        f"entry {before + 1}",
        "kvserver check",
        "docs/operations/corruption.md",
    ):
        assert word in str(error)
    assert "start again" not in str(error)
    assert opened.fatal == [error], "the node hears this very error"
    assert any(row in text for text in opened.machine.corrupt), "and the report that raises the alarm comes as for a read"
    await opened.store.close()
    opened.reopen()
    assert opened.store.applied_index == before
    assert opened.meet(request_).index == before + 1, "the next start meets it again"


async def test_a_damaged_node_of_a_long_key(opened: Opened) -> None:
    await opened.store.close()
    with pytest.raises(LookupError):
        flip_row(opened.machine.path, LONG, b"nothing here")
    opened.reopen()
    key = next(iter(opened.store._engine.reader.iterate(LONG)))[0]
    await opened.damage(LONG, key)
    assert "table long fails its checksum" in str(opened.meet(PutRequest(key=LONG_KEY)))


async def test_a_record_that_is_missing_is_damage_with_a_text(opened: Opened) -> None:
    opened.store._engine.delete(REV, FIRST)
    error = opened.meet(PutRequest(key=b"a", prev_kv=True))
    assert (error.row, error.reason) == ("the record of revision 2.0", "is missing")


READS: dict[str, Callable[[Store], Any]] = {
    "range": lambda store: store.range(RangeRequest(key=b"b")),
    "read": lambda store: store.read(RangeRequest(key=b"b")),
    "large read": lambda store: store.read(EVERYTHING),
    "txn": lambda store: store.read_txn(TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"b"))])),
    "view": lambda store: store.read_view(),
    "hash": lambda store: store.hash_kv(),
}


async def refused(store: Store, error: type[Exception]) -> None:
    async def ask(read: Callable[[Store], Any]) -> None:
        answer = read(store)
        if asyncio.iscoroutine(answer):
            await answer

    for read in READS.values():
        with pytest.raises(error):
            await ask(read)


async def test_nothing_is_read_any_more_as_half_an_entry_may_stand_there(opened: Opened) -> None:
    await opened.damage(REV, FIRST)
    assert opened.store.range(RangeRequest(key=b"b")).count == 1
    opened.meet(CASES["txn whose second half meets it"][2])
    await refused(opened.store, CorruptError)


async def test_after_a_failure_that_is_no_damage_reads_are_answered_that_the_server_stops(opened: Opened) -> None:
    await opened.store.close()
    opened.reopen()
    data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"\xff\xff\xff")
    with pytest.raises(UnreadablePayloadError) as met:
        opened.machine.apply_data(data)
    assert opened.fatal == [met.value], "an error with a text of its own is not wrapped in another"
    await refused(opened.store, StoppedError)


async def test_what_was_applied_before_is_committed_no_more_but_what_was_committed_stays(opened: Opened) -> None:
    await opened.damage(KEY, b"a")
    committed = opened.store.applied_index
    opened.machine.apply(PutRequest(key=b"later"))
    opened.meet(PutRequest(key=b"a"))
    with pytest.raises(ApplyMetDamageError):
        await opened.store.commit()
    with pytest.raises(ApplyMetDamageError):
        opened.machine.apply(PutRequest(key=b"much later"))
    await opened.store.close()
    opened.reopen()
    assert opened.store.applied_index == committed


async def test_a_snapshot_is_not_installed_over_the_damage(opened: Opened, tmp_path: Path) -> None:
    sound = tmp_path / "copy"
    await opened.store.commit()
    await asyncio.to_thread(opened.store.copy_to, sound)
    await opened.damage(KEY, b"a")
    error = opened.meet(PutRequest(key=b"a"))
    with pytest.raises(StoreUnreadableError, match="fails its checksum"):
        await asyncio.to_thread(opened.store.copy_to, tmp_path / "of the damage")
    with pytest.raises(ApplyMetDamageError) as met:
        await opened.store.install(sound)
    assert met.value is error
    assert sound.exists()
    await opened.store.close()
    opened.reopen()
    opened.meet(PutRequest(key=b"a"))


async def test_who_waits_for_a_compactions_removal_is_answered(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 1)
    await opened.damage(KEY, b"a")
    opened.machine.apply(CompactionRequest(revision=5))
    waiting = asyncio.create_task(opened.store.wait_compacted(Revision(5)))
    await asyncio.sleep(0)
    assert opened.store.mvcc.compactor.pending
    opened.meet(PutRequest(key=b"a"))
    with pytest.raises(CorruptError):
        await waiting
    assert opened.store._removal._handle is None, "nothing is removed any more, nor tried"
