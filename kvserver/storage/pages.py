"""Reading the store's file page by page, without LMDB: what a damaged file does to LMDB is undefined, here it is a sentence.

LMDB maps the file and trusts it: a damaged page can end the process (SIGSEGV, SIGBUS) or, at worst, lead into pages of an older state.
`PageFile` reads the same trees with pread, believes nothing, and reports what is wrong with which page.

Rules
- Nothing is written, nothing is locked. Of a file that a server writes, only the state of a transaction that somebody keeps open may be
  read: `PageFile.at`.
- A walk checks every page that it passes (own number, kind, bounds of all nodes, order of keys within the page and within what the
  parent promises, depth) and every row's seal; `report` is told, what hangs under a bad page is left out, and the walk goes on.
- With `seen` (a PageSet) it also notices a page that is reached twice. `check_all` walks everything and then compares the counts of
  pages and rows with those in the trees' heads, and the free pages with those in use.

Memory: one page for each level, and one value; a PageSet has one bit per page of the file.

Source: LMDB's mdb.c, for which pages stay when. The bytes are in page_format.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvserver.storage.errors import StoreUnreadableError
from kvserver.storage.page_format import (
    BIG,
    BRANCH,
    HEADER_BYTES,
    INTEGER_KEYS,
    LEAF,
    MAX_DEPTH,
    META_PAGES,
    NAMES,
    NO_PAGE,
    NODE,
    NODE_BYTES,
    NUMBER,
    OVERFLOW,
    PAGE_HEADER,
    SUBTREE,
    TREE_HEAD,
    DescribeRow,
    MetaPage,
    PageSet,
    Report,
    Row,
    Tally,
    Tree,
    Watch,
    choose_meta,
    describe_plainly,
    free_numbers,
    tree_of,
)
from kvserver.storage.seal import is_sound


class PageFile:
    """One committed state of a store's file, read with pread. Close it after use."""

    def __init__(self, path: Path, descriptor: int, meta: MetaPage, size_bytes: int, describe_row: DescribeRow) -> None:
        self.path = path
        self.page_bytes = meta.page_bytes
        self.last_page = meta.last_page
        self.transaction = meta.transaction
        self.size_bytes = size_bytes
        self.free = meta.free
        self.names = meta.names
        self.describe_row = describe_row
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, describe_row: DescribeRow = describe_plainly) -> PageFile:
        """The newest committed state of a file that nobody writes.

        Raises:
            StoreUnreadableError: the file is missing or can't be read.
            StoreDamagedError: its meta pages are damaged, or it is no store.
        """
        return cls._open(path, None, describe_row)

    @classmethod
    def at(cls, path: Path, transaction: int, describe_row: DescribeRow = describe_plainly) -> PageFile:
        """The state of a transaction that the caller keeps open for as long as this is used.

        Raises:
            StateGoneError: two commits have passed since that transaction began.
            StoreUnreadableError: as `open`.
        """
        return cls._open(path, transaction, describe_row)

    @classmethod
    def _open(cls, path: Path, transaction: int | None, describe_row: DescribeRow) -> PageFile:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreUnreadableError(path, error.strerror or str(error), "check the path and its permissions") from error
        try:
            size_bytes = os.fstat(descriptor).st_size
            meta = choose_meta(path, descriptor, size_bytes, transaction)
        except OSError as error:
            os.close(descriptor)
            raise StoreUnreadableError(path, error.strerror or str(error), "check the path and its permissions") from error
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, meta, size_bytes, describe_row)

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def reaches(self, end_bytes: int) -> bool:
        """Whether the file is at least that long; it may grow while it is looked at. Raises OSError."""
        if end_bytes > self.size_bytes:
            self.size_bytes = os.fstat(self._descriptor).st_size
        return end_bytes <= self.size_bytes

    def read(self, page: int, length_bytes: int) -> bytes:
        """That many bytes from the start of a page; fewer at the end of the file. Raises OSError."""
        return os.pread(self._descriptor, length_bytes, page * self.page_bytes)

    def trees(self, tables: Sequence[bytes], report: Report, seen: PageSet | None = None) -> list[Tree]:
        """The heads of these tables' trees, in order; a table that isn't there is an empty tree."""
        found: dict[bytes, Tree] = {}
        tally = Tally()
        for row in self.rows(self.names, report, seen=seen, tally=tally):
            if row.key in tables and len(row.value) == TREE_HEAD.size:
                head_offset = row.offset + NODE_BYTES + len(row.key)
                found[row.key] = tree_of(row.key.decode(), tables.index(row.key), row.value, 0, head_offset)
            else:
                report(row.offset, f"the file holds a table {row.key!r} that is none of kvserver's")
        self.compare(self.names, tally, report)
        return [
            found.get(name) or tree_of(name.decode(), number, TREE_HEAD.pack(0, 0, 0, 0, 0, 0, 0, NO_PAGE), 0, 0)
            for number, name in enumerate(tables)
        ]

    def rows(
        self,
        tree: Tree,
        report: Report,
        *,
        start: bytes = b"",
        seen: PageSet | None = None,
        tally: Tally | None = None,
        with_rows: bool = True,
    ) -> Iterator[Row]:
        """The rows from `start` on, in order, checked by the module's rules on the way. Without `with_rows` none: pages alone."""
        if tree.root == NO_PAGE:
            return
        tally = tally or Tally()
        if not 0 < tree.depth <= MAX_DEPTH:
            report(tree.head_offset, f"the tree of {tree.name} claims a depth of {tree.depth}")
            tally.is_whole = False
            return
        walk = _Walk(file=self, tree=tree, report=report, start=start, seen=seen, tally=tally, with_rows=with_rows)
        yield from walk.descend(tree.root, tree.depth, b"", None)

    def rows_unsealed(self, tree: Tree, report: Report) -> Iterator[Row]:
        """The rows as they are, seals not looked at: of a store that has none yet."""
        return self.rows(replace(tree, table=None), report)

    def compare(self, tree: Tree, tally: Tally, report: Report) -> None:
        """Report where a walk found another number than the tree's head says. After a damaged page the numbers say nothing new."""
        if not tally.is_whole:
            return
        for name in ("branch_pages", "leaf_pages", "overflow_pages", "entries"):
            expected, found = getattr(tree, name), getattr(tally, name)
            if expected != found:
                report(tree.head_offset, f"the tree of {tree.name} should have {expected} {name.replace('_', ' ')}, {found} were found")

    def free_pages(self, report: Report, seen: PageSet) -> None:
        """Walk the list of free pages; none of them may be in use."""
        tally = Tally()
        for row in self.rows(self.free, report, seen=seen, tally=tally):
            numbers = free_numbers(row.value)
            if numbers is None:
                report(row.offset, "a list of free pages contradicts itself")
                continue
            for page in numbers:
                if not META_PAGES <= page <= self.last_page:
                    report(row.offset, f"the list of free pages names page {page}, the file has {self.last_page + 1}")
                elif not seen.add(page):
                    report(page * self.page_bytes, f"page {page} is in use and listed as free")
        self.compare(self.free, tally, report)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass over one tree."""

    file: PageFile
    tree: Tree
    report: Report
    start: bytes
    seen: PageSet | None
    tally: Tally
    with_rows: bool
    _last: bytes | None = field(default=None, init=False)

    def descend(self, page: int, depth: int, lo: bytes, hi: bytes | None) -> Iterator[Row]:
        """The rows under a page that stands `depth` levels above the rows and may hold keys in [lo, hi)."""
        if depth == 1:
            if self.with_rows:
                yield from self._leaf(page, lo, hi)
            else:
                self._frame(page, lo, hi)
            return
        data = self._load(page, BRANCH)
        if data is None:
            return
        self.tally.branch_pages += 1
        nodes = self._nodes(page, data, leaf=False)
        if nodes is None:
            return
        for position, (key, child, _, _) in enumerate(nodes):
            child_lo = self._order(key) if position else lo
            child_hi = self._order(nodes[position + 1][0]) if position + 1 < len(nodes) else hi
            if child_lo < lo or (child_hi is not None and (child_hi <= child_lo or (hi is not None and child_hi > hi))):
                self._bad(page, f"branch page {page} of {self.tree.name} is out of order")
                return
            if child_hi is None or child_hi > self.start:
                yield from self.descend(child, depth - 1, child_lo, child_hi)

    def _leaf(self, page: int, lo: bytes, hi: bytes | None) -> Iterator[Row]:
        data = self._load(page, LEAF)
        if data is None:
            return
        self.tally.leaf_pages += 1
        nodes = self._nodes(page, data, leaf=True)
        if nodes is None:
            return
        base, table, start, plain = page * self.file.page_bytes, self.tree.table, self.start, not self.tree.flags & INTEGER_KEYS
        last: bytes | None = None
        for key, size_bytes, flags, place in nodes:
            order = key if plain else key[::-1]
            self.tally.entries += 1
            if order < lo or (hi is not None and order >= hi) or (last is not None and order <= last):
                self.report(base + place, f"{self._name(key)} is out of order")
                continue
            last = order
            if order < start:
                continue
            begin = place + NODE_BYTES + len(key)
            if flags & BIG:
                value = self._big(page, NUMBER.unpack_from(data, begin)[0], size_bytes)
                if value is None:
                    continue
            else:
                value = data[begin : begin + size_bytes]
            if table is not None and not is_sound(table, key, value):
                self.report(base + place, f"{self._name(key)} fails its checksum")
                continue
            yield Row(key, value, base + place)

    def _frame(self, page: int, lo: bytes, hi: bytes | None) -> None:
        """Check a leaf page without its rows: its nodes, that its first and last key belong here, and the heads of value pages."""
        data = self._load(page, LEAF)
        if data is None:
            return
        self.tally.leaf_pages += 1
        places = self._places(page, data)
        if places is None:
            return
        length = len(data)
        used = last_end = 0
        big: list[tuple[int, int]] = []
        for place in places:
            low, high, flags, key_length = NODE.unpack_from(data, place)
            end = place + NODE_BYTES + key_length + (low | high << 16)
            if flags:
                end = place + NODE_BYTES + key_length + NUMBER.size
                big.append((low | high << 16, end - NUMBER.size))
                if flags != BIG:
                    break
            used += (end - place + 1) & ~1
            last_end = max(last_end, end)
        if used != length - PAGE_HEADER.unpack_from(data)[4] or last_end > length:
            self._bad(page, f"page {page} of {self.tree.name}: its nodes contradict each other")
            return
        self.tally.entries += len(places)
        first, last = self._key_at(data, places[0]), self._key_at(data, places[-1])
        if first < lo or last < first or (hi is not None and last >= hi):
            self._bad(page, f"page {page} of {self.tree.name} is out of order")
        for size_bytes, number_at in big:
            self._big(page, NUMBER.unpack_from(data, number_at)[0], size_bytes, whole=False)

    def _key_at(self, data: bytes, place: int) -> bytes:
        key_length = NODE.unpack_from(data, place)[3]
        return self._order(data[place + NODE_BYTES : place + NODE_BYTES + key_length])

    def _places(self, page: int, data: bytes) -> tuple[int, ...] | None:
        """The offsets of a page's nodes, all within the page; None after a report."""
        lower, upper = PAGE_HEADER.unpack_from(data)[3:]
        if not HEADER_BYTES + 2 <= lower <= upper < len(data) or lower % 2:
            self._bad(page, f"page {page} of {self.tree.name}: its bounds ({lower}, {upper}) are wrong")
            return None
        places = struct.unpack_from(f"<{(lower - HEADER_BYTES) // 2}H", data, HEADER_BYTES)
        if min(places) < upper or max(places) > len(data) - NODE_BYTES:
            self._bad(page, f"page {page} of {self.tree.name}: a node lies outside of it")
            return None
        return places

    def _nodes(self, page: int, data: bytes, *, leaf: bool) -> list[tuple[bytes, int, int, int]] | None:
        """(key, data size or child, flags, offset) of each node, all within the page; None after a report."""
        places = self._places(page, data)
        if places is None:
            return None
        length, upper = len(data), PAGE_HEADER.unpack_from(data)[4]
        nodes = []
        used = 0
        for place in places:
            low, high, flags, key_length = NODE.unpack_from(data, place)
            number, size_bytes = low | high << 16, 0
            if leaf:
                size_bytes = NUMBER.size if flags & BIG else number
            else:
                number, flags = number | flags << 32, 0
            end = place + NODE_BYTES + key_length + size_bytes
            used += (end - place + 1) & ~1
            if end > length or (flags not in (0, BIG) and (flags, self.tree.name) != (SUBTREE, NAMES)):
                self._bad(page, f"page {page} of {self.tree.name}: a node contradicts itself")
                return None
            nodes.append((data[place + NODE_BYTES : place + NODE_BYTES + key_length], number, flags, place))
        if used != length - upper:
            self._bad(page, f"page {page} of {self.tree.name}: its nodes overlap or leave gaps")
            return None
        return nodes

    def _big(self, page: int, first: int, size_bytes: int, *, whole: bool = True) -> bytes | None:
        """A value that has pages of its own; not `whole`: an empty one, the head of the pages is checked alone."""
        file = self.file
        count = (HEADER_BYTES + size_bytes - 1) // file.page_bytes + 1
        if not META_PAGES <= first <= file.last_page + 1 - count:
            self._bad(page, f"page {page} of {self.tree.name} refers to pages {first} to {first + count - 1}, which don't exist")
            return None
        for number in range(first, first + count):
            if not self._enter(number):
                return None
        self.tally.overflow_pages += count
        length_bytes = HEADER_BYTES + (size_bytes if whole else 0)
        data = file.read(first, length_bytes)
        if len(data) < length_bytes or not file.reaches((first + count) * file.page_bytes):
            self._bad(first, f"the file ends within page {first} of {self.tree.name}: it was truncated")
            return None
        number, _, flags, pages_low, pages_high = PAGE_HEADER.unpack_from(data)  # the count takes the place of both bounds
        if number != first or flags != OVERFLOW or pages_low | pages_high << 16 != count:
            self._bad(first, f"page {first} of {self.tree.name} isn't the value page that it should be")
            return None
        return data[HEADER_BYTES:]

    def _load(self, page: int, kind: int) -> bytes | None:
        """A branch or leaf page; None after a report."""
        if not self._enter(page):
            return None
        data = self.file.read(page, self.file.page_bytes)
        if len(data) < self.file.page_bytes:
            self._bad(page, f"the file ends within page {page} of {self.tree.name}: it was truncated")
            return None
        number, _, flags, _, _ = PAGE_HEADER.unpack_from(data)
        if number != page or flags != kind:
            self._bad(page, f"page {page} of {self.tree.name} isn't the {'leaf' if kind == LEAF else 'branch'} page that it should be")
            return None
        return data

    def _enter(self, page: int) -> bool:
        """Whether the page exists and is reached for the first time."""
        if not META_PAGES <= page <= self.file.last_page:
            self._bad(page, f"the tree of {self.tree.name} refers to page {page}, the file has {self.file.last_page + 1}")
            return False
        if self.seen is not None and not self.seen.add(page):
            self._bad(page, f"page {page} is reached twice, now from {self.tree.name}")
            return False
        return True

    def _bad(self, page: int, reason: str) -> None:
        self.tally.is_whole = False
        self.report(page * self.file.page_bytes, reason)

    def _order(self, key: bytes) -> bytes:
        return key[::-1] if self.tree.flags & INTEGER_KEYS else key

    def _name(self, key: bytes) -> str:
        table = self.tree.table
        return f"the row {key[:40].hex()} of {self.tree.name}" if table is None else self.file.describe_row(table, key)


