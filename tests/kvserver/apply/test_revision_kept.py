"""Killed at every commit of a compaction, also of one that removes the newest changes: the revision never moves back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from kvserver.apply import Store, removal
from kvserver.mvcc.integrity import CrossCheck
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest


def copy_at_every_commit(machine: Any, directory: Path) -> list[tuple[Path, int, int, int]]:
    """From now on the file is copied whenever a commit has ended: (copy, index, revision, compacted revision) as they were promised then.

    No commit runs at that moment, so the copy is what a kill leaves there, and until the next commit's end.
    """
    copies: list[tuple[Path, int, int, int]] = []
    promised = {machine.store.applied_index: (machine.store.current_revision, machine.store.compacted_revision)}
    apply = machine.applier.apply_entry

    def remember(index: int, term: int, data: bytes) -> Any:
        result = apply(index, term, data)
        promised[index] = (machine.store.current_revision, machine.store.compacted_revision)
        return result

    def copy(mark: int) -> None:
        path = directory / f"copy{len(copies)}"
        shutil.copy(machine.path, path)
        copies.append((path, mark, *promised[mark]))

    machine.applier.apply_entry = remember
    machine.store._engine.hooks.on_durable = copy
    return copies


async def test_revision_and_compaction_survive_a_kill_at_every_commit(
    open_machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 4)
    machine = await open_machine(commit_count=1, interval_s=0.0)
    await machine.flush()
    copies = copy_at_every_commit(machine, tmp_path)
    for number in range(20):
        machine.apply(PutRequest(key=b"key%d" % (number % 4), value=b"%d" % number))
        await machine.flush()
    machine.apply(DeleteRangeRequest(key=b"key", range_end=b"kez"))  # nothing is left: the newest changes are tombstones
    newest = machine.store.current_revision
    machine.apply(CompactionRequest(revision=newest))
    await machine.store.wait_compacted(newest)
    await machine.store.commit()
    machine.apply(PutRequest(key=b"other"))
    machine.apply(CompactionRequest(revision=newest + 1))
    await machine.store.wait_compacted(newest + 1)
    await machine.store.commit()
    final = (await machine.store.hash_kv()).hash
    assert len(copies) >= 20 + 4, "every slice of the removal was a commit of its own"
    highest = 0
    for path, index, revision, compacted in copies:
        store = Store.open(path)
        try:
            assert store.applied_index >= index
            assert store.current_revision >= revision >= highest
            assert store.compacted_revision >= compacted
            highest = revision
            if store.compacted_revision > 0:
                await store.wait_compacted(store.compacted_revision)
            found: list[str] = []
            check = CrossCheck(found.append)
            while check.run_slice(store.mvcc.snapshot(), 100):
                pass
            assert found == []
            if store.applied_index == machine.store.applied_index:
                assert (await store.hash_kv()).hash == final
        finally:
            await store.close()
