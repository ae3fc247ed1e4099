"""SIGKILL at any moment: what was durable is there, and data and applied index belong together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvserver.apply import Store
from kvserver.mvcc import layout
from kvserver.mvcc.integrity import CrossCheck
from kvserver.pb.rpc_pb2 import RangeRequest
from tests.kvserver.apply.deleter_until_killed import KEYS

pytestmark = pytest.mark.process


async def test_killed_writer_loses_nothing_durable_and_keeps_data_and_index_together(tmp_path: Path) -> None:
    for marks_before_the_kill in (1, 2, 5, 11, 23):
        durable = run_and_kill(tmp_path / "db", marks_before_the_kill)
        await check(tmp_path / "db", durable)


async def test_a_deletion_of_very_many_keys_that_is_killed_again_and_again_is_whole_in_the_end(tmp_path: Path) -> None:
    """Each run is killed after some commits; between the runs the store shows all keys, or none once it is done."""
    path = tmp_path / "db"
    halves = 0
    for commits in (1, 2, 4, 7):
        kill_deleter(path, commits)
        store = Store.open(path)
        left = store.range(RangeRequest(key=b"k", range_end=b"l"))
        assert (left.count, store.current_revision) == ((KEYS, 1 + KEYS) if store.applied_index == KEYS else (0, 2 + KEYS))
        halves += store.mvcc.is_unfinished
        await store.close()
    assert halves >= 2
    kill_deleter(path, None)
    store = Store.open(path)
    assert (store.applied_index, store.current_revision, store.mvcc.is_unfinished) == (KEYS + 1, 2 + KEYS, False)
    assert store.range(RangeRequest(key=b"k", range_end=b"l", count_only=True)).count == 0
    assert store.range(RangeRequest(key=b"k", range_end=b"l", count_only=True, revision=1 + KEYS)).count == KEYS
    found: list[str] = []
    check = CrossCheck(found.append)
    while check.run_slice(store.mvcc.snapshot(), 10_000):
        pass
    assert found == []
    assert subs(store) == list(range(KEYS))
    await store.close()


def subs(store: Store) -> list[int]:
    """The numbers of the changes of the deletion."""
    first, behind = layout.pack_revision(2 + KEYS, 0), layout.pack_revision(3 + KEYS, 0)
    return [layout.unpack_revision(revision)[1] for revision, _ in store._engine.reader.iterate(layout.REV, first, behind)]


def kill_deleter(path: Path, commits: int | None) -> None:
    """Let it delete until so many parts of the deletion are durable, and kill it; None: until it is done."""
    program = Path(__file__).with_name("deleter_until_killed.py")
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, str(program), str(path)], cwd=root, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for seen, line in enumerate(process.stdout, 1):
                if line == "done\n" or seen == commits:
                    return
            raise AssertionError(f"it ended by itself: {process.wait()}")
        finally:
            process.kill()


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
