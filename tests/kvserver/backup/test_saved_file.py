"""Reading a saved snapshot: what it holds, and that no damage passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvserver.backup import RestoreOrder, SnapshotFileError, examine, restore, summarize
from kvserver.config import ServerConfig
from tests.kvserver.backup.conftest import Saved, make_saved

FLIPS = 150


def test_the_summary_says_what_is_in_it(saved: Saved) -> None:
    found = summarize(saved.path)
    assert found.revision == saved.revision
    assert found.size_bytes == saved.path.stat().st_size - 32
    assert 60 < found.total_keys < 160
    assert found == summarize(saved.path)


def test_the_hash_is_that_of_the_content(saved: Saved, tmp_path: Path) -> None:
    other = make_saved(tmp_path / "other", seed=b"x")
    assert summarize(other.path).hash != summarize(saved.path).hash


def test_progress_rises_to_the_end(saved: Saved) -> None:
    steps: list[tuple[int, int]] = []
    summarize(saved.path, lambda done, total: steps.append((done, total)))
    dones = [done for done, _ in steps]
    assert dones == sorted(dones)
    assert max(dones) <= steps[-1][1]


def test_one_flipped_bit_anywhere_is_refused(saved: Saved, tmp_path: Path) -> None:
    data = saved.path.read_bytes()
    chance = random.Random(7)
    path = tmp_path / "flipped"
    for bit in [0, len(data) * 8 - 1, *(chance.randrange(len(data) * 8) for _ in range(FLIPS))]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(SnapshotFileError, match=f"{path}: "):
            summarize(path)


def test_a_flipped_bit_under_a_checksum_that_fits_is_refused_or_in_bytes_that_hold_nothing(saved: Saved, tmp_path: Path) -> None:
    """The server's store was damaged before it was copied: pages and rows are checked for themselves."""
    content = saved.path.read_bytes()[:-32]
    whole = summarize(saved.path)
    chance = random.Random(8)
    path = tmp_path / "flipped"
    refused = 0
    for _ in range(FLIPS):
        bit = chance.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert examine(path, path, len(content)) == whole, f"bit {bit} changed what is read"
        except SnapshotFileError:
            refused += 1
    assert refused > FLIPS // 4


@pytest.mark.parametrize("keep", [0, 1, 31, 32, 33, 511, 4096, 4096 + 32, 8192, -1, -32, -33, -512, -4096])
def test_a_truncated_file_is_refused(saved: Saved, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short"
    path.write_bytes(saved.path.read_bytes()[:keep])
    with pytest.raises(SnapshotFileError):
        summarize(path)


def test_what_is_no_snapshot_is_refused_by_its_name(tmp_path: Path, saved: Saved) -> None:
    bolt = tmp_path / "bolt"
    bolt.write_bytes(bytes(16) + (0xED0CDAED).to_bytes(4, "little") + bytes(1000))
    etcd = tmp_path / "random"
    etcd.write_bytes(random.Random(1).randbytes(8192 + 32))
    for path, text in (
        (tmp_path, "is a directory"),
        (tmp_path / "nothing", "no such file or directory"),
        (bolt, "is a snapshot of etcd"),
        (etcd, "it is damaged"),
        (Path("/dev/null"), "is not a plain file"),
    ):
        with pytest.raises(SnapshotFileError, match=f"{path}: .*{text}"):
            summarize(path)


@pytest.mark.parametrize("added", [1, 31, 512, 480, 4096])
def test_bytes_that_were_added_are_said_to_be_and_where(saved: Saved, tmp_path: Path, added: int) -> None:
    path, whole = tmp_path / "long", saved.path.read_bytes()
    path.write_bytes(whole + b"x" * added)
    text = f"{added} too many: something was added behind its end at offset {len(whole)};"
    with pytest.raises(SnapshotFileError, match=text) as refused:
        summarize(path)
    assert "truncated" not in str(refused.value)


def test_one_text_for_a_missing_checksum(saved: Saved, tmp_path: Path, config: Callable[..., ServerConfig]) -> None:
    path = tmp_path / "no checksum"
    path.write_bytes(saved.path.read_bytes()[:-32])
    with pytest.raises(SnapshotFileError) as from_status:
        summarize(path)
    with pytest.raises(SnapshotFileError) as from_restore:
        restore(RestoreOrder(snapshot=path, config=config()), lambda step, done, total: None)
    assert str(from_status.value) == str(from_restore.value)
    assert "no checksum of 32 behind them" in str(from_status.value)


def test_a_file_that_was_cut_says_how_long_it_was(saved: Saved, tmp_path: Path) -> None:
    path, whole = tmp_path / "short", saved.path.read_bytes()
    for keep in (len(whole) - 1, len(whole) - 512, 4096 * 3 + 32):
        path.write_bytes(whole[:keep])
        with pytest.raises(SnapshotFileError, match=f"it has {keep} bytes of {len(whole)}: it was cut short"):
            summarize(path)
