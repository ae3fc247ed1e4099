"""The key index: keys of any length in byte order, over tables whose own keys are at most 511 bytes.

Theory of operation
- A key of up to `CHUNK_BYTES` is stored as it is, in `key` while it exists and in `gone` from its deletion until that is compacted. So
  counting the keys of a range is counting entries, and deleted keys never slow a read of the newest revision down.
- A longer key lives in `long`, a trie of chunks. A *node* stands for a prefix whose length is a multiple of CHUNK_BYTES; its name is the
  prefix's BLAKE2b-160, so that a key's entry is found with one hash and one read, without walking the trie: (name of the longest proper
  prefix) + (the rest, 1 to CHUNK_BYTES bytes).
- Where a node exists, its parent holds a *marker*: the prefix's last chunk followed by a zero byte, with an empty value. A marker is the
  only entry longer than CHUNK_BYTES, and it sorts right behind the key that equals its prefix and before every other key: iteration that
  descends at markers meets all keys in byte order. The root's markers stand in `key`.
- Sharing a prefix costs nothing: a thousand keys with the same first megabyte share its chunks.

Invariants: a marker exists exactly while its node has entries. An entry in `key` exists (version > 0), one in `gone` doesn't (version 0),
one in `long` says so itself.

Caveats: a key of 1.5 MiB has some 3,300 chunks: writing a new one costs that many small entries. Two prefixes with the same 160-bit hash
would be confused; nobody can produce such a pair today.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from heapq import merge
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from kvserver.mvcc.layout import GONE, KEY, LONG, Entry, unpack_entry
from kvserver.storage import Reader

CHUNK_BYTES: Final = 480
NODE_BYTES: Final = 20

_MARK: Final = b"\x00"
_AFTER_MARK: Final = b"\x01"


class Writer(Protocol):
    """The engine's writing half, as the index needs it."""

    @property
    def reader(self) -> Reader: ...
    def put(self, table: int, key: bytes, value: bytes) -> None: ...
    def delete(self, table: int, key: bytes) -> None: ...


def find(reader: Reader, key: bytes) -> Entry | None:
    """The entry of `key` if it exists now."""
    if len(key) <= CHUNK_BYTES:
        data = reader.get(KEY, key)
        return None if data is None else unpack_entry(data)
    entry = _find_long(reader, key)
    return entry if entry is not None and entry.version else None


def find_any(reader: Reader, key: bytes) -> Entry | None:
    """The entry of `key`, whether it exists now or is deleted and not compacted."""
    if len(key) <= CHUNK_BYTES:
        data = reader.get(KEY, key)
        if data is None:
            data = reader.get(GONE, key)
        return None if data is None else unpack_entry(data)
    return _find_long(reader, key)


def store_live(writer: Writer, key: bytes, entry: bytes, *, was_gone: bool) -> None:
    """Make `entry` the entry of the now existing `key`."""
    if len(key) > CHUNK_BYTES:
        _store_long(writer, key, entry)
        return
    writer.put(KEY, key, entry)
    if was_gone:
        writer.delete(GONE, key)


def store_gone(writer: Writer, key: bytes, entry: bytes) -> None:
    """Make `entry` (version 0) the entry of the now deleted `key`."""
    if len(key) > CHUNK_BYTES:
        _store_long(writer, key, entry)
        return
    writer.delete(KEY, key)
    writer.put(GONE, key, entry)


def forget(writer: Writer, key: bytes) -> None:
    """Remove a deleted key from the index, with the nodes that only it needed."""
    if len(key) <= CHUNK_BYTES:
        writer.delete(GONE, key)
        return
    nodes = _nodes(key)
    writer.delete(LONG, nodes[-1] + key[len(nodes) * CHUNK_BYTES :])
    for depth in range(len(nodes), 0, -1):
        node = nodes[depth - 1]
        if next(writer.reader.iterate(LONG, node, _node_end(node)), None) is not None:
            return
        writer.delete(*_marker(key, nodes, depth))


def scan(
    reader: Reader, lo: bytes, hi: bytes | None, *, reverse: bool = False, touch: Callable[[], None] | None = None
) -> Iterator[tuple[bytes, Entry]]:
    """Keys in [lo, hi) that exist now, in byte order, ascending or descending; `hi=None`: to the end.

    `touch` is called before each key that is looked at: these, and the long ones that are deleted and not compacted.
    """
    for key, data in _iterate(reader, lo, hi, with_gone=False, reverse=reverse):
        if touch is not None:
            touch()
        entry = unpack_entry(data)
        if entry.version:
            yield key, entry


def scan_any(reader: Reader, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, Entry]]:
    """Keys in [lo, hi), existing and deleted, in ascending byte order."""
    for key, data in _iterate(reader, lo, hi, with_gone=True, reverse=False):
        yield key, unpack_entry(data)


def count(reader: Reader, lo: bytes, hi: bytes | None) -> int:
    """How many keys in [lo, hi) exist now."""
    if hi is not None and lo >= hi:
        return 0
    if next(reader.iterate(LONG), None) is None:
        return reader.count(KEY, lo, hi)
    return sum(1 for _ in scan(reader, lo, hi))


