"""The system's files, where their behaviour is subtle."""

from __future__ import annotations

import errno
import os

import pytest

from wal import OsFiles
from wal.files import MAX_BUFFERS_PER_WRITE


@pytest.fixture
def file(tmp_path):
    opened = OsFiles().create(tmp_path / "file")
    yield opened
    opened.close()


def test_write_takes_any_number_of_buffers(file):
    buffers = [bytes([number % 251]) * (number % 5) for number in range(MAX_BUFFERS_PER_WRITE * 2 + 3)]
    file.pwritev(buffers, 10)
    assert file.pread(100_000, 10) == b"".join(buffers)


def test_short_writes_are_continued(file, monkeypatch):
    real = os.pwritev

    def short(descriptor, buffers, offset):
        return real(descriptor, [b"".join(bytes(buffer) for buffer in buffers)[:7]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    buffers = [b"hello", b"", b"a longer one of many bytes", b"x"]
    file.pwritev(buffers, 3)
    assert file.pread(100, 3) == b"".join(buffers)


def test_write_that_makes_no_progress_is_an_error(file, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        file.pwritev([b"x"], 0)


def test_short_reads_are_continued_and_the_end_is_short(file, monkeypatch):
    file.pwritev([b"0123456789"], 0)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 3), offset))
    assert file.pread(8, 1) == b"12345678"
    assert file.pread(8, 6) == b"6789"
    assert file.pread(8, 10) == b""


def test_preallocation_reserves_zeros_and_never_shrinks(file):
    file.pwritev([b"abc"], 0)
    file.preallocate(10_000)
    file.preallocate(5)
    assert file.size() == 10_000
    assert file.pread(20_000, 0) == b"abc" + bytes(9_997)


def test_preallocation_falls_back_to_a_longer_file(file, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    file.preallocate(512)
    assert file.size() == 512


def test_full_disk_is_not_hidden_by_the_fallback(file, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        file.preallocate(512)


def test_create_refuses_an_existing_file(file):
    with pytest.raises(FileExistsError):
        OsFiles().create(file.path)


def test_salts_differ():
    assert len({OsFiles().random_u32() for _ in range(50)}) > 40