def _ignore_row(tree: Tree, row: Row) -> None:
    del tree, row


def check_all(
    file: PageFile,
    tables: Sequence[bytes],
    report: Report,
    on_row: Callable[[Tree, Row], None] = _ignore_row,
    watch: Watch | None = None,
) -> int:
    """Walk every page of the file; `on_row` is told each sound row. Returns how many pages are neither in use nor listed as free."""
    seen = PageSet(file.last_page + 1, watch)
    for tree in file.trees(tables, report, seen):
        tally = Tally()
        for row in file.rows(tree, report, seen=seen, tally=tally):
            on_row(tree, row)
        file.compare(tree, tally, report)
    file.free_pages(report, seen)
    return file.last_page + 1 - META_PAGES - seen.count


def check_pages(file: PageFile, tables: Sequence[bytes], report: Report, watch: Watch | None = None) -> None:
    """Walk every page without looking at the rows: after this LMDB can't be led astray, and what rows hold is for their seals to show."""
    seen = PageSet(file.last_page + 1, watch)
    for tree in file.trees(tables, report, seen):
        tally = Tally()
        for _ in file.rows(tree, report, seen=seen, tally=tally, with_rows=False):
            raise AssertionError("a walk over pages came to a row")
        file.compare(tree, tally, report)
    file.free_pages(report, seen)
