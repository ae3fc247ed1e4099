"""The bytes of the store's file as LMDB lays them out: pages, trees, and the two meta pages that say which state is the newest.

Format of LMDB 0.9 on a 64-bit little-endian machine (data version 1); all offsets within their page

    page header       meta page (0 and 1), from 16    tree (48 bytes)             node, in a branch or leaf page
    0   8  number     0   4  magic be ef c0 de        0   4  (pad)                0  2  low half of the data's size; or of the child
    8   2  (pad)      4   4  version, 1               4   2  flags                2  2  high half of it
    10  2  flags      8   8  (address)                6   2  depth                4  2  flags; or the child's top 16 bits
    12  2  lower      16  8  map size                 8   8  branch pages         6  2  length of the key
    14  2  upper      24  48 tree of free pages       16  8  leaf pages           8  .. key, then data (leaf only): the value, or with
    or 12 4 pages     72  48 tree of named trees      24  8  overflow pages             flag 1 the number (8) of its first overflow page
    16  .. content    120 8  last page's number       32  8  entries
                      128 8  transaction              40  8  root, all ones: empty

Branch and leaf pages: 2-byte offsets of the nodes from 16 up to `lower`, nodes from `upper` to the page's end. Flags: 1 branch, 2 leaf,
4 overflow, 8 meta. Transaction t stands in meta page t % 2; the pages of t and t - 1 are left alone.

Rules: nothing is believed: a meta page that is not exactly one, two that contradict each other, or a file that is shorter than they say is
a StoreDamagedError, which names the offset.

Source: LMDB's mdb.c (structures MDB_page, MDB_meta, MDB_db, MDB_node).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from kvserver.storage.errors import StorageError, StoreDamagedError

Report = Callable[[int, str], None]
"""Told the offset in the file and what is wrong there."""
DescribeRow = Callable[[int, bytes], str]
"""A row (table, key) in words."""
Watch = Callable[[int, int], None]
"""Told how many pages of how many a walk has passed; what it raises ends the walk."""
WATCH_PAGES: Final = 1024
"""4 MiB: some 10 ms of small rows."""

META_PAGES: Final = 2
NO_PAGE: Final = 2**64 - 1
MAX_DEPTH: Final = 32
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
BRANCH: Final = 1
LEAF: Final = 2
OVERFLOW: Final = 4
_META: Final = 8
BIG: Final = 1
SUBTREE: Final = 2
INTEGER_KEYS: Final = 8
PAGE_HEADER: Final = struct.Struct("<QHHHH")
_META_HEAD: Final = struct.Struct("<IIQQ")
TREE_HEAD: Final = struct.Struct("<IHHQQQQQ")
_META_TAIL: Final = struct.Struct("<QQ")
NODE: Final = struct.Struct("<HHHH")
NUMBER: Final = struct.Struct("<Q")
HEADER_BYTES: Final = 16
NODE_BYTES: Final = 8
_META_BYTES: Final = 152
_PAGE_SIZES: Final = tuple(1 << power for power in range(9, 17))


NAMES: Final = "the list of tables"
FREE: Final = "the list of free pages"


def describe_plainly(table: int, key: bytes) -> str:
    """A row by numbers alone."""
    return f"the row {key[:40].hex()} of table {table}"


@dataclass(slots=True, kw_only=True)
class Faults:
    """A `Report` that keeps the first fault and counts the others."""

    count: int = 0
    offset_bytes: int = 0
    reason: str = ""

    def report(self, offset_bytes: int, reason: str) -> None:
        """Take one."""
        if not self.count:
            self.offset_bytes, self.reason = offset_bytes, reason
        self.count += 1

    def raise_any(self, path: Path) -> None:
        """Raise StoreDamagedError if there was one."""
        if self.count:
            raise StoreDamagedError(path, self.reason, self.offset_bytes, self.count - 1)


class PageSet:
    """A set of page numbers, one bit each. `watch` is told every `WATCH_PAGES` how many are in it."""

    __slots__ = ("_bits", "_pages", "_watch", "count")

    def __init__(self, pages: int, watch: Watch | None = None) -> None:
        self._bits = bytearray(pages // 8 + 1)
        self._pages = pages
        self._watch = watch
        self.count = 0

    def add(self, page: int) -> bool:
        """Put it in; False if it was there."""
        index, bit = page >> 3, 1 << (page & 7)
        if self._bits[index] & bit:
            return False
        self._bits[index] |= bit
        self.count += 1
        if not self.count % WATCH_PAGES and self._watch is not None:
            self._watch(self.count, self._pages)
        return True


class Row(NamedTuple):
    """A row as it is stored: `value` with its seal; `offset` of its node in the file."""

    key: bytes
    value: bytes
    offset: int


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a walk has passed. `is_whole` turns false when something was left out, because a page on the way is damaged."""

    is_whole: bool = True
    branch_pages: int = 0
    leaf_pages: int = 0
    overflow_pages: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The head of a tree. `table` is its number for the seals, None of LMDB's own; `head_offset` is where the head stands in the file."""

    name: str
    table: int | None
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int
    head_offset: int


