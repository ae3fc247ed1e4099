"""Reading through buffer and file at once equals reading one sorted dict."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.storage import Engine, EngineConfig, Reader
from kvserver.storage.layer import ENTRY_OVERHEAD_BYTES, Layer

KEYS = st.binary(min_size=1, max_size=3).map(lambda key: bytes(byte % 4 for byte in key))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=4)),
        st.tuples(st.just("delete"), KEYS, st.just(b"")),
        st.tuples(st.sampled_from(["commit", "seal", "check"]), KEYS, KEYS),
    ),
    max_size=40,
)


def compare(reader: Reader, model: dict[bytes, bytes], lo: bytes, hi: bytes | None) -> None:
    expected = sorted((key, value) for key, value in model.items() if key >= lo and (hi is None or key < hi))
    assert list(reader.iterate(1, lo, hi)) == expected
    assert list(reader.iterate(1, lo, hi, reverse=True)) == expected[::-1]
    assert [(key, bytes(value)) for key, value in reader.iterate_views(1, lo, hi)] == expected
    assert reader.count(1, lo, hi) == len(expected)
    assert list(reader.iterate(0)) == []


def compare_all(reader: Reader, model: dict[bytes, bytes], lo: bytes, hi: bytes) -> None:
    for bounds in ((b"", None), (lo, None), (b"", hi), (lo, hi)):
        compare(reader, model, *bounds)
    for key in (lo, hi):
        assert reader.get(1, key) == model.get(key)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_all_reads_equal_a_sorted_dict_whatever_is_buffered_or_committed(steps: list[tuple[str, bytes, bytes]]) -> None:
    async def scenario(directory: str) -> None:
        engine = Engine.open(Path(directory) / "db", tables=(b"one", b"two"), config=EngineConfig(interval_s=60))
        model: dict[bytes, bytes] = {}
        views = []
        mark = 0
        for kind, first, second in steps:
            match kind:
                case "put":
                    engine.put(1, first, second)
                    model[first] = second
                case "delete":
                    engine.delete(1, first)
                    model.pop(first, None)
                case "check":
                    compare_all(engine.reader, model, first, second)
                    if len(views) < 3:
                        views.append((engine.read_view(), dict(model), first, second))
                case _:
                    mark += 1
                    engine.end_entry(mark)
                    engine.request_commit()
                    if kind == "commit" and engine.buffered_bytes:
                        await engine.wait_durable(mark)
        compare_all(engine.reader, model, b"\x01", b"\x02")
        for view, then, lo, hi in views:
            with view:
                await asyncio.to_thread(compare_all, view, then, lo, hi)
        engine.end_entry(mark + 1)
        await engine.close()
        engine = Engine.open(Path(directory) / "db", tables=(b"one", b"two"))
        compare_all(engine.reader, model, b"\x01", b"\x02")
        await engine.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=9)), st.booleans())))
def test_layer_keeps_order_and_size_over_any_writes(writes: list[tuple[bytes, bytes | None, bool]]) -> None:
    layer = Layer(1)
    for key, value, look in writes:
        layer.set(0, key, value)
        if look:
            assert layer.ordered_keys(0) == sorted(layer.tables[0])
    model = {key: value for key, value, _ in writes}
    assert layer.tables[0] == model
    assert layer.ordered_keys(0) == sorted(model)
    assert layer.count == len(model)
    assert layer.size_bytes == sum(len(key) + len(value or b"") + ENTRY_OVERHEAD_BYTES for key, value in model.items())