# --- iteration ---------------------------------------------------------------------------------------------------------------------------


def _iterate(reader: Reader, lo: bytes, hi: bytes | None, *, with_gone: bool, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    if hi is not None and lo >= hi:
        return
    first, last = _stored_bounds(lo, hi, 0)
    items = reader.iterate(KEY, first, last, reverse=reverse)
    if with_gone:
        items = merge(items, reader.iterate(GONE, first, last), key=itemgetter(0))
    for key, data in items:
        if len(key) <= CHUNK_BYTES:
            yield key, data
        else:
            yield from _descend(reader, key[:CHUNK_BYTES], lo, hi, reverse=reverse)


def _descend(reader: Reader, chunk: bytes, lo: bytes | None, hi: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """Entries in [lo, hi) under the root's marker of `chunk`; iterative, because a key may have thousands of chunks.

    Each level keeps its chunk, its hash so far, and the bounds as long as they run through it (else None): nothing is copied per level.
    """
    stack = [_enter(reader, hashlib.blake2b(digest_size=NODE_BYTES), chunk, 0, lo, hi, reverse=reverse)]
    while stack:
        level = stack[-1]
        prefix = b""
        for key, data in level.items:
            tail = key[NODE_BYTES:]
            if len(tail) <= CHUNK_BYTES:
                prefix = prefix or b"".join(above.chunk for above in stack)
                yield prefix + tail, data
            else:
                stack.append(_enter(reader, level.digest, tail[:CHUNK_BYTES], len(stack), level.lo, level.hi, reverse=reverse))
                break
        else:
            stack.pop()


class _Level(NamedTuple):
    chunk: bytes
    digest: hashlib.blake2b
    lo: bytes | None
    hi: bytes | None
    items: Iterator[tuple[bytes, bytes]]


def _enter(
    reader: Reader, above: hashlib.blake2b, chunk: bytes, depth: int, lo: bytes | None, hi: bytes | None, *, reverse: bool
) -> _Level:
    """Begin to read the node that `chunk` at `depth` leads to."""
    digest = above.copy()
    digest.update(chunk)
    start = depth * CHUNK_BYTES
    if lo is not None and lo[start : start + CHUNK_BYTES] != chunk:
        lo = None
    if hi is not None and hi[start : start + CHUNK_BYTES] != chunk:
        hi = None
    node = digest.digest()
    first, last = _stored_bounds(lo, hi, start + CHUNK_BYTES)
    return _Level(
        chunk, digest, lo, hi, reader.iterate(LONG, node + first, _node_end(node) if last is None else node + last, reverse=reverse)
    )


def _stored_bounds(lo: bytes | None, hi: bytes | None, start: int) -> tuple[bytes, bytes | None]:
    """Bounds of the entries of one level, whose chunks begin at `start`, that hold all keys of [lo, hi)."""
    first = b"" if lo is None else lo[start : start + CHUNK_BYTES]
    if lo is not None and len(lo) > start + CHUNK_BYTES:
        first += _MARK
    last = None if hi is None else hi[start : start + CHUNK_BYTES]
    if hi is not None and last is not None and len(hi) > start + CHUNK_BYTES:
        last += _AFTER_MARK
    return first, last


# --- long keys ---------------------------------------------------------------------------------------------------------------------------


def _find_long(reader: Reader, key: bytes) -> Entry | None:
    split = (len(key) - 1) // CHUNK_BYTES * CHUNK_BYTES
    data = reader.get(LONG, _node(key[:split]) + key[split:])
    return None if data is None else unpack_entry(data)


def _store_long(writer: Writer, key: bytes, entry: bytes) -> None:
    nodes = _nodes(key)
    writer.put(LONG, nodes[-1] + key[len(nodes) * CHUNK_BYTES :], entry)
    for depth in range(len(nodes), 0, -1):
        table, marker = _marker(key, nodes, depth)
        if writer.reader.get(table, marker) is not None:
            return
        writer.put(table, marker, b"")


def _marker(key: bytes, nodes: list[bytes], depth: int) -> tuple[int, bytes]:
    """Table and key of the marker of the node at `depth` (1: the first) on the way to `key`."""
    chunk = key[(depth - 1) * CHUNK_BYTES : depth * CHUNK_BYTES] + _MARK
    return (KEY, chunk) if depth == 1 else (LONG, nodes[depth - 2] + chunk)


def _nodes(key: bytes) -> list[bytes]:
    """Names of the nodes on the way to a long key, outermost first."""
    digest = hashlib.blake2b(digest_size=NODE_BYTES)
    names = []
    for end in range(CHUNK_BYTES, len(key), CHUNK_BYTES):
        digest.update(key[end - CHUNK_BYTES : end])
        names.append(digest.copy().digest())
    return names


def _node(prefix: bytes) -> bytes:
    return hashlib.blake2b(prefix, digest_size=NODE_BYTES).digest()


def _node_end(node: bytes) -> bytes | None:
    """The first key behind every key that starts with `node`."""
    number = int.from_bytes(node, "big") + 1
    return None if number >> (8 * NODE_BYTES) else number.to_bytes(NODE_BYTES, "big")
