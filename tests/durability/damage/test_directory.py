"""The directory itself: gone, not writable, in use, somebody else's, under a name that is no text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kvserver.node.directory import DataDirectoryError, open_data_directory
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import member_flags
from tests.durability.damage.member import Directory, assert_boots, assert_refused, start

both = pytest.mark.parametrize("store", ["kept", "lost"])


def run_server(directory: Directory, *, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A server process on the directory, which is expected to refuse."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "kvserver", *directory.flags, f"--data-dir={directory.root}"],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


def assert_exits(answer: subprocess.CompletedProcess[str], *words: str | Path) -> None:
    said = answer.stderr + answer.stdout
    assert answer.returncode == 1, said
    assert "Traceback" not in said
    assert json.loads(said.strip().splitlines()[-1])["level"] == "fatal"
    for word in words:
        assert str(word) in said, f"{word!s} is not in: {said}"


async def test_wal_removed_but_the_store_is_there(take, states):
    directory = take(states.covered)
    shutil.rmtree(directory.wal)
    await assert_refused(directory, directory.wal, directory.store, f"holds {directory.applied_index} applied", "replace-a-dead-member")
    directory.wal.mkdir()
    await assert_refused(directory, "is missing or empty")


async def test_wal_emptied_of_its_segments_but_not_of_other_files(take, states):
    directory = take(states.covered)
    for path in directory.segments:
        path.unlink()
    await assert_refused(directory, "is missing or empty")


async def test_wal_and_store_removed(take, states):
    """Nothing here can tell it from a new member. In a cluster the others can: tests/kvserver/node/test_joining.py."""
    directory = take(states.covered, "lost")
    shutil.rmtree(directory.wal)
    await assert_boots(directory, {})


@both
@pytest.mark.process
def test_read_only_directory(take, states, store):
    directory = take(states.kept(store), store)
    prefix: list[str] = []
    if os.geteuid() == 0:  # root may write anywhere, unless it gives up the right to
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root needs setpriv (util-linux) to be refused anything")
        prefix = [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
    everything = [*directory.root.rglob("*"), directory.root]
    for path in everything:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert_exits(run_server(directory, prefix=prefix), directory.root, "Permission denied")
    finally:
        for path in reversed(everything):
            path.chmod(0o700)


@both
async def test_read_only_wal(take, states, store, monkeypatch):
    """Only the log's directory: what can't be renamed or made there is named."""
    import errno

    from wal import OsFiles

    directory = take(states.kept(store), store)

    def refuse(self: object, source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    monkeypatch.setattr(OsFiles, "rename", refuse)
    await assert_refused(directory, directory.wal, "Read-only file system", "permissions")


@both
async def test_two_processes_on_one_directory(take, states, store):
    directory = take(states.kept(store))
    node = await start(directory)
    try:
        if store == "lost":
            directory.lose_store()
        await assert_refused(directory, directory.root, "in use by another kvserver process")
    finally:
        await node.stop()


async def test_two_data_directories_on_one_wal(take, states, tmp_path):
    """With --wal-dir the log has a lock of its own."""
    wal_dir = tmp_path / "logs" / "wal"
    directory = take(states.covered)
    wal_dir.parent.mkdir()
    directory.wal.rename(wal_dir)
    with_wal = replace(directory, flags=[*directory.flags, f"--wal-dir={wal_dir}"])
    node = await start(with_wal)
    try:
        other = replace(with_wal, root=tmp_path / "other")
        with pytest.raises(DataDirectoryError, match=r"WAL directory .* is in use by another kvserver process"):
            open_data_directory(other.root, wal_dir)
    finally:
        await node.stop()
    open_data_directory(tmp_path / "other", wal_dir).close()


@both
async def test_leftover_temporary_files(take, states, store):
    directory = take(states.kept(store), store)
    leftovers = [
        directory.wal / "0000000000000009-0000000000000014.wal.tmp",
        directory.wal / f"{directory.newest.name}.512.torn.tmp",
        directory.snap / "outgoing-3.tmp",
        directory.snap / f"outgoing-3-{'ab' * 16}.snap",
        directory.snap / f"incoming-{1:016x}-{'ab' * 16}.part",
    ]
    for path in leftovers:
        path.write_bytes(b"half of something")
    await assert_boots(directory)
    assert [path for path in leftovers if path.exists()] == []


@both
async def test_crash_while_the_wal_directory_was_made(take, states, store):
    """The very first start died before the rename: nothing was acknowledged, and the next one begins anew."""
    directory = take(states.covered)
    temporary = directory.wal.with_name("wal.tmp")
    directory.wal.rename(temporary)
    directory.store.unlink()
    if store == "kept":  # LMDB's file is made before the WAL, and holds nothing
        fresh = replace(directory, root=directory.root.with_name("fresh"))
        node = await start(fresh)
        await node.stop()
        shutil.rmtree(fresh.wal)
        empty_store(fresh)
        shutil.copy(fresh.store, directory.store)
    await assert_boots(directory, {})
    assert not temporary.exists()


def empty_store(directory: Directory) -> None:
    import lmdb

    directory.store.unlink()
    lmdb.open(str(directory.store), subdir=False, max_dbs=8).close()


@pytest.fixture
def etcd_directory(tmp_path: Path) -> Directory:
    """A directory that etcd made and was killed in."""
    etcd = shutil.which("etcd")
    if etcd is None:
        pytest.skip("etcd is not installed")
    ports = PortAllocator()
    peer, client = ports.next_port(), ports.next_port()
    root = tmp_path / "etcd"
    flags = [flag for flag in member_flags("a", root, client, peer, 1, f"a=http://127.0.0.1:{peer}") if "-http-" not in flag]
    process = subprocess.Popen([etcd, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if b"ready to serve client requests" in line:
                break
    finally:
        process.kill()
        process.communicate()
    return Directory(root=root, flags=flags, acked={}, last_index=0, applied_index=0, term=0)


@pytest.mark.process
async def test_etcds_directory(etcd_directory):
    """A helpful word, and not what LMDB thinks of it; nothing is touched."""
    root = etcd_directory.root
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    await assert_refused(etcd_directory, root, "is etcd's", etcd_directory.store, "Choose another --data-dir")
    etcd_directory.store.unlink()
    await assert_refused(etcd_directory, root, "is etcd's", etcd_directory.segments[0])
    del before[etcd_directory.store]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


async def test_log_of_another_member_of_this_cluster_with_the_store_lost(tmp_path):
    """The flags are of one cluster, but not of this member: it must not vote under the other's id."""
    ports = PortAllocator()
    peers = {name: ports.next_port() for name in ("a", "b")}
    initial = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in peers.items())

    def member(name: str) -> Directory:
        flags = [
            flag
            for flag in member_flags(name, tmp_path, ports.next_port(), peers[name], ports.next_port(), initial)
            if "data-dir" not in flag
        ]
        return Directory(root=tmp_path / "a", flags=flags, acked={}, last_index=1, applied_index=0, term=1)

    node = await start(member("a"))
    await node.stop()
    directory = member("b")
    directory.store.unlink()
    await assert_refused(directory, directory.wal, "another member's", "b's")


@pytest.mark.process
@pytest.mark.parametrize("name", ["größe-数据", os.fsdecode(b"not-\xff\xfe-text")])
def test_path_that_is_no_plain_text(take, states, name):
    """It works; and where it is refused, the refusal can be said."""
    directory = take(states.covered)
    odd = directory.root.with_name(name)
    directory.root.rename(odd)
    directory.root = odd
    for path in directory.segments:
        path.unlink()
    assert_exits(run_server(directory), "is missing or empty")


@pytest.mark.process
def test_path_with_a_line_break_is_refused_as_a_value_of_its_flag(take, states):
    directory = take(states.covered)
    answer = run_server(replace(directory, root=directory.root.with_name("two\nlines")))
    assert answer.returncode == 2
    assert "--data-dir" in answer.stderr
    assert "control characters" in answer.stderr


@both
@pytest.mark.parametrize("name", ["größe-数据", os.fsdecode(b"not-\xff\xfe-text")])
async def test_member_runs_from_a_path_that_is_no_plain_text(take, states, name, store):
    directory = take(states.kept(store), store)
    odd = directory.root.with_name(name)
    directory.root.rename(odd)
    directory.root = odd
    await assert_boots(directory)
