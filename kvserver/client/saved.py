"""A saved snapshot as bytes: the content of a store and the checksum behind it.

    0      n   the content: a copy of the server's store file; n is a multiple of 512
    n      32  SHA-256 of the content

Purpose: tells the two apart in a stream that doesn't say where the checksum begins, and whether they belong together.

Rules: pure but for the hash that it accumulates. The layout is etcd's; the content of an etcd server's snapshot is a bbolt file, of
kvserver's an LMDB file.

Source: etcd's client/v3/snapshot and etcdutl (hasChecksum) for the layout and for the multiple of 512.
"""

from __future__ import annotations

import hashlib
from typing import Final

from kvserver.errors import KvError

CHECKSUM_BYTES: Final = 32
SECTOR_BYTES: Final = 512


class DamagedSnapshotError(KvError):
    """The bytes are no whole, undamaged snapshot; the text says why."""


class NoChecksumError(DamagedSnapshotError):
    """The length is that of a content without a checksum."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"it has {size_bytes} bytes and no checksum of {CHECKSUM_BYTES} behind them: it was cut short, or it is a copy of a store's "
            "file (`kvctl snapshot restore --skip-hash-check` takes that)"
        )


class SnapshotChecksum:
    """Sees all bytes of a snapshot once, in order, and then judges them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._tail = b""
        self.size_bytes = 0
        """Everything seen, the checksum included."""

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes. The last 32 so far may be the checksum, so they wait."""
        self.size_bytes += len(data)
        if len(data) >= CHECKSUM_BYTES:
            self._hash.update(self._tail)
            self._hash.update(data[:-CHECKSUM_BYTES])
            self._tail = bytes(data[-CHECKSUM_BYTES:])
            return
        joined = self._tail + bytes(data)
        self._hash.update(joined[:-CHECKSUM_BYTES])
        self._tail = joined[-CHECKSUM_BYTES:]

    @property
    def content_bytes(self) -> int:
        """Length of the content."""
        return max(0, self.size_bytes - CHECKSUM_BYTES)

    def digest(self) -> bytes:
        """The SHA-256 of the content, whatever the checksum behind it says."""
        return self._hash.digest()

    def check(self) -> bytes:
        """Judge what was seen; returns the content's checksum.

        Raises:
            DamagedSnapshotError: the length is no snapshot's, or content and checksum don't belong together.
        """
        check_size(self.size_bytes)
        digest = self._hash.digest()
        if digest != self._tail:
            raise DamagedSnapshotError(
                f"its content has SHA-256 {digest.hex()}, the checksum behind it says {self._tail.hex()}: it is damaged"
            )
        return digest


def check_size(size_bytes: int) -> None:
    """Raise DamagedSnapshotError unless a content and a checksum can be so long together (NoChecksumError: a content alone can)."""
    if not size_bytes:
        raise DamagedSnapshotError("it is empty")
    if size_bytes % SECTOR_BYTES == 0:
        raise NoChecksumError(size_bytes)
    if size_bytes <= CHECKSUM_BYTES or size_bytes % SECTOR_BYTES != CHECKSUM_BYTES:
        raise DamagedSnapshotError(
            f"it has {size_bytes} bytes, which is not a content in sectors of {SECTOR_BYTES} and a checksum of {CHECKSUM_BYTES}: "
            "bytes are missing or were added, or it is no saved snapshot"
        )
