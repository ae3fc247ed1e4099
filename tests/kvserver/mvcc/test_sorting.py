"""Sorted ranges: the order is that of a plain sort, and what is held for it is bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvserver.mvcc import Allowance, execute_range
from kvserver.mvcc.found import Found
from kvserver.mvcc.layout import pack_revision
from kvserver.mvcc.sorting import FRONT_BYTES, ordered
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import RangeRequest

R = RangeRequest
TARGETS = {R.KEY: "key", R.VERSION: "version", R.CREATE: "create_revision", R.MOD: "mod_revision", R.VALUE: "value"}


class Values:
    """Values by revision, which counts what is held of them."""

    def __init__(self, values: list[bytes]) -> None:
        self.by_revision = {pack_revision(number, 0): value for number, value in enumerate(values)}
        self.reads = 0

    def load(self, revision: bytes, into: KeyValue) -> None:
        self.reads += 1
        into.value = self.by_revision[revision]

    def found(self) -> list[Found]:
        return [Found(b"k%03d" % number, revision, number // 3, number % 4, 0) for number, revision in enumerate(self.by_revision)]


def some_values() -> list[bytes]:
    """Short ones, equal ones, and long ones that differ behind the front only, in length or in a byte."""
    front = b"f" * FRONT_BYTES
    values = [b"", b"a", b"b", front[:-1], front, front + b"a", front + b"b", front + b"a", front + b"ab", front * 3, b"b", b"\xff"] * 3
    random.Random(5).shuffle(values)
    return values


@pytest.mark.parametrize("descends", [False, True])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("keep", [None, 2, 5, 36, 100])
def test_the_order_is_that_of_a_stable_sort_cut_at_the_limit(target: Any, descends: bool, keep: int | None) -> None:
    values = Values(some_values())
    request = RangeRequest(sort_target=target, sort_order=R.DESCEND if descends else R.NONE)

    def key(found: Found) -> Any:
        return values.by_revision[found.revision] if target == R.VALUE else getattr(found, TARGETS[target])

    expected = sorted(values.found(), key=key, reverse=descends)[:keep]
    assert ordered(iter(values.found()), request, keep, values) == expected


def test_with_a_limit_no_more_keys_are_held_than_that() -> None:
    alive = most = 0

    class Counted(Found):
        def __new__(cls, *fields: Any) -> Any:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *fields)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def keys() -> Any:
        for number in range(5_000):
            yield Counted(b"k", pack_revision(number * 7_919 % 5_000, 0), 1, 1, 0)

    chosen = ordered(keys(), RangeRequest(sort_target=R.MOD), 4, Values([]))
    assert [found.mod_revision for found in chosen] == [0, 1, 2, 3]
    assert most < 10


def test_sorting_by_value_holds_the_front_of_each_value_only() -> None:
    import tracemalloc

    values = Values([b"v" * 8 + b"%04d" % (number * 7 % 200) + bytes(50_000) for number in range(200)])
    tracemalloc.start()
    ordered(iter(values.found()), RangeRequest(sort_target=R.VALUE), None, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # the values are 10 MB
    assert values.reads == 200  # none was needed twice


def test_a_sorted_range_with_a_limit_costs_what_it_keeps(tmp_path: Any) -> None:
    import asyncio

    from kvserver.apply import Store
    from kvserver.pb.rpc_pb2 import PutRequest

    async def scenario() -> None:
        store = Store.open(tmp_path / "db")
        for number in range(300):
            store.mvcc.put(PutRequest(key=b"k%04d" % number, value=b"%04d" % (number * 7 % 300)))
        for target in TARGETS:
            allowance = Allowance(limit_bytes=8_000)
            request = RangeRequest(key=b"k", range_end=b"l", limit=2, sort_target=target, sort_order=R.DESCEND)
            found = execute_range(store.mvcc.snapshot(None, allowance), request)
            assert not allowance.is_exceeded
            assert (found.count, found.more, len(found.kvs)) == (300, True, 2)
            everything = execute_range(store.mvcc.snapshot(), RangeRequest(key=b"k", range_end=b"l"))
            by_target = sorted(everything.kvs, key=lambda kv, name=TARGETS[target]: getattr(kv, name), reverse=True)  # type: ignore[misc]
            assert list(found.kvs) == by_target[:2]
            whole = Allowance(limit_bytes=8_000)
            execute_range(
                store.mvcc.snapshot(None, whole), RangeRequest(key=b"k", range_end=b"l", sort_target=target, sort_order=R.DESCEND)
            )
            assert whole.is_exceeded
        await store.close(commit=False)

    asyncio.run(scenario())
