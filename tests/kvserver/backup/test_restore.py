"""Restoring: the new data directory is whole and starts, or nothing is there; what differs never gets one identity."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvserver.apply import Store
from kvserver.backup import RestoreError, RestoreOrder, SnapshotFileError, restore, restoring
from kvserver.config import ConfigError, ServerConfig
from kvserver.logs import Logger
from kvserver.node import bootstrap
from kvserver.node.bootstrap import BootstrapError, Origin
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import RESTORING, DataDirectoryError, open_data_directory
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId, Revision
from tests.kvserver.backup.conftest import Saved, make_saved, tree
from wal import OsFiles

MakeConfig = Callable[..., ServerConfig]
WHOLE = ["member", "member/snap", "member/snap/db", "member/wal"]


class Silent:
    def write_line(self, line: str) -> None:
        del line


def ignore(what: str, done_bytes: int, total_bytes: int) -> None:
    del what, done_bytes, total_bytes


def order(saved: Saved | Path, config: ServerConfig, **rest: Any) -> RestoreOrder:
    return RestoreOrder(snapshot=saved if isinstance(saved, Path) else saved.path, config=config, **rest)


async def start(config: ServerConfig, look: Callable[[Store, Origin], Any]) -> Any:
    """Start the member as far as its store, WAL and window; `look` at it; stop."""
    directory = open_data_directory(config.data_dir, config.wal_dir)
    try:
        store = Store.open(directory.store)
        try:
            origin = await bootstrap.begin(config, directory, store, WindowLimits(), Logger(Silent()))
            found = look(store, origin)
            found = await found if asyncio.iscoroutine(found) else found
            origin.wal.close()
            return found
        finally:
            await store.close()
    finally:
        directory.close()


def test_a_restored_member_starts_with_every_key_and_revision_as_a_member_of_the_new_cluster(saved: Saved, config: MakeConfig) -> None:
    made = config("a")
    restored = restore(order(saved, made), ignore)
    assert tree(made.data_dir)[:4] == WHOLE

    async def look(store: Store, origin: Origin) -> None:
        assert (await store.hash_kv()).hash == saved.hash_kv
        assert store.current_revision == saved.revision == restored.revision
        assert store.compacted_revision == 60
        assert store.range(rpc_pb2.RangeRequest(key=b"key-39")).kvs[0].mod_revision > 60
        assert (store.applied_index, store.applied_term, origin.hard_state.commit, origin.hard_state.term) == (1, 1, 1, 1)
        assert origin.cluster_id == restored.cluster_id == store.cluster_id
        assert sorted(member.name for member in store.members.values()) == ["a", "b", "c"]
        assert tuple(sorted(store.conf_state.voters)) == tuple(sorted(store.members)) == restored.members
        assert (store.removed_ids, store.alarms, store.membership.cluster_token) == (frozenset(), (), "new")

    asyncio.run(start(made, look))
    asyncio.run(start(made, look))  # and again: a restart is a restart


def test_all_members_get_one_cluster_and_each_its_own_id(saved: Saved, config: MakeConfig) -> None:
    made = [restore(order(saved, config(name)), ignore) for name in "abc"]
    assert len({each.cluster_id for each in made}) == 1
    assert sorted(each.member_id for each in made) == list(made[0].members)


def test_other_data_other_members_or_another_bump_make_another_cluster(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    other = make_saved(tmp_path / "other", seed=b"x")
    plain = config("a")
    orders = [
        order(saved, replace(plain, data_dir=tmp_path / "1")),
        order(other, replace(plain, data_dir=tmp_path / "2")),
        order(saved, replace(plain, data_dir=tmp_path / "3", initial_cluster_token="more")),
        order(saved, replace(plain, data_dir=tmp_path / "4"), bump_revision=10),
    ]
    found = [restore(each, ignore).cluster_id for each in orders]
    assert len(set(found)) == 4
    assert bootstrap.cluster_id(bootstrap.members_of(plain)) not in found, "an empty member would be of the same cluster"


def test_a_bumped_revision_goes_on_there_and_everything_before_is_compacted(saved: Saved, config: MakeConfig) -> None:
    made = [config(name) for name in "ab"]
    for each in made:
        assert restore(order(saved, each, bump_revision=1_000_000), ignore).revision == saved.revision + 1_000_000

    async def look(store: Store, origin: Origin) -> tuple[int, int]:
        await store.wait_compacted(Revision(saved.revision + 1_000_000))
        newest = store.range(rpc_pb2.RangeRequest(key=b"key-39"))
        assert newest.header.revision == store.compacted_revision == saved.revision + 1_000_000
        assert newest.kvs[0].mod_revision <= saved.revision
        found = await store.hash_kv()
        return found.hash, found.compacted_revision

    assert asyncio.run(start(made[0], look)) == asyncio.run(start(made[1], look))


def test_a_revision_beyond_all_bounds_is_refused(saved: Saved, config: MakeConfig) -> None:
    with pytest.raises(RestoreError, match="can't be raised"):
        restore(order(saved, config("a"), bump_revision=2**62), ignore)
    assert not config("a").data_dir.parent.exists()


def test_the_wal_may_lie_elsewhere(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    made = config("a", f"--wal-dir={tmp_path / 'log' / 'wal'}")
    restored = restore(order(saved, made), ignore)
    assert tree(made.data_dir) == WHOLE[:3]
    assert asyncio.run(start(made, lambda store, origin: origin.cluster_id)) == restored.cluster_id


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    made = config("a")
    made.data_dir.mkdir(parents=True)
    (made.data_dir / "precious").write_text("data")
    with pytest.raises(RestoreError, match=r'data-dir ".*" is not empty'):
        restore(order(saved, made), ignore)
    assert tree(made.data_dir) == ["precious"]
    restore(order(saved, config("b")), ignore)
    with pytest.raises(RestoreError, match="is not empty"):
        restore(order(saved, config("b")), ignore)
    wal = tmp_path / "wal"
    wal.mkdir()
    (wal / "x").touch()
    with pytest.raises(RestoreError, match=r'wal-dir ".*" is not empty'):
        restore(order(saved, config("c", f"--wal-dir={wal}")), ignore)
    assert (tree(wal), config("c").data_dir.exists()) == (["x"], False)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RestoreError, match="is not a directory"):
        restore(order(saved, config("c", directory=file)), ignore)


def test_an_empty_directory_will_do_and_stays_when_the_restore_fails(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    made = config("a", f"--wal-dir={wal}")
    made.data_dir.mkdir(parents=True)
    wal.mkdir()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(saved.path.read_bytes()[:-1] + b"\0")
    with pytest.raises(SnapshotFileError, match="it is damaged"):
        restore(order(damaged, made), ignore)
    assert (tree(made.data_dir), tree(wal)) == ([], [])
    restore(order(saved, made), ignore)
    assert "member" in tree(made.data_dir)


@pytest.mark.parametrize("step", ["_copy", "examine", "_found", "refound", "Wal.create", "Building.finish"])
@pytest.mark.parametrize("own_wal", [False, True])
def test_a_failure_at_any_step_leaves_nothing(
    saved: Saved, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, own_wal: bool
) -> None:
    made = config("a", *([f"--wal-dir={tmp_path / 'log' / 'wal'}"] if own_wal else []))
    owner, _, name = step.rpartition(".")
    target = getattr(restoring, owner) if owner else restoring

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(target, name, fail)
    with pytest.raises(RestoreError, match="no space left on device: somewhere"):
        restore(order(saved, made), ignore)
    assert tree(tmp_path) == []
    monkeypatch.undo()
    restore(order(saved, made), ignore)


def test_a_killed_restore_keeps_the_server_from_starting_and_the_next_one_from_nothing(
    saved: Saved, config: MakeConfig, tmp_path: Path
) -> None:
    made = config("a")
    (made.data_dir / RESTORING / "snap").mkdir(parents=True)
    (made.data_dir / RESTORING / "snap" / "db").write_bytes(b"half")
    with pytest.raises(DataDirectoryError, match="a restore was begun and not finished"):
        open_data_directory(made.data_dir, made.wal_dir)
    restore(order(saved, made), ignore)
    open_data_directory(made.data_dir, made.wal_dir).close()
    assert RESTORING not in tree(made.data_dir)


def test_a_restored_member_that_lost_store_or_wal_is_refused_not_founded_anew(saved: Saved, config: MakeConfig) -> None:
    for lost in ("snap", "wal"):
        made = config("a")
        restore(order(saved, made), ignore)
        shutil.rmtree(made.data_dir / "member" / lost)
        with pytest.raises(BootstrapError):
            asyncio.run(start(made, lambda store, origin: None))
        shutil.rmtree(made.data_dir)


def test_a_copied_store_file_is_taken_only_when_asked_for(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    copied = tmp_path / "db"
    copied.write_bytes(saved.path.read_bytes()[:-32])
    with pytest.raises(SnapshotFileError, match=r"no checksum of 32 behind them: .*--skip-hash-check"):
        restore(order(copied, config("a")), ignore)
    restored = restore(order(copied, config("a"), skip_hash_check=True), ignore)
    with_checksum = restore(order(saved, config("b"), skip_hash_check=True), ignore)
    assert restored.cluster_id == with_checksum.cluster_id, "the same content"
    assert restored.revision == saved.revision


def test_a_skipped_checksum_does_not_let_damage_pass(saved: Saved, config: MakeConfig, tmp_path: Path) -> None:
    content = saved.path.read_bytes()[:-32]
    chance, refused = random.Random(9), 0
    damaged_path = tmp_path / "db"
    made = config("a")
    for _ in range(25):
        bit = chance.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        damaged_path.write_bytes(damaged)
        try:
            restore(order(damaged_path, made, skip_hash_check=True), ignore)
        except SnapshotFileError:
            refused += 1
            assert not made.data_dir.exists()
            continue

        async def same(store: Store, origin: Origin) -> int:
            return (await store.hash_kv()).hash

        assert asyncio.run(start(made, same)) == saved.hash_kv
        shutil.rmtree(made.data_dir)
    assert refused > 5


def test_flags_that_do_not_fit_together_are_refused_before_anything_is_read(config: MakeConfig, tmp_path: Path) -> None:
    made = replace(config("a"), initial_advertise_peer_urls=config("b").initial_advertise_peer_urls)
    with pytest.raises(ConfigError, match="both must name the same URLs"):
        restore(order(tmp_path / "nothing", made), ignore)


def test_a_disk_without_room_is_refused_with_the_numbers(
    saved: Saved, config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(OsFiles, "free_bytes", lambda self, directory: 1000)
    with pytest.raises(RestoreError, match=r"the disk has room for 1000 bytes, [0-9]+ are needed"):
        restore(order(saved, config("a")), ignore)
    assert tree(tmp_path) == []


def test_members_are_those_of_the_flags_and_no_other(saved: Saved, config: MakeConfig) -> None:
    restored = restore(order(saved, config("a")), ignore)
    assert NodeId(1) not in restored.members
    assert len(restored.members) == 3
