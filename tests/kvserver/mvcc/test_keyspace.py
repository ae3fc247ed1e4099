"""The key index keeps byte order and finds everything, whatever the keys' lengths."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from time import perf_counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.mvcc import TABLES, keyspace, layout
from kvserver.mvcc.keyspace import CHUNK_BYTES
from kvserver.mvcc.layout import GONE, KEY, LONG
from kvserver.storage import Engine, EngineConfig

LIVE = layout.pack_entry(bytes(16), bytes(16), 1, 1, 0)
DEAD = layout.pack_entry(bytes(16), bytes(16), 0, 0, 0)

_CHUNKS = st.sampled_from([b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"\x00" * CHUNK_BYTES, b"\xff" * CHUNK_BYTES])
_TAILS = st.sampled_from([b"\x00", b"\x00\x00", b"\x01", b"a", b"a\x00", b"ab", b"b", b"\xff", b"a" * 479, b"a" * 480, b"\xff" * 480, b"q"])
KEYS = st.builds(lambda chunks, tail: b"".join(chunks) + tail, st.lists(_CHUNKS, max_size=3), _TAILS)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "delete", "forget", "commit"]), KEYS), max_size=30)


@settings(max_examples=80, deadline=None)
@given(STEPS, st.lists(KEYS, min_size=2, max_size=6))
def test_index_equals_a_sorted_dict(steps: list[tuple[str, bytes]], bounds: list[bytes]) -> None:
    async def scenario(directory: str) -> None:
        engine = Engine.open(Path(directory) / "db", tables=TABLES, config=EngineConfig(interval_s=60))
        live: set[bytes] = set()
        gone: set[bytes] = set()
        for mark, (kind, key) in enumerate(steps, 1):
            if kind == "put":
                keyspace.store_live(engine, key, LIVE, was_gone=key in gone)
                live.add(key)
                gone.discard(key)
            elif kind == "delete" and key in live:
                keyspace.store_gone(engine, key, DEAD)
                live.discard(key)
                gone.add(key)
            elif kind == "forget" and key in gone:
                keyspace.forget(engine, key)
                gone.discard(key)
            elif kind == "commit":
                engine.end_entry(mark)
                engine.request_commit()
                await engine.wait_durable(mark)
        check(engine, live, gone, bounds)
        await engine.close(commit=False)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


def check(engine: Engine, live: set[bytes], gone: set[bytes], bounds: list[bytes]) -> None:
    reader = engine.reader
    for key in live | gone | set(bounds):
        assert (keyspace.find(reader, key) is not None) is (key in live)
        assert (keyspace.find_any(reader, key) is not None) is (key in live | gone)
    for lo, hi in [(b"", None), *((lo, hi) for lo in bounds for hi in [*bounds, None])]:
        inside = [key for key in sorted(live) if key >= lo and (hi is None or key < hi)]
        every = [key for key in sorted(live | gone) if key >= lo and (hi is None or key < hi)]
        assert [key for key, _ in keyspace.scan(reader, lo, hi)] == inside
        assert [key for key, _ in keyspace.scan(reader, lo, hi, reverse=True)] == inside[::-1]
        assert [key for key, _ in keyspace.scan_any(reader, lo, hi)] == every
        assert keyspace.count(reader, lo, hi) == len(inside)
    if not live and not gone:
        assert [list(reader.iterate(table)) for table in (KEY, GONE, LONG)] == [[], [], []]


async def test_forgetting_every_key_leaves_no_marker_behind(engine: Engine) -> None:
    keys = [b"a" * length for length in (480, 481, 960, 961, 2000, 100_000)]
    for key in keys:
        keyspace.store_live(engine, key, LIVE, was_gone=False)
    assert [key for key, _ in keyspace.scan(engine.reader, b"", None)] == keys
    for key in keys:
        keyspace.store_gone(engine, key, DEAD)
        keyspace.forget(engine, key)
    assert [list(engine.reader.iterate(table)) for table in (KEY, GONE, LONG)] == [[], [], []]


async def test_longest_keys_work_and_cost_is_linear(engine: Engine) -> None:
    """Keys at the request limit that share all but their end: quadratic work would take minutes."""
    began = perf_counter()
    keys = [b"x" * 1_572_000 + b"%02d" % number for number in range(20)]
    for key in keys:
        keyspace.store_live(engine, key, LIVE, was_gone=False)
    engine.end_entry(1)
    engine.request_commit()
    await engine.wait_durable(1)
    assert all(keyspace.find(engine.reader, key) is not None for key in keys)
    assert [key for key, _ in keyspace.scan(engine.reader, keys[3], keys[15])] == keys[3:15]
    assert [key for key, _ in keyspace.scan(engine.reader, b"x", None, reverse=True)] == keys[::-1]
    assert engine.size_in_use_bytes < 6_000_000, "the shared prefix is stored once"
    assert perf_counter() - began < 10


async def test_many_long_keys_with_one_prefix_stay_fast(engine: Engine) -> None:
    began = perf_counter()
    for number in range(5000):
        keyspace.store_live(engine, b"p" * 700 + b"%06d" % number, LIVE, was_gone=False)
    assert keyspace.count(engine.reader, b"p" * 700 + b"001000", b"p" * 700 + b"002000") == 1000
    assert perf_counter() - began < 5
