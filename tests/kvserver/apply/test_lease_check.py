"""The check of the leases' tables: silent about what entries made, and a sentence for every row that is missing or left over."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvserver.apply import LeaseCheck, OnlineCheck
from kvserver.mvcc import LEASE, LEASE_KEY
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest

LONG = b"k" * 700


def findings(machine: Any, max_rows: int = 3) -> list[str]:
    found: list[str] = []
    check = LeaseCheck(found.append)
    while check.run_slice(machine.store.mvcc.snapshot(), max_rows):
        pass
    assert not check.run_slice(machine.store.mvcc.snapshot(), max_rows)
    return found


def rows(machine: Any, table: int) -> list[bytes]:
    return [key for key, _ in machine.store._engine.reader.iterate(table)]


@pytest.fixture
async def filled(machine: Any) -> Any:
    machine.apply(LeaseGrantRequest(ID=-7, TTL=60))
    for key in (b"a", b"b", LONG, LONG + b"2"):
        machine.apply(PutRequest(key=key, lease=-7))
    machine.apply(PutRequest(key=b"free"))
    return machine


async def test_what_entries_made_is_sound(machine: Any) -> None:
    rng = random.Random(3)
    for lease in (1, 2, 3):
        machine.apply(LeaseGrantRequest(ID=lease, TTL=60))
    for _ in range(300):
        key = rng.choice([b"a", b"b", LONG, LONG + b"x"])
        lease = rng.randrange(4)
        for request in rng.choice([[PutRequest(key=key, lease=lease)], [DeleteRangeRequest(key=key)], [LeaseRevokeRequest(ID=lease)]]):
            machine.apply(request)
        if rng.random() < 0.1:
            machine.apply(LeaseGrantRequest(ID=lease, TTL=60))
    assert findings(machine) == []


async def test_attachment_that_is_missing_is_told(filled: Any) -> None:
    filled.store._engine.delete(LEASE_KEY, rows(filled, LEASE_KEY)[0])
    assert findings(filled) == ["key b'a' has lease -7, and isn't attached to it"]


async def test_attachment_that_is_left_over_is_told(filled: Any) -> None:
    row = rows(filled, LEASE_KEY)[0]
    filled.store._engine.put(LEASE_KEY, row[:8] + b"free", b"")
    filled.store._engine.put(LEASE_KEY, row[:8] + b"no", b"")
    assert findings(filled) == [
        "key b'free' is attached to lease -7, and has lease 0",
        "key b'no' is attached to lease -7, and doesn't exist",
    ]


async def test_lease_that_is_missing_is_told_for_each_of_its_keys(filled: Any) -> None:
    filled.store._engine.delete(LEASE, rows(filled, LEASE)[0])
    assert len(findings(filled)) == 4
    assert findings(filled)[0] == "key b'a' is attached to lease -7, which doesn't exist"


async def test_periodic_check_tells_it_too(filled: Any) -> None:
    filled.store._engine.delete(LEASE_KEY, rows(filled, LEASE_KEY)[1])
    await filled.flush()
    await OnlineCheck(filled.store, interval_s=1.0).check_once()
    assert filled.corrupt == ["key b'b' has lease -7, and isn't attached to it"]
