"""The leases of a store, and the keys attached to each: two tables on disk, nothing in memory.

    table      key                                            value
    lease      lease (8)                                      TTL in seconds, 8 bytes, big-endian
    lease_key  lease (8) + key, if it has up to 480 bytes     empty
    lease_key  lease (8) + its first 480 bytes + digest (20)  the key; for longer ones (a row's name has at most 511 bytes)

A lease's 8 bytes are its id plus 2^63, big-endian: rows sort as the signed ids do. The digest is the key's BLAKE2b-160. A name of 508 bytes
is always a long key's, one of up to 488 never is.

The order of a lease's keys is that of its rows: byte order, but for long keys that share their first 480 bytes. Those come by their
digests, behind the key that is just these 480 bytes. That is the same on every member, and can be read row by row however many there are.

Rules
- The rows change in the same entry as the keys that they are about, and travel with the store: through restarts, snapshots and backups.
- What a lease still has left is not kept: who leads anew gives every lease its whole TTL (lessor.py).
- A lease costs two rows' worth of disk and no memory; an attached key costs its length once more.

Source: etcd's lessor keeps the attachments in memory and finds them again, at every start, by reading all keys; here a start reads nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final, Protocol

from kvserver.errors import LeaseExistsError, LeaseNotFoundError, LeaseTtlTooLargeError
from kvserver.storage import Reader
from kvserver.types import LeaseId

MAX_TTL_S: Final = 9_000_000_000

_PLAIN_BYTES: Final = 480
_DIGEST_BYTES: Final = 20
_LEASE_BYTES: Final = 8
_OFFSET: Final = 1 << 63
_TTL: Final = struct.Struct(">Q")
_NO_LEASE: Final = LeaseId(0)


class Writer(Protocol):
    """The engine's writing half, as the table needs it."""

    @property
    def reader(self) -> Reader: ...
    def put(self, table: int, key: bytes, value: bytes) -> None: ...
    def delete(self, table: int, key: bytes) -> None: ...


class LeaseRows:
    """Reading the rows of any state of the store. `leases` and `keys` are the numbers of the two tables."""

    __slots__ = ("_keys", "_leases")

    def __init__(self, *, leases: int, keys: int) -> None:
        self._leases = leases
        self._keys = keys

    def ttl_s(self, reader: Reader, lease: LeaseId) -> int | None:
        """The TTL that it was granted with; None: there is no such lease."""
        value = reader.get(self._leases, _pack(lease))
        return None if value is None else _unpack_ttl(value)

    def leases(self, reader: Reader, after: LeaseId | None = None) -> Iterator[tuple[LeaseId, int]]:
        """Leases with their TTLs, ascending by id; only those behind `after`."""
        lo = b"" if after is None else _pack(after) + b"\x00"
        for name, value in reader.iterate(self._leases, lo):
            yield _unpack(name), _unpack_ttl(value)

    def keys(self, reader: Reader, lease: LeaseId, after: bytes = b"") -> Iterator[bytes]:
        """The keys attached to a lease, in the order of their rows; only those behind the key `after`, attached or not."""
        start = _row_name(lease, after) + b"\x00" if after else _pack(lease)
        for row, value in reader.iterate(self._keys, start, _end(lease)):
            yield value if len(row) > _LEASE_BYTES + _PLAIN_BYTES else row[_LEASE_BYTES:]

    def attachments(self, reader: Reader, start: bytes = b"") -> Iterator[tuple[bytes, LeaseId, bytes]]:
        """All rows of attached keys from the row `start` on: the row's name, the lease and the key. For checks."""
        for row, value in reader.iterate(self._keys, start):
            key = value if len(row) > _LEASE_BYTES + _PLAIN_BYTES else row[_LEASE_BYTES:]
            yield row, _unpack(row[:_LEASE_BYTES]), key

    def is_attached(self, reader: Reader, lease: LeaseId, key: bytes) -> bool:
        """Whether there is a row for it."""
        return reader.get(self._keys, _row_name(lease, key)) is not None


class LeaseTable:
    """The leases as entries change them. Meets `mvcc.Leases`."""

    __slots__ = ("_keys", "_leases", "_rows", "_writer")

    def __init__(self, writer: Writer, *, leases: int, keys: int) -> None:
        self._writer = writer
        self._leases = leases
        self._keys = keys
        self._rows = LeaseRows(leases=leases, keys=keys)

    def has(self, lease: LeaseId) -> bool:
        """Whether there is such a lease."""
        return self.ttl_s(lease) is not None

    def ttl_s(self, lease: LeaseId) -> int | None:
        """The TTL that it was granted with; None: there is no such lease."""
        return self._rows.ttl_s(self._writer.reader, lease)

    def leases(self, after: LeaseId | None = None) -> Iterator[tuple[LeaseId, int]]:
        """Leases with their TTLs, ascending by id, behind `after`; to be used up before the next entry."""
        return self._rows.leases(self._writer.reader, after)

    def keys(self, lease: LeaseId, after: bytes = b"") -> Iterator[bytes]:
        """See LeaseRows.keys; to be used up before anything is written."""
        return self._rows.keys(self._writer.reader, lease, after)

    def grant(self, lease: LeaseId, ttl_s: int) -> None:
        """Add a lease.

        Raises:
            LeaseNotFoundError: 0 is none. LeaseTtlTooLargeError. LeaseExistsError.
        """
        if lease == _NO_LEASE:
            raise LeaseNotFoundError
        if ttl_s > MAX_TTL_S:
            raise LeaseTtlTooLargeError
        if self.has(lease):
            raise LeaseExistsError
        self._writer.put(self._leases, _pack(lease), _TTL.pack(max(ttl_s, 0)))

    def remove(self, lease: LeaseId) -> None:
        """Remove a lease that no key is attached to (any more)."""
        self._writer.delete(self._leases, _pack(lease))

    def attach(self, lease: LeaseId, key: bytes) -> None:
        """From now on `key` ends with this lease."""
        self._writer.put(self._keys, _row_name(lease, key), key if len(key) > _PLAIN_BYTES else b"")

    def detach(self, lease: LeaseId, key: bytes) -> None:
        """It does no longer."""
        self._writer.delete(self._keys, _row_name(lease, key))


def _pack(lease: LeaseId) -> bytes:
    return (lease + _OFFSET).to_bytes(_LEASE_BYTES, "big")


def _unpack(name: bytes) -> LeaseId:
    return LeaseId(int.from_bytes(name, "big") - _OFFSET)


def _unpack_ttl(value: bytes) -> int:
    (ttl_s,) = _TTL.unpack(value)
    return int(ttl_s)


def _end(lease: LeaseId) -> bytes | None:
    """Behind all rows of a lease; None for the last id there can be."""
    following = lease + _OFFSET + 1
    return None if following >> 64 else following.to_bytes(_LEASE_BYTES, "big")


def _row_name(lease: LeaseId, key: bytes) -> bytes:
    if len(key) <= _PLAIN_BYTES:
        return _pack(lease) + key
    return _pack(lease) + key[:_PLAIN_BYTES] + hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()
