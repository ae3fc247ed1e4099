"""The tables against each other: what is missing or left over is named; a store with any history has nothing to tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvserver.mvcc import integrity, keyspace, layout
from kvserver.mvcc.integrity import CrossCheck, Pass, check_numbers
from kvserver.mvcc.layout import GONE, HISTORY, KEY, REV, pack_revision
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest


def problems(machine: Any, rows: int = 1000) -> list[str]:
    found: list[str] = []
    check = CrossCheck(found.append)
    while check.run_slice(machine.store.mvcc.snapshot(), rows):
        pass
    return found


def history(machine: Any) -> None:
    machine.apply(PutRequest(key=b"a", value=b"1"))  # 2
    machine.apply(PutRequest(key=b"a", value=b"2"))  # 3
    machine.apply(PutRequest(key=b"b", value=b"3"))  # 4
    machine.apply(DeleteRangeRequest(key=b"b"))  # 5
    machine.apply(PutRequest(key=b"L" * 900, value=b"4"))  # 6


async def test_a_slice_of_changes_ends_with_its_bytes(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        machine.apply(PutRequest(key=b"k%d" % number, value=b"v" * 1000))
    monkeypatch.setattr(integrity, "SLICE_BYTES", 3500)
    check, rows = CrossCheck(pytest.fail), []
    while check.run_slice(machine.store.mvcc.snapshot(), 1_000_000):
        rows.append(check.rows[Pass.CHANGES])
    assert rows[:6] == [4, 8, 12, 16, 20, 20]
    assert check.rows[Pass.CHANGES] == 20


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["put", "delete", "compact", "slice"]), st.integers(0, 5)), max_size=40))
async def test_no_history_has_anything_to_tell(open_machine: Any, steps: list[tuple[str, int]]) -> None:
    machine = await open_machine(f"db-{uuid4()}")
    for step, number in steps:
        key = b"%d" % number * (1 if number < 4 else 600)
        if step == "put":
            machine.apply(PutRequest(key=key, value=key))
        elif step == "delete":
            machine.apply(DeleteRangeRequest(key=key))
        elif step == "compact":
            machine.apply(CompactionRequest(revision=max(1, machine.store.current_revision - number)))
        elif machine.store.mvcc.compactor.pending:
            machine.store.mvcc.compactor.run_slice(1 + number)
        assert problems(machine, rows=3) == []


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda store: store.delete(HISTORY, pack_revision(2, 0) + pack_revision(2, 0)), "revision 2.0"),
        (lambda store: store.delete(REV, pack_revision(2, 0)), "revision 2.0 is in the history, and is missing"),
        (lambda store: store.delete(REV, pack_revision(3, 0)), r"revision 3.0, the newest of key b'a', is missing"),
        (lambda store: store.delete(KEY, b"a"), r"revision 3.0 \(key b'a'\) is in no index"),
        (lambda store: store.delete(GONE, b"b"), r"revision 5.0 \(key b'b'\) is in no index"),
        (lambda store: keyspace.forget(store, b"L" * 900), "revision 6.0"),
        (lambda store: store.put(KEY, b"c", store.reader.get(KEY, b"a")), "index entry of key b'c' leads to"),
        (lambda store: store.put(KEY, b"a", layout.pack_entry(pack_revision(3, 0), pack_revision(2, 0), 2, 7, 0)), "differ"),
        (lambda store: store.put(REV, pack_revision(99, 0), store.reader.get(REV, pack_revision(3, 0))), "beyond the store's revision"),
        (lambda store: store.put(REV, pack_revision(3, 0), b"junk"), "can't be read"),
        (
            lambda store: store.put(HISTORY, pack_revision(2, 0) + pack_revision(2, 0), b"\x01" + pack_revision(3, 0)),
            "contradicts it",
        ),
        (
            lambda store: store.put(HISTORY, pack_revision(2, 0) + pack_revision(3, 0), b"\x00" + pack_revision(4, 0)),
            "superseded, and yet the newest",
        ),
    ],
)
async def test_every_contradiction_is_named(machine: Any, harm: Callable[[Any], None], text: str) -> None:
    history(machine)
    assert problems(machine) == []
    harm(machine.store._engine)
    found = problems(machine)
    assert any(re.search(text, each) for each in found), found
    assert len(found) == 1, "one damage is told once"


async def test_compacted_tombstone_before_a_younger_put_is_no_contradiction(machine: Any) -> None:
    history(machine)
    machine.apply(PutRequest(key=b"b", value=b"again"))  # 7 supersedes the tombstone 5
    machine.apply(CompactionRequest(revision=6))
    await machine.store.wait_compacted(6)
    assert problems(machine) == []


async def test_slices_look_at_every_row_once(machine: Any) -> None:
    history(machine)
    for rows in (1, 2, 100):
        check = CrossCheck(lambda text: None)
        while check.run_slice(machine.store.mvcc.snapshot(), rows):
            pass
        assert check.rows == {Pass.CHANGES: 5, Pass.INDEX: 3, Pass.HISTORY: 2}


@pytest.mark.parametrize(
    ("revision", "scheduled", "finished", "target", "sane"),
    [(1, -1, -1, -1, True), (9, 9, 4, 9, True), (9, 9, 9, 9, True), (0, -1, -1, -1, False), (9, 10, 4, 9, False), (9, 5, 6, 6, False)],
)
def test_numbers_must_fit_together(revision: int, scheduled: int, finished: int, target: int, sane: bool) -> None:
    assert (check_numbers(revision, scheduled, finished, target) is None) is sane
