"""The tables of the store and the bytes in them.

    table    key                                   value
    meta     a name                                see apply.meta
    rev      revision (16)                         record: one change of one key, see below
    key      key, up to 480 bytes, or a marker     entry: a key that exists now
    gone     key, up to 480 bytes                  entry: a deleted key whose tombstone isn't compacted yet
    long     node (20) + tail, or a marker         entry: keys over 480 bytes, existing or gone, see mvcc.keyspace
    history  key id (16) + revision (16)           superseded: a change of that key that isn't its newest
    lease    } see lease.table: which leases there are, and the keys attached to them
    lease_key}

    revision (16)           record (rev)                             entry (key, gone, long)         superseded (history)
    0   8  main, big-endian 0   1  flags: 1 = tombstone              0   16  revision of the newest  0  1   flags: 1 = tombstone
    8   8  sub, big-endian  1   16 key id                                    change                  1  16  revision that
                            17  16 the key's previous revision,      16  16  key id                         superseded it
                                   or zeros                          32  8   create revision
                            33  n  KeyValue, as etcd marshals it     40  8   version, 0: deleted
                                                                     48  8   lease

Rules
- A *key id* is the revision of the first change in the key's history that isn't compacted: it names the history without naming the key, so
  history keys are short and of fixed length however long the key is.
- No checksum stands here: on disk every row of every table has one, over table, key and value, which storage puts on and checks
  (storage.seal). What is read here was verified, or DamagedRowError was raised.
- Same commands, same bytes: nothing here depends on a clock, on chance, or on how far a compaction has got.

Source: etcd's mvcc package for the shape of a revision and of KeyValue; the index on disk is ours (etcd keeps it in memory).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, cast

from kvserver.pb.kv_pb2 import KeyValue

META: Final = 0
REV: Final = 1
KEY: Final = 2
GONE: Final = 3
LONG: Final = 4
HISTORY: Final = 5
LEASE: Final = 6
LEASE_KEY: Final = 7
TABLES: Final = (b"meta", b"rev", b"key", b"gone", b"long", b"history", b"lease", b"lease_key")
"""In the order of their numbers. A store that an older version wrote lacks the last two; they are made when it is opened for use."""

NO_REVISION: Final = bytes(16)
TOMBSTONE: Final = 1
HEADER_BYTES: Final = 33

_REVISION: Final = struct.Struct(">QQ")
_ENTRY: Final = struct.Struct(">16s16sQQq")
_SMALL_BYTES: Final = 4096
"""Values up to this are marshaled as part of their message, larger ones are spared that copy."""
_VALUE_TAG: Final = b"\x2a"
_FLAGS: Final = (b"\x00", b"\x01")


class Entry(NamedTuple):
    """What the index knows about a key: enough for everything but its value."""

    revision: bytes
    key_id: bytes
    create_revision: int
    version: int
    lease: int


class RecordHeader(NamedTuple):
    """The front of a record."""

    tombstone: bool
    key_id: bytes
    previous: bytes


def pack_revision(main: int, sub: int) -> bytes:
    """16 bytes that sort as (main, sub) does."""
    return _REVISION.pack(main, sub)


def unpack_revision(revision: bytes) -> tuple[int, int]:
    """(main, sub)."""
    main, sub = _REVISION.unpack(revision)
    return main, sub


def main_of(revision: bytes) -> int:
    """The main part of a revision."""
    return int.from_bytes(revision[:8], "big")


def pack_entry(revision: bytes, key_id: bytes, create_revision: int, version: int, lease: int) -> bytes:
    """The index entry of a key."""
    return _ENTRY.pack(revision, key_id, create_revision, version, lease)


def unpack_entry(data: bytes) -> Entry:
    """The opposite of `pack_entry`."""
    return Entry._make(_ENTRY.unpack(data))


def pack_superseded(tombstone: bool, by: bytes) -> bytes:
    """The history's note that the revision `by` came after a change."""
    return _FLAGS[tombstone] + by


def encode_put(
    revision: bytes, key_id: bytes, previous: bytes, *, key: bytes, value: bytes, create_revision: int, version: int, lease: int
) -> bytes:
    """The record of a put; a large `value` is copied once."""
    kv = KeyValue()
    kv.key = key
    kv.create_revision = create_revision
    kv.mod_revision = int.from_bytes(revision[:8], "big")
    kv.version = version
    if len(value) <= _SMALL_BYTES:
        kv.value = value
        kv.lease = lease
        return _FLAGS[0] + key_id + previous + kv.SerializeToString()
    parts = [_FLAGS[0], key_id, previous, kv.SerializeToString(), _VALUE_TAG, varint(len(value)), value]
    if lease:
        parts.append(KeyValue(lease=lease).SerializeToString())
    return b"".join(parts)


def encode_tombstone(key_id: bytes, previous: bytes, key: bytes) -> bytes:
    """The record of a deletion: its KeyValue holds the key alone."""
    return _FLAGS[1] + key_id + previous + KeyValue(key=key).SerializeToString()


def unpack_header(record: bytes | memoryview) -> RecordHeader:
    """The front of a record."""
    front = bytes(record[:HEADER_BYTES])
    return RecordHeader(front[0] == TOMBSTONE, front[1:17], front[17:33])


def key_value_of(record: bytes | memoryview) -> memoryview:
    """The marshaled KeyValue within a record; no copy."""
    return memoryview(record)[HEADER_BYTES:]


def parse_key_value(record: bytes | memoryview, into: KeyValue) -> None:
    """Merge a record's KeyValue into an empty message."""
    into.MergeFromString(cast("bytes", key_value_of(record)))  # any buffer will do, the stubs say bytes


def key_of(record: bytes | memoryview) -> bytes:
    """The key that a record is about, without a copy of its value: a KeyValue begins with its key."""
    start, end = _key_bounds(record)
    return bytes(record[start:end])


def is_creation(record: bytes | memoryview) -> bool:
    """Whether the record of a put is the first of its key's life: its create revision, which follows the key, is its mod revision."""
    _, position = _key_bounds(record)
    created, position = _read_varint(record, position + 1)
    modified, _ = _read_varint(record, position + 1)
    return created == modified


def _key_bounds(record: bytes | memoryview) -> tuple[int, int]:
    """Where the key of a record stands. There is no empty key in a store, so the KeyValue begins with its tag."""
    length, start = _read_varint(record, HEADER_BYTES + 1)
    return start, start + length


def _read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """A number as protobuf writes it, and what follows it."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def describe_row(table: int, key: bytes) -> str:
    """A row in words, for messages."""
    name = TABLES[table].decode()
    if table == META:
        return f"the row {key.decode(errors='replace')!r} of table {name}"
    if table == REV and len(key) == len(NO_REVISION):
        main, sub = unpack_revision(key)
        return f"the record of revision {main}.{sub}"
    shown = repr(key[:60])[1:] + ("..." if len(key) > 60 else "")
    return f"the row {shown} of table {name}"
