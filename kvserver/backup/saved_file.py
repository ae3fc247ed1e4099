"""Reading a saved snapshot: its checksum, then its content, row by row.

Purpose: says whether a file is what a server sent, and what it holds.

Rules
- Nothing of the content is interpreted before the checksum has proved it; and then every page and row is checked as if it had not
  (storage.pages), because the server may have had a damaged store to begin with. LMDB opens the file only after that.
- Reads blocks of `BLOCK_BYTES`; memory doesn't grow with the file.

`SnapshotSummary.hash` is CRC-32C over each table's name and its rows in order, as etcd's is over its buckets: two files with
one hash hold the same. It is not HashKV, which leaves out what differs between members.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c

from kvserver.apply import inspect
from kvserver.backup.errors import SnapshotFileError
from kvserver.client.saved import CHECKSUM_BYTES, DamagedSnapshotError, NoChecksumError, SnapshotChecksum, check_size
from kvserver.mvcc import TABLES, describe_row
from kvserver.node.foreign import find_etcd_file
from kvserver.storage import StoreUnreadableError
from kvserver.storage.page_format import Faults, Row, Tree
from kvserver.storage.pages import PageFile, check_all
from kvserver.types import Revision

BLOCK_BYTES: Final = 1 << 20
USE_ANOTHER: Final = "use another snapshot, or save a new one from a member that is sound"
REVISIONS_TABLE: Final = "rev"
_REPORT_EVERY_BYTES: Final = 1 << 20

Watch = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


def ignore(done_bytes: int, total_bytes: int) -> None:
    """A `Watch` that nobody looks at."""
    del done_bytes, total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSummary:
    """What a snapshot holds. `total_keys` counts revisions of keys, tombstones included; `size_bytes` is the content's."""

    hash: int
    revision: Revision
    total_keys: int
    size_bytes: int


def summarize(path: Path, watch: Watch = ignore) -> SnapshotSummary:
    """Verify the saved snapshot `path`, checksum and all, and say what it holds.

    Raises:
        SnapshotFileError: it is no whole, undamaged snapshot of a kvserver, or can't be read.
    """
    checksum = SnapshotChecksum()
    with open_saved(path) as file:
        total_bytes = os.fstat(file).st_size
        check_saved_size(path, total_bytes)
        for block in blocks(file):
            checksum.update(block)
            watch(checksum.size_bytes, 2 * total_bytes)
    check_saved(path, checksum)
    return examine(path, path, checksum.content_bytes, lambda done, _: watch(total_bytes + done, 2 * total_bytes))


@contextmanager
def open_saved(path: Path) -> Iterator[int]:
    """A descriptor of the file.

    Raises:
        SnapshotFileError: it isn't there, isn't a plain file, can't be read, or is etcd's; also for an OSError within the block that names
            no other file.
    """
    try:
        if path.is_dir():
            raise SnapshotFileError(path, "is a directory; name the file that `snapshot save` wrote")
        if path.exists() and not path.is_file():
            raise SnapshotFileError(path, "is not a plain file")
        if find_etcd_file(path, path) is not None:
            raise SnapshotFileError(
                path, "is a snapshot of etcd (a bbolt file), which kvserver can't read: copy the keys over from a running etcd"
            )
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) != path:
            raise
        raise SnapshotFileError(path, (error.strerror or str(error)).lower()) from error


def blocks(file: int) -> Iterator[bytes]:
    """The file's bytes in order."""
    while block := os.read(file, BLOCK_BYTES):
        yield block


def check_saved_size(path: Path, size_bytes: int) -> None:
    """Whether a saved snapshot can be so long. Raises SnapshotFileError, caused by a NoChecksumError if only the checksum is missing."""
    with _judged(path, size_bytes):
        check_size(size_bytes)


def check_saved(path: Path, checksum: SnapshotChecksum) -> bytes:
    """The verdict on all of the file's bytes: the content's checksum. Raises SnapshotFileError."""
    with _judged(path, checksum.size_bytes):
        return checksum.check()


@contextmanager
def _judged(path: Path, size_bytes: int) -> Iterator[None]:
    """Name the file in what the checksum says; and if the content itself says that it was longer or shorter, say that."""
    try:
        yield
    except DamagedSnapshotError as error:
        text = _told_by_length(path, size_bytes, may_be_a_store=isinstance(error, NoChecksumError)) or str(error)
        raise SnapshotFileError(path, f"{text}; {USE_ANOTHER}") from error


def _told_by_length(path: Path, size_bytes: int, *, may_be_a_store: bool) -> str | None:
    """What the content's first page says about the file's length. None if the length is right, if that page can't be read, or if the file
    is no longer than a store's file without a checksum.
    """
    try:
        with PageFile.open(path) as pages:
            whole_bytes = (pages.last_page + 1) * pages.page_bytes + CHECKSUM_BYTES
    except StoreUnreadableError:
        return None
    if size_bytes == whole_bytes:
        return None
    if size_bytes > whole_bytes:
        return f"it has {size_bytes} bytes, {size_bytes - whole_bytes} too many: something was added behind its end at offset {whole_bytes}"
    return None if may_be_a_store else f"it has {size_bytes} bytes of {whole_bytes}: it was cut short"


def examine(store: Path, name: Path, size_bytes: int, watch: Watch = ignore) -> SnapshotSummary:
    """Check every page and row of a store's file that nobody writes (what lies behind its pages doesn't count).

    Args:
        name: the file that errors speak of.
        size_bytes: the content's length.

    Raises:
        SnapshotFileError: it is no intact store.
    """
    faults = Faults()
    counter = _RowCounter(size_bytes, watch)
    try:
        with PageFile.open(store, describe_row) as pages:
            check_all(pages, TABLES, faults.report, counter.count)
        if faults.count:
            more = f" (and {faults.count - 1} more)" if faults.count > 1 else ""
            raise SnapshotFileError(name, f"its content is damaged: at offset {faults.offset_bytes}: {faults.reason}{more}; {USE_ANOTHER}")
        found = inspect(store)
    except StoreUnreadableError as error:
        raise SnapshotFileError(name, f"its content is no store of this version of kvserver: {error.reason}; {USE_ANOTHER}") from error
    watch(size_bytes, size_bytes)
    return SnapshotSummary(hash=counter.hash, revision=found.revision, total_keys=counter.revisions, size_bytes=size_bytes)


class _RowCounter:
    """Hashes and counts rows as they pass."""

    def __init__(self, size_bytes: int, watch: Watch) -> None:
        self.hash: int = google_crc32c.value(b"")
        self.revisions = 0
        self._size_bytes = size_bytes
        self._watch = watch
        self._table = ""
        self._done_bytes = 0
        self._next_bytes = 0

    def count(self, tree: Tree, row: Row) -> None:
        if tree.table is None:
            return  # LMDB's own: which pages are free is not content
        if tree.name != self._table:
            self._table = tree.name
            self.hash = google_crc32c.extend(self.hash, tree.name.encode())
        self.hash = google_crc32c.extend(google_crc32c.extend(self.hash, row.key), row.value)
        self.revisions += tree.name == REVISIONS_TABLE
        self._done_bytes += len(row.key) + len(row.value)
        if self._done_bytes >= self._next_bytes:
            self._next_bytes = self._done_bytes + _REPORT_EVERY_BYTES
            self._watch(min(self._done_bytes, self._size_bytes), self._size_bytes)
