"""Receiving into a file: only whole, verified, durable content gets its final name; a cut transfer goes on where it was."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace

import pytest

from kvserver.snapshot import (
    IncomingFile,
    SnapshotCorruptError,
    SnapshotOffer,
    SnapshotOfferError,
    SnapshotStorageError,
    cleanup,
    list_received,
    remove_received,
)
from kvserver.snapshot.incoming import SYNC_INTERVAL_BYTES
from kvserver.testing.faults import Fault, Faults, FaultyFiles
from raft.types import ConfState, Index, NodeId, SnapshotMetadata, Term
from wal import OsFiles

CHUNK = 4096
CONTENT = os.urandom(10 * CHUNK + 123)
SENDER = NodeId(0xAB)


def offer_of(content: bytes, index: int = 5) -> SnapshotOffer:
    sha256 = hashlib.sha256(content).digest()
    metadata = SnapshotMetadata(index=Index(index), term=Term(2), conf_state=ConfState(voters=(NodeId(1),)))
    return SnapshotOffer(id=sha256[:16], size_bytes=len(content), sha256=sha256, chunk_size_bytes=CHUNK, metadata=metadata)


def feed(incoming: IncomingFile, content: bytes, until: int | None = None) -> None:
    while incoming.offset < (len(content) if until is None else until):
        incoming.write(incoming.offset, content[incoming.offset : incoming.offset + CHUNK])


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_whole_content_gets_its_final_name(tmp_path):
    incoming = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    assert incoming.offset == 0
    feed(incoming, CONTENT)
    path = incoming.finish()
    incoming.close(keep=False)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["received-0000000000000005-0000000000000002.snap"]
    (received,) = list_received(tmp_path)
    assert (received.path, received.index, received.term) == (path, 5, 2)


@pytest.mark.parametrize("kept", [0, 1, 5, 10])
def test_a_cut_transfer_goes_on_where_it_was(tmp_path, kept):
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT, until=kept * CHUNK)
    first.close(keep=True)
    second = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    assert second.offset == kept * CHUNK
    feed(second, CONTENT)
    assert second.finish().read_bytes() == CONTENT


def test_a_complete_part_needs_nothing_more(tmp_path):
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT)
    first.close(keep=True)
    second = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    assert second.is_complete
    assert second.finish().read_bytes() == CONTENT


def test_half_a_chunk_at_the_end_of_a_part_is_not_trusted(tmp_path):
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT, until=2 * CHUNK)
    first.close(keep=True)
    (part,) = tmp_path.iterdir()
    with part.open("ab") as file:
        file.write(b"torn")
    second = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    assert second.offset == 2 * CHUNK
    feed(second, CONTENT)
    assert second.finish().read_bytes() == CONTENT


def test_a_damaged_part_is_found_out_at_the_end_and_discarded(tmp_path):
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT, until=2 * CHUNK)
    first.close(keep=True)
    (part,) = tmp_path.iterdir()
    damaged = bytearray(part.read_bytes())
    damaged[100] ^= 1
    part.write_bytes(damaged)
    second = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(second, CONTENT)
    with pytest.raises(SnapshotCorruptError, match="SHA-256"):
        second.finish()
    assert names(tmp_path) == []


def test_other_content_from_the_same_sender_replaces_the_part(tmp_path):
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT, until=CHUNK)
    first.close(keep=True)
    elsewhere = IncomingFile.open(tmp_path, NodeId(7), offer_of(CONTENT))
    elsewhere.close(keep=True)
    other = IncomingFile.open(tmp_path, SENDER, offer_of(b"other" * 5000))
    assert other.offset == 0
    other.close(keep=True)
    assert len(names(tmp_path)) == 2
    assert any(name.startswith("incoming-0000000000000007-") for name in names(tmp_path))


def test_chunks_out_of_plan_are_refused_and_change_nothing(tmp_path):
    incoming = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(incoming, CONTENT, until=CHUNK)
    for offset, chunk in ((0, CONTENT[:CHUNK]), (2 * CHUNK, CONTENT[2 * CHUNK : 3 * CHUNK]), (CHUNK, b"short")):
        with pytest.raises(SnapshotOfferError):
            incoming.write(offset, chunk)
    feed(incoming, CONTENT)
    assert incoming.finish().read_bytes() == CONTENT


def test_no_room_on_the_disk_is_said_before_anything_is_sent(tmp_path):
    offer = replace(offer_of(CONTENT), size_bytes=2**55)
    with pytest.raises(SnapshotStorageError, match="the disk has room for"):
        IncomingFile.open(tmp_path, SENDER, offer)
    assert names(tmp_path) == []


@pytest.mark.parametrize("operation", ["pwritev", "fsync", "fdatasync", "rename", "fsync_dir"])
def test_disk_errors_are_reported_in_words_and_leave_nothing(tmp_path, monkeypatch, operation):
    monkeypatch.setattr("kvserver.snapshot.incoming.SYNC_INTERVAL_BYTES", 2 * CHUNK)
    assert SYNC_INTERVAL_BYTES > 2 * CHUNK
    files = FaultyFiles(OsFiles(), Faults([Fault(operations=frozenset({operation}), errno=errno.ENOSPC)]))
    incoming = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT), files=files)
    with pytest.raises(SnapshotStorageError, match="No space left on device"):
        _to_the_end(incoming)
    incoming.close(keep=False)
    assert names(tmp_path) == []


def _to_the_end(incoming: IncomingFile) -> None:
    feed(incoming, CONTENT)
    incoming.finish()


def test_a_whole_file_of_the_same_position_is_never_replaced(tmp_path):
    """It may be about to be installed: a second delivery neither replaces nor withdraws it."""
    first = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT))
    feed(first, CONTENT)
    path = first.finish()
    number = path.stat().st_ino
    second = IncomingFile.open(tmp_path, SENDER, offer_of(b"other" * 5000))
    feed(second, b"other" * 5000)
    assert second.finish() == path
    second.withdraw()
    assert names(tmp_path) == [path.name]
    assert path.stat().st_ino == number
    first.withdraw()
    assert names(tmp_path) == []


def test_what_can_not_be_removed_now_is_left_to_the_next_start(tmp_path):
    files = FaultyFiles(OsFiles(), Faults([Fault(operations=frozenset({"remove"}))]))
    incoming = IncomingFile.open(tmp_path, SENDER, offer_of(CONTENT), files=files)
    incoming.close(keep=False)
    assert len(names(tmp_path)) == 1
    assert len(cleanup(tmp_path)) == 1
    assert names(tmp_path) == []


def test_missing_directory_is_a_storage_error(tmp_path):
    with pytest.raises(SnapshotStorageError, match="No such file"):
        IncomingFile.open(tmp_path / "absent", SENDER, offer_of(CONTENT))


def test_cleanup_removes_unfinished_files_only(tmp_path):
    keep = ["received-0000000000000005-0000000000000002.snap", "store.mdb", "incoming-notes.txt", "outgoing-x.tmp"]
    leave = ["outgoing-3.tmp", f"outgoing-4-{'ab' * 16}.snap", f"incoming-{'0' * 16}-{'cd' * 16}.part"]
    for name in keep + leave:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in cleanup(tmp_path)] == sorted(leave)
    assert names(tmp_path) == sorted(keep)
    assert cleanup(tmp_path) == []


def test_received_files_are_listed_by_position(tmp_path):
    for index in (300, 20, 5):
        (tmp_path / f"received-{index:016x}-{1:016x}.snap").write_bytes(b"")
    assert [each.index for each in list_received(tmp_path)] == [5, 20, 300]


def test_received_files_are_removed_through_a_position(tmp_path):
    for index in (300, 20, 5):
        (tmp_path / f"received-{index:016x}-{1:016x}.snap").write_bytes(b"")
    remove_received(tmp_path, Index(20))
    assert [each.index for each in list_received(tmp_path)] == [300]
    remove_received(tmp_path)
    assert names(tmp_path) == []


def test_cleanup_makes_the_names_that_stay_durable(tmp_path):
    """The process before may have died between a rename and the sync of the directory."""
    faults = Faults(history=[])
    assert cleanup(tmp_path, files=FaultyFiles(OsFiles(), faults)) == []
    assert faults.history is not None
    assert faults.history[-1] == ("fsync_dir", tmp_path.name)
