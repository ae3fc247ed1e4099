"""File descriptors in reserve: an opening that finds no other uses them, and they come back."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raft.types import Entry, HardState, Index, Term
from wal import DescriptorReserve, Metadata, OsFiles, Wal, WalFailedError, WalNoSpaceError


@contextmanager
def no_descriptors() -> Iterator[None]:
    """All that this process may open is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def entries(first: int, count: int) -> list[Entry]:
    return [Entry(term=Term(1), index=Index(first + number), data=b"d" * 1000) for number in range(count)]


def made(directory: Path, files: OsFiles) -> Wal:
    return Wal.create(directory, Metadata(cluster_id=1, member_id=2), files=files, segment_size_bytes=8192)


def test_the_log_is_cut_again_and_again_without_a_free_descriptor(tmp_path: Path) -> None:
    reserve = DescriptorReserve()
    log = made(tmp_path / "wal", OsFiles(reserve))
    with no_descriptors():
        for round_ in range(10):
            log.save(entries(1 + 10 * round_, 10), HardState(term=Term(1)), sync=True)
        assert len(log.segments()) > 10
        assert log.has_spare
        assert reserve.held_count > 0
    log.close()
    reserve.release()


def test_without_a_reserve_the_write_waits_and_the_text_names_the_descriptors(tmp_path: Path) -> None:
    log = made(tmp_path / "wal", OsFiles())
    saved = entries(1, 30)
    with no_descriptors(), pytest.raises(WalNoSpaceError, match=r"no file descriptor .* \(ulimit -n\) .* goes on by itself") as caught:
        log.save(saved, HardState(term=Term(1)), sync=True)
    assert "disk" not in str(caught.value)
    log.save(saved, HardState(term=Term(1)), sync=True)
    assert log.last_index == 30
    log.close()


def test_a_write_that_failed_for_want_of_descriptors_does_not_send_the_operator_to_the_disk() -> None:
    text = str(WalFailedError(Path("wal"), OSError(errno.EMFILE, "Too many open files")))
    assert "Let the process open more files (ulimit -n)" in text
    assert "Check the disk" not in text
    assert "Check the disk" in str(WalFailedError(Path("wal"), OSError(errno.EIO, "Input/output error")))


def test_another_failure_is_passed_on_and_costs_no_reserve(tmp_path: Path) -> None:
    reserve = DescriptorReserve(2)
    with pytest.raises(FileNotFoundError):
        OsFiles(reserve).open(tmp_path / "nothing", writable=False)
    assert reserve.held_count == 2
    reserve.release()
