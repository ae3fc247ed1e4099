"""The table of leases against a dictionary, on a real store: order of ids and keys, long keys, and what is left at the end."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.errors import LeaseExistsError, LeaseNotFoundError, LeaseTtlTooLargeError
from kvserver.lease import MAX_TTL_S, LeaseRows, LeaseTable
from kvserver.storage import Engine, EngineConfig
from kvserver.types import LeaseId

TABLES = (b"lease", b"lease_key")
SMALLEST, LARGEST = LeaseId(-(2**63)), LeaseId(2**63 - 1)
IDS = st.sampled_from([SMALLEST, LeaseId(-1), LeaseId(1), LeaseId(2), LARGEST])
PREFIX = b"p" * 480
KEYS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [PREFIX[:-1], PREFIX, PREFIX + b"\x00", PREFIX + b"a", PREFIX + b"b" * 40, PREFIX + b"\xff" * 2000, b"q" * 481, b"\xff" * 600]
    ),
)
STEPS = st.lists(st.tuples(st.sampled_from(["attach", "detach", "commit"]), IDS, KEYS), max_size=40)


def row_order(key: bytes) -> tuple[bytes, bytes]:
    """Byte order, but long keys with the same first 480 bytes by their digests."""
    return key[:480], hashlib.blake2b(key, digest_size=20).digest() if len(key) > 480 else b""


class CountingReader:
    """Counts the rows that are read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.rows = 0

    def iterate(self, *args: Any) -> Iterator[tuple[bytes, bytes]]:
        for each in self._reader.iterate(*args):
            self.rows += 1
            yield each


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_keys_of_a_lease_are_those_attached_in_the_order_of_their_rows_from_any_of_them_on(steps: list[tuple[str, LeaseId, bytes]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            engine = Engine.open(Path(directory) / "db", tables=TABLES, config=EngineConfig(interval_s=60))
            table, rows = LeaseTable(engine, leases=0, keys=1), LeaseRows(leases=0, keys=1)
            expected: dict[LeaseId, set[bytes]] = {}
            for kind, lease, key in steps:
                if kind == "attach":
                    table.attach(lease, key)
                    expected.setdefault(lease, set()).add(key)
                elif kind == "detach":
                    table.detach(lease, key)
                    expected.get(lease, set()).discard(key)
                else:
                    engine.end_entry(1)
                    await engine.commit()
            for lease in (SMALLEST, LeaseId(-1), LeaseId(1), LeaseId(2), LARGEST):
                in_order = sorted(expected.get(lease, ()), key=row_order)
                assert list(table.keys(lease)) == in_order
                for position, key in enumerate(in_order):
                    assert list(table.keys(lease, key)) == in_order[position + 1 :]
                    table.detach(lease, key)
                    assert list(table.keys(lease, key)) == in_order[position + 1 :]
                    table.attach(lease, key)
            pairs = [(lease, key) for _, lease, key in rows.attachments(engine.reader)]
            assert sorted(pairs) == sorted((lease, key) for lease, keys in expected.items() for key in keys)
            assert all(rows.is_attached(engine.reader, lease, key) for lease, key in pairs)
            await engine.close(commit=False)

    asyncio.run(run())


@pytest.fixture
async def table(tmp_path: Path):  # type: ignore[no-untyped-def]
    engine = Engine.open(tmp_path / "db", tables=TABLES, config=EngineConfig(interval_s=60))
    yield LeaseTable(engine, leases=0, keys=1)
    await engine.close(commit=False)


async def test_leases_come_in_the_order_of_their_signed_ids(table: LeaseTable) -> None:
    for lease in (LARGEST, LeaseId(5), LeaseId(-5), SMALLEST, LeaseId(6)):
        table.grant(lease, 10)
    assert [lease for lease, _ in table.leases()] == [SMALLEST, -5, 5, 6, LARGEST]
    assert [lease for lease, _ in table.leases(LeaseId(5))] == [6, LARGEST]
    assert list(table.leases(LARGEST)) == []


async def test_granting_keeps_the_ttl_and_refuses_what_can_not_be(table: LeaseTable) -> None:
    table.grant(LeaseId(1), MAX_TTL_S)
    assert table.ttl_s(LeaseId(1)) == MAX_TTL_S
    with pytest.raises(LeaseExistsError):
        table.grant(LeaseId(1), 5)
    with pytest.raises(LeaseTtlTooLargeError):
        table.grant(LeaseId(2), MAX_TTL_S + 1)
    with pytest.raises(LeaseNotFoundError):
        table.grant(LeaseId(0), 5)
    assert not table.has(LeaseId(2))
    table.remove(LeaseId(1))
    assert not table.has(LeaseId(1))


@pytest.mark.parametrize("is_committed", [False, True])
async def test_slice_of_long_keys_with_one_prefix_reads_no_more_rows_than_it_takes(tmp_path: Path, is_committed: bool) -> None:
    engine = Engine.open(tmp_path / "db", tables=TABLES, config=EngineConfig(interval_s=60))
    rows, table = LeaseRows(leases=0, keys=1), LeaseTable(engine, leases=0, keys=1)
    keys = {PREFIX + b"%04d" % number for number in range(1000)}
    for key in keys:
        table.attach(LeaseId(1), key)
    if is_committed:
        engine.end_entry(1)
        await engine.commit()
    reader: Any = CountingReader(engine.reader)
    found: list[bytes] = []
    while part := list(islice(rows.keys(reader, LeaseId(1), found[-1] if found else b""), 64)):
        found += part
    assert (len(found), set(found)) == (1000, keys)
    assert reader.rows == 1000
    await engine.close(commit=False)
