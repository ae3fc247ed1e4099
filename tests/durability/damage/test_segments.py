"""Damage to the set of segment files and to whose they are."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from kvserver.testing.ports import PortAllocator
from tests.durability.damage.member import assert_boots, assert_refused, hard_state, open_log, put_entry, truncate
from wal import Metadata, OsFiles, read_metadata
from wal.segment import ChunkedSource, read_header, start_segment

both = pytest.mark.parametrize("store", ["kept", "lost"])
retention = pytest.mark.parametrize("is_retaining", [False, True], ids=["no retention", "retention"])


@both
async def test_zero_length_only_segment(take, states, store):
    directory = take(states.kept(store), store)
    for path in directory.segments[:-1]:
        path.unlink()
    truncate(directory.newest, 0)
    await assert_refused(directory, f"{directory.newest}: the segment file is empty", "replace-a-dead-member")


@both
@pytest.mark.parametrize("which", [0, 2, -1])
async def test_zero_length_segment_among_others(take, states, store, which):
    directory = take(states.kept(store), store)
    path = directory.segments[which]
    truncate(path, 0)
    await assert_refused(directory, f"{path}: the segment file is empty")


@both
@retention
@pytest.mark.parametrize("which", [1, 2, -2, -1])
async def test_missing_segment(take, states, store, which, is_retaining):
    directory = take(states.kept(store), store)
    directory = directory.retaining() if is_retaining else directory
    directory.segments[which].unlink()
    await assert_refused(directory, directory.wal, "missing", "replace-a-dead-member")


async def test_missing_first_segment_with_the_store_kept(take, states):
    """The store holds what was in it: it looks like a release, and nothing is lost."""
    directory = take(states.covered)
    directory.segments[0].unlink()
    await assert_boots(directory)


async def test_missing_first_segments_that_the_store_needs(take, states):
    directory = take(states.behind)
    for path in directory.segments[:3]:
        path.unlink()
    await assert_refused(directory, f"the WAL {directory.wal} begins at index", f"is at index {directory.applied_index}", "replace-a-dead")


async def test_missing_first_segment_with_the_store_lost(take, states):
    directory = take(states.behind, "lost")
    directory.segments[0].unlink()
    await assert_refused(directory, directory.store, "is missing", "begins at index", "replace-a-dead-member")


async def test_missing_newest_segments_that_the_store_knows_of(take, states):
    """Without the seal before them they look like a shorter log, whole in itself; the applied index tells."""
    directory = take(states.covered)
    directory.newest.unlink()
    truncate(directory.newest, directory.records(directory.newest)[0][-1].offset_bytes)
    await assert_refused(directory, directory.newest, f"index {directory.last_index} is known to be committed")


@both
@retention
async def test_swapped_segments(take, states, store, is_retaining):
    directory = take(states.kept(store), store)
    directory = directory.retaining() if is_retaining else directory
    first, second = directory.segments[1:3]
    first.rename(first.with_suffix(".x"))
    second.rename(first)
    first.with_suffix(".x").rename(second)
    await assert_refused(directory, directory.wal, "under another one's name")


@both
async def test_segment_of_another_copy_of_the_log(take, states, store, tmp_path):
    """A file of the same name, member and index, of a copy that went on otherwise."""
    directory = take(states.kept(store), store)
    other = directory.copy_to(tmp_path / "other")
    for life, first_number in ((other, 600), (directory, 700)):
        wal = open_log(life)
        entries = [put_entry(life.last_index + 1 + i, life.term + 1, first_number + i) for i in range(30)]
        wal.save(entries, hard_state(life.term + 1, life.last_index), sync=True)
        wal.close()
    assert [path.name for path in directory.segments] == [path.name for path in other.segments]
    shutil.copy(other.newest, directory.newest)
    await assert_refused(directory, directory.newest, "does not continue", "Put the missing or original file back")


@both
@pytest.mark.parametrize("place", [0, 2, -1])
@pytest.mark.parametrize("which", ["cluster", "member"])
async def test_metadata_mismatch(take, states, store, which, place):
    """One segment of another cluster's, or another member's, log among this one's, which fits in everything else."""
    directory = take(states.kept(store), store)
    own = read_metadata(directory.wal)
    stranger = Metadata(own.cluster_id ^ 1, own.member_id) if which == "cluster" else Metadata(own.cluster_id, own.member_id ^ 1)
    path = directory.segments[place]
    file = OsFiles().open(path, writable=False)
    header, record, _, previous_crc = read_header(ChunkedSource(file))
    file.close()
    head, _ = start_segment(7, replace(header, metadata=stranger), record.batch, previous_crc)
    path.write_bytes(head + bytes(64 * 1024 - len(head)))
    text = await assert_refused(directory, directory.root)
    if place != 0:  # the oldest one says whose log it is; with a stranger there, it is the next one that does not belong
        assert f"{path}: this log belongs to {which}" in text
        found, expected = (stranger.cluster_id, own.cluster_id) if which == "cluster" else (stranger.member_id, own.member_id)
        assert f"{which} {found:x}" in text
        assert f"{which} {expected:x}" in text


@both
async def test_log_of_another_cluster_than_the_flags_mean(take, states, store):
    directory = take(states.kept(store), store)
    url = f"http://127.0.0.1:{PortAllocator().next_port()}"
    flags = [flag for flag in directory.flags if "initial" not in flag and "listen-peer" not in flag and "--name" not in flag]
    flags += ["--name=b", f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}"]
    flags += [f"--initial-cluster=b={url},c=http://127.0.0.1:1"]
    await assert_refused(replace(directory, flags=flags), "another cluster")