class StateGoneError(StorageError):
    """The file has moved on: the state of that transaction can't be found any more. Retryable with a new view."""

    def __init__(self, transaction: int) -> None:
        super().__init__(f"the state of transaction {transaction} is gone; read again with a new view")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaPage:
    """One committed state: its trees, its last page and its transaction."""

    page_bytes: int
    free: Tree
    names: Tree
    last_page: int
    transaction: int


def choose_meta(path: Path, descriptor: int, size_bytes: int, transaction: int | None) -> MetaPage:
    """The meta page of that transaction, or of the newest. Raises StoreDamagedError, StateGoneError, OSError."""
    head = os.pread(descriptor, _META_BYTES, 0)
    if size_bytes == 0 or len(head) < _META_BYTES:
        raise StoreDamagedError(path, f"the file ends within its meta page 0: it has {size_bytes} bytes, it was truncated", size_bytes)
    page_bytes = TREE_HEAD.unpack_from(head, 40)[0]
    if page_bytes not in _PAGE_SIZES:
        raise StoreDamagedError(path, "its meta page 0 is damaged, or this is no store", 0)
    metas = [_read_meta(path, descriptor, page, page_bytes) for page in range(META_PAGES)]
    first, second = (meta.transaction for meta in metas)
    if abs(first - second) > 1 or any(meta.transaction % 2 != page and meta.transaction for page, meta in enumerate(metas)):
        raise StoreDamagedError(
            path, f"its meta pages, here and at offset {page_bytes}, contradict each other (transactions {first}, {second})", 0
        )
    if transaction is None:
        chosen = max(metas, key=lambda meta: meta.transaction)
    else:
        chosen = next((meta for meta in metas if meta.transaction == transaction), None) or _gone(transaction)
    # A file that ends before its last page need not be damaged: LMDB does not write a page that it took and freed in one transaction. What
    # is in use is looked at page by page (pages.py).
    return chosen


def _gone(transaction: int) -> NoReturn:
    raise StateGoneError(transaction)


def _read_meta(path: Path, descriptor: int, page: int, page_bytes: int) -> MetaPage:
    data = os.pread(descriptor, _META_BYTES, page * page_bytes)
    if len(data) == _META_BYTES:
        number, _, flags, _, _ = PAGE_HEADER.unpack_from(data)
        magic, version, _, _ = _META_HEAD.unpack_from(data, HEADER_BYTES)
        last_page, transaction = _META_TAIL.unpack_from(data, 136)
        if (number, flags, magic, version) == (page, _META, _MAGIC, _VERSION) and TREE_HEAD.unpack_from(data, 40)[0] == page_bytes:
            return MetaPage(
                page_bytes=page_bytes,
                free=tree_of(FREE, None, data, 40, page * page_bytes + 40),
                names=tree_of(NAMES, None, data, 88, page * page_bytes + 88),
                last_page=last_page,
                transaction=transaction,
            )
    raise StoreDamagedError(path, f"its meta page {page} is damaged, or this is no store", page * page_bytes)


def tree_of(name: str, table: int | None, data: bytes, offset: int, head_offset: int) -> Tree:
    """The head of a tree at this offset of `data`, which is `head_offset` in the file."""
    _, flags, depth, branch_pages, leaf_pages, overflow_pages, entries, root = TREE_HEAD.unpack_from(data, offset)
    return Tree(
        name=name,
        table=table,
        flags=flags,
        depth=depth,
        branch_pages=branch_pages,
        leaf_pages=leaf_pages,
        overflow_pages=overflow_pages,
        entries=entries,
        root=root,
        head_offset=head_offset,
    )


def free_numbers(value: bytes) -> tuple[int, ...] | None:
    """The page numbers in a list of free pages: a count, then as many numbers."""
    if len(value) < NUMBER.size or len(value) % NUMBER.size:
        return None
    (count,) = NUMBER.unpack_from(value)
    if count > len(value) // NUMBER.size - 1:
        return None
    return struct.unpack_from(f"<{count}Q", value, NUMBER.size)
