"""The model of a disk: what is seen, what a sync makes durable, and what a power loss may leave."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from kvserver.testing.faults import CrashStates, Disk, Fault, Faults, FaultyFiles, MemoryDisk, RecordingFiles, disk_of, write_tree
from kvserver.testing.faults.operations import Commit, CreateFile, FailSync, SyncDirectory, SyncFile

ROOT = Path("/")
FILE = Path("/file")


def trees(disk: Disk) -> list[dict]:
    """Every state that a power loss may leave."""
    states = CrashStates(disk)
    return [states.build(selection) for selection in states.selections(100_000, Random(0))]


def contents(disk: Disk, name: str = "file") -> set[bytes | None]:
    return {tree.get(name, b"(absent)") for tree in trees(disk)}


@pytest.fixture
def memory() -> MemoryDisk:
    """A disk with one durable file of two sectors."""
    memory = MemoryDisk(1)
    file = memory.create(FILE)
    file.pwritev([b"a" * 1024], 0)
    file.fsync()
    memory.fsync_dir(ROOT)
    return memory


def test_what_is_synced_is_certain(memory):
    assert contents(memory.disk) == {b"a" * 1024}


def test_an_unsynced_write_is_kept_lost_or_torn_at_sectors(memory):
    memory.open(FILE, writable=True).pwritev([b"b" * 600], 200)
    old, new = b"a" * 1024, b"a" * 200 + b"b" * 600 + b"a" * 224
    assert contents(memory.disk) == {old, new, new[:512] + old[512:], old[:512] + new[512:]}


def test_overwrites_of_one_sector_leave_any_version(memory):
    file = memory.open(FILE, writable=True)
    for letter in (b"b", b"c"):
        file.pwritev([letter], 0)
    assert {content[:1] for content in contents(memory.disk) if content} == {b"a", b"b", b"c"}


def test_lengths_and_truncations_may_be_lost(memory):
    file = memory.open(FILE, writable=True)
    file.truncate(10)
    assert {b"a" * 1024, b"a" * 10} <= contents(memory.disk)
    file.preallocate(20)
    assert {b"a" * 1024, b"a" * 10, b"a" * 10 + bytes(10)} <= contents(memory.disk)
    assert {len(content) for content in contents(memory.disk) if content} == {1024, 10, 20}
    file.fsync()
    assert contents(memory.disk) == {b"a" * 10 + bytes(10)}


def test_a_name_needs_a_sync_of_its_directory(memory):
    memory.create(Path("/other")).fsync()
    assert contents(memory.disk, "other") == {b"", b"(absent)"}
    memory.fsync_dir(ROOT)
    assert contents(memory.disk, "other") == {b""}


def test_a_rename_happens_as_one_or_not_at_all(memory):
    other = memory.create(Path("/other"))
    other.pwritev([b"new"], 0)
    other.fsync()
    memory.fsync_dir(ROOT)
    memory.rename(Path("/other"), FILE)
    assert trees(memory.disk) == [{"file": b"a" * 1024, "other": b"new"}, {"file": b"new"}]


def test_a_removal_may_be_lost(memory):
    memory.remove(FILE)
    assert contents(memory.disk) == {b"a" * 1024, b"(absent)"}
    with pytest.raises(FileNotFoundError):
        memory.open(FILE, writable=False)


def test_after_a_failed_sync_no_later_one_carries_the_writes(memory):
    faults = Faults([Fault(operations=frozenset({"fsync"}), count=1)])
    files = FaultyFiles(memory, faults, on_failed_sync=memory.forget_unsynced)
    file = files.open(FILE, writable=True)
    file.pwritev([b"b"], 0)
    with pytest.raises(OSError, match="injected"):
        file.fsync()
    file.pwritev([b"c"], 512)
    file.fsync()
    assert file.pread(1, 0) == b"b"
    assert {(content[:1], content[512:513]) for content in contents(memory.disk) if content} == {(b"a", b"c"), (b"b", b"c")}


def test_a_transaction_happens_as_a_whole():
    disk = Disk()
    for operation in (CreateFile(0, "db", 1), Commit(1, b"x" * 2000), SyncFile(1), SyncDirectory(0), Commit(1, b"y" * 3000)):
        disk.apply(operation)
    assert contents(disk, "db") == {b"x" * 2000, b"y" * 3000}
    disk.apply(FailSync(1))
    assert b"y" * 3000 in contents(disk, "db")


def test_too_many_states_are_sampled_with_the_extremes(memory):
    memory.open(FILE, writable=True).pwritev([bytes(range(256)) * 200], 0)
    states = CrashStates(memory.disk)
    assert states.total > 1 << 90
    selections = list(states.selections(40, Random(3)))
    assert len(selections) == len(set(selections)) <= 40
    built = [states.build(selection)["file"] for selection in selections]
    assert b"a" * 1024 in built
    assert bytes(range(256)) * 200 in built


def test_draws_repeat_with_their_seed(memory):
    memory.open(FILE, writable=True).pwritev([bytes(range(256)) * 20], 0)
    for seed in range(20):
        one, two = memory.after_power_loss(seed), memory.after_power_loss(seed)
        assert one.open(FILE, writable=False).pread(9999, 0) == two.open(FILE, writable=False).pread(9999, 0)


def test_memory_behaves_as_a_file_system(memory, tmp_path):
    with pytest.raises(FileExistsError):
        memory.create(FILE)
    with pytest.raises(OSError, match="between directories"):
        memory.rename(FILE, Path("/there/file"))
    memory.make_directory(Path("/d"))
    memory.create(Path("/d/x"))
    with pytest.raises(OSError, match="not empty"):
        memory.remove_directory(Path("/d"))
    memory.remove(Path("/d/x"))
    memory.remove_directory(Path("/d"))
    assert memory.names(ROOT) == ["file"]
    assert not memory.is_directory(FILE)
    assert memory.free_bytes(ROOT) > 1 << 40
    (tmp_path / "f").write_bytes(b"real")
    assert MemoryDisk.load(tmp_path).open(tmp_path / "f", writable=False).pread(9, 0) == b"real"


def test_a_recorded_directory_replays_to_the_same_content(tmp_path):
    """What the model says is seen is what is really there, whatever was done."""
    root = tmp_path / "disk"
    root.mkdir()
    recorder = RecordingFiles(root, seed=1)
    rng = Random(4)
    files = {}
    for step in range(300):
        name = f"f{rng.randrange(6)}"
        if name not in files:
            files[name] = recorder.create(root / name)
            continue
        file = files[name]
        action = rng.randrange(7)
        if action < 3:
            file.pwritev([rng.randbytes(rng.randrange(1500)), b"!"], rng.randrange(2000))
        elif action == 3:
            file.truncate(rng.randrange(2500))
        elif action == 4:
            file.preallocate(rng.randrange(2500))
        elif action == 5:
            (file.fsync if step % 2 else file.fdatasync)()
        else:
            target = f"f{rng.randrange(6)}"
            recorder.rename(root / name, root / target)
            files[target] = files.pop(name)
            recorder.fsync_dir(root)
    recorder.end_process()
    disk = Disk()
    for operation in recorder.journal:
        disk.apply(operation)
    names = disk.directory(0).names
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {name: bytes(disk.file(names[name]).content) for name in names}


def test_a_tree_is_written_and_read_back(tmp_path):
    tree = {"d": None, "d/e": None, "d/e/f": b"1", "g": b""}
    write_tree(tree, tmp_path / "new")
    assert trees(disk_of(tree)) == [tree]
    assert (tmp_path / "new" / "d" / "e" / "f").read_bytes() == b"1"


def test_adopted_files_are_not_durable_and_transactions_are(tmp_path):
    recorder = RecordingFiles(tmp_path)
    (tmp_path / "copy").write_bytes(b"copied")
    recorder.adopt(tmp_path / "copy")
    (tmp_path / "db").write_bytes(b"one")
    recorder.committed(tmp_path / "db")
    since = len(recorder.journal)
    recorder.note("meanwhile")
    (tmp_path / "db").write_bytes(b"two")
    recorder.committed(tmp_path / "db", since=since)
    disk = Disk()
    seen = []
    for operation in recorder.journal:
        disk.apply(operation)
        seen.append(contents(disk, "db"))
    assert seen[since] == {b"one", b"two"}, "under way from there on"
    assert seen[-1] == {b"two"}
    assert contents(recorder.disk, "copy") == {b"copied", b"", bytes(6)}, "the length may be there before the content"


@pytest.mark.parametrize("number", range(4))
def test_the_nth_operation_fails_and_no_other(number):
    memory = MemoryDisk()
    faults = Faults([Fault(after=number, count=1, errno=errno.ENOSPC)], history=[])
    files = FaultyFiles(memory, faults)
    calls = (lambda: files.create(FILE), lambda: files.names(ROOT), lambda: files.fsync_dir(ROOT), lambda: files.names(ROOT))
    for call in calls[:number]:
        call()
    with pytest.raises(OSError, match="No space left") as caught:
        calls[number]()
    assert caught.value.errno == errno.ENOSPC
    for call in calls[number + 1 :]:
        call()
    assert (faults.failed, faults.count) == (1, 4)
    assert faults.history == [("create", "file"), ("names", ""), ("fsync_dir", ""), ("names", "")]


def test_faults_see_the_present_name_of_an_open_file():
    memory = MemoryDisk()
    faults = Faults([Fault(operations=frozenset({"pwritev"}), path="*.wal", partial=0.9)])
    files = FaultyFiles(memory, faults)
    memory.make_directory(Path("/new"))
    file = files.create(Path("/new/1.wal.tmp"))
    file.pwritev([b"x"], 0)
    files.rename(Path("/new/1.wal.tmp"), Path("/new/1.wal"))
    files.rename(Path("/new"), Path("/log"))
    with pytest.raises(OSError, match=r"/log/1\.wal"):
        file.pwritev([b"y" * 2000], 0)
    assert file.pread(5000, 0) == b"y" * 1536, "cut short at a sector's end"
