"""SIGKILL at any moment: what was durable is there, and data and applied index belong together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvserver.apply import Store
from kvserver.pb.rpc_pb2 import RangeRequest

pytestmark = pytest.mark.process


async def test_killed_writer_loses_nothing_durable_and_keeps_data_and_index_together(tmp_path: Path) -> None:
    for marks_before_the_kill in (1, 2, 5, 11, 23):
        durable = run_and_kill(tmp_path / "db", marks_before_the_kill)
        await check(tmp_path / "db", durable)


def run_and_kill(path: Path, marks_before_the_kill: int) -> int:
    """Let the writer write until it has reported so many durable marks, kill it, and return the last mark that it reported."""
    program = Path(__file__).with_name("writer_until_killed.py")
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(program), str(path)], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            durable = 0
            for _ in range(marks_before_the_kill):
                durable = int(process.stdout.readline())
            process.kill()
            return max([durable, *map(int, process.stdout.read().split())])
        finally:
            process.kill()  # also when the test is cut short


async def check(path: Path, durable: int) -> None:
    store = Store.open(path)
    index = store.applied_index
    assert index >= durable
    assert store.applied_term == 3
    puts = index - index // 100
    assert store.current_revision == 1 + puts
    found = {kv.key: kv for kv in store.range(RangeRequest(key=b"k", range_end=b"l")).kvs}
    for last in range(max(1, index - 40), index + 1):
        if last % 100:
            assert found[b"k%d" % (last % 50)].value == b"%d" % last
    assert all(int(kv.value) <= index for kv in found.values())
    if store.compacted_revision > 0:
        await store.wait_compacted(store.compacted_revision)
    assert (await store.hash_kv()).revision == store.current_revision
    await store.close()
