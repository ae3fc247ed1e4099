"""A full disk while the store is behind its log, or is built again from it: reads go on, writes are refused, space ends it."""

from __future__ import annotations

import asyncio

import pytest

from kvserver.errors import NoSpaceError
from kvserver.node import space_watch
from kvserver.pb import rpc_pb2
from kvserver.testing.small_disk import SmallDiskError, fill, free_bytes, small_disk
from tests.durability.damage.member import DEADLINE_S, Acked, assert_boots, put, start

LEFT_BYTES = {"kept": 32 << 10, "lost": 128 << 10}
"""Enough to start (without a store: for an empty one), too little for what the log holds."""


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk", size_mib=32) as mounted:
            yield mounted
    except SmallDiskError as error:
        pytest.skip(f"no small disk can be mounted: {error}")


def holds(node, acked: Acked) -> bool:
    found = node.store.range(rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))
    return {pair.key: (pair.value, pair.mod_revision) for pair in found.kvs} == acked


async def wait_until(condition) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - lets the member run
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("store", ["kept", "lost"])
async def test_start_on_a_disk_that_is_full(disk, states, store, monkeypatch):
    monkeypatch.setattr(space_watch, "RETRY_S", 0.02)
    directory = states.behind.copy_to(disk / "data")
    if store == "lost":
        directory.lose_store()
    filler = fill(disk, leave_bytes=LEFT_BYTES[store])
    node = await start(directory)
    try:
        await node.wait_published()
        node.store.request_commit()
        await wait_until(lambda: node.space.space.store_full)
        assert node.store.durable_index < directory.last_index
        assert holds(node, directory.acked), "reads go on"
        with pytest.raises(NoSpaceError):
            await put(node, 8_000, {})
        assert free_bytes(disk) < 1 << 20
        filler.unlink()
        await wait_until(lambda: not node.space.space.is_short)
        await put(node, 8_001, directory.acked)
        assert holds(node, directory.acked)
    finally:
        await node.stop()
    await assert_boots(directory)
