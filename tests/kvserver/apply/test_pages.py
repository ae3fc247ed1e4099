"""Reading the file page by page: the same rows as LMDB gives, and a sentence for everything that isn't right."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.mvcc import TABLES, describe_row
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest
from kvserver.storage import StoreUnreadableError, check_structure
from kvserver.storage.page_format import Row, Tree
from kvserver.storage.pages import PageFile, check_all, check_pages

PAGE = 4096


@pytest.fixture
async def path(machine: Any) -> Path:
    for number in range(400):
        machine.apply(PutRequest(key=b"key%04d" % (number * 7 % 300), value=b"v" * (number % 90)))
    machine.apply(PutRequest(key=b"large", value=b"x" * 20_000))
    machine.apply(PutRequest(key=b"L" * 1000, value=b"long"))
    machine.apply(DeleteRangeRequest(key=b"key0010", range_end=b"key0020"))
    machine.apply(CompactionRequest(revision=100))
    await machine.store.wait_compacted(100)
    await machine.store.close()
    return Path(machine.path)


def damage(path: Path, every_row: bool = True) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    with PageFile.open(path, describe_row) as file:
        walk = check_all if every_row else check_pages
        walk(file, TABLES, lambda offset, reason: found.append((offset, reason)))
    return found


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def first_page(path: Path, tree: str, kind: int) -> int:
    """The number of some page of that kind (1 branch, 2 leaf) in a tree."""
    with PageFile.open(path) as file:
        page = next(each.root for each in file.trees(TABLES, lambda offset, reason: None) if each.name == tree)
        while struct.unpack_from("<H", file.read(page, PAGE), 10)[0] != kind:
            data = file.read(page, PAGE)
            node = struct.unpack_from("<H", data, 16)[0]
            low, high, top = struct.unpack_from("<HHH", data, node)
            page = low | high << 16 | top << 32
        return page


def test_rows_are_those_that_lmdb_reads_from_any_start(path: Path) -> None:
    assert damage(path) == []
    assert damage(path, every_row=False) == []
    with (
        lmdb.open(str(path), subdir=False, max_dbs=len(TABLES), readonly=True, lock=False) as env,
        env.begin() as txn,
        PageFile.open(path) as file,
    ):
        for tree in file.trees(TABLES, lambda offset, reason: None):
            db = env.open_db(tree.name.encode(), txn=txn, create=False)
            expected = list(txn.cursor(db).iternext())
            rows = [(row.key, row.value) for row in file.rows(tree, lambda offset, reason: None)]
            assert rows == expected
            for key, _ in expected[:: max(1, len(expected) // 10)]:
                for start in (key, key + b"\x00"):
                    got = [row.key for row in file.rows(tree, lambda offset, reason: None, start=start)]
                    assert got == [each for each, _ in expected if each >= start]


def test_every_row_is_told_with_its_place(path: Path) -> None:
    rows: list[tuple[Tree, Row]] = []
    with PageFile.open(path) as file:
        assert check_all(file, TABLES, lambda offset, reason: None, lambda tree, row: rows.append((tree, row))) == 0
    content = path.read_bytes()
    assert all(content[row.offset + 8 : row.offset + 8 + len(row.key)] == row.key for _, row in rows)


Damager = Callable[[Path], None]


def flip_flags(path: Path) -> None:
    patch(path, first_page(path, "rev", 2) * PAGE + 10, b"\x03")


def shorten_page(path: Path) -> None:
    page = first_page(path, "rev", 2) * PAGE
    lower = struct.unpack_from("<H", path.read_bytes(), page + 12)[0]
    patch(path, page + 12, struct.pack("<H", lower - 2))


def double_node(path: Path) -> None:
    page = first_page(path, "rev", 2) * PAGE
    content = path.read_bytes()
    patch(path, page + 16, content[page + 18 : page + 20])


def lengthen_value(path: Path) -> None:
    page = first_page(path, "rev", 2) * PAGE
    node = struct.unpack_from("<H", path.read_bytes(), page + 16)[0]
    patch(path, page + node + 3, b"\x40")


def redirect_child(path: Path) -> None:
    page = first_page(path, "rev", 1) * PAGE
    node = struct.unpack_from("<H", path.read_bytes(), page + 16)[0]
    patch(path, page + node, struct.pack("<H", first_page(path, "key", 2)))


def redirect_to_free_page(path: Path) -> None:
    """To a page of an older state, which is sound in itself."""
    page = first_page(path, "rev", 1) * PAGE
    content = path.read_bytes()
    used = set()
    with PageFile.open(path) as file:
        check_all(file, TABLES, lambda offset, reason: None, lambda tree, row: used.add(row.offset // PAGE))
    free = next(
        number
        for number in range(2, len(content) // PAGE)
        if number not in used and struct.unpack_from("<QHH", content, number * PAGE)[::2] == (number, 2)
    )
    node = struct.unpack_from("<H", content, page + 16)[0]
    patch(path, page + node, struct.pack("<H", free))


@pytest.mark.parametrize("harm", [flip_flags, shorten_page, double_node, lengthen_value, redirect_child, redirect_to_free_page])
@pytest.mark.parametrize("every_row", [False, True])
def test_damaged_page_is_found_named_and_refused(path: Path, harm: Damager, every_row: bool) -> None:
    harm(path)
    found = damage(path, every_row=every_row)
    assert found
    with pytest.raises(StoreUnreadableError, match=r"is damaged: at offset \d+: .*kvserver check"):
        check_structure(path, TABLES, every_row=every_row)


def test_page_that_is_in_use_and_listed_as_free_is_found(path: Path) -> None:
    used = first_page(path, "key", 2)
    with PageFile.open(path) as file:
        row = next(file.rows(file.free, print))
    patch(path, row.offset + 8 + len(row.key) + 8, struct.pack("<Q", used))
    assert (used * PAGE, f"page {used} is in use and listed as free") in damage(path, every_row=False)


def test_flipped_bit_in_a_row_is_found_at_its_place(path: Path) -> None:
    content = path.read_bytes()
    with PageFile.open(path) as file:
        tree = file.trees(TABLES, lambda offset, reason: None)[1]
        row = next(row for row in file.rows(tree, lambda offset, reason: None) if len(row.value) > 60)
    patch(path, row.offset + 60, bytes((content[row.offset + 60] ^ 1,)))
    assert damage(path) == [(row.offset, f"{describe_row(1, row.key)} fails its checksum")]
    assert damage(path, every_row=False) == []


@pytest.mark.parametrize("length", [1, 100, PAGE, 2 * PAGE, 3 * PAGE, -PAGE, -1])
def test_truncated_file_is_refused_before_it_is_mapped(path: Path, length: int) -> None:
    with PageFile.open(path) as file:
        ends = [(row.offset // PAGE + 1) * PAGE for tree in file.trees(TABLES, print) for row in file.rows(tree, print)]
    with path.open("r+b") as target:
        target.truncate(length if length > 0 else max(ends) + length)
    with pytest.raises(StoreUnreadableError, match=r"truncated|damaged"):
        check_structure(path, TABLES)


def test_file_that_ends_within_a_large_value_is_refused(path: Path) -> None:
    with PageFile.open(path) as file:
        rev = file.trees(TABLES, print)[1]
        row = next(row for row in file.rows(rev, print) if len(row.value) > 20_000)
        first = struct.unpack_from("<Q", path.read_bytes(), row.offset + 8 + len(row.key))[0]
    with path.open("r+b") as target:
        target.truncate(first * PAGE + 8_000)
    with pytest.raises(StoreUnreadableError, match="damaged"):
        check_structure(path, TABLES)


def test_meta_pages_that_contradict_each_other_are_refused(path: Path) -> None:
    content = path.read_bytes()
    for page in (0, 1):
        transaction = struct.unpack_from("<Q", content, page * PAGE + 144)[0]
        for changed in (transaction ^ 1, transaction ^ 1 << 40):
            patch(path, page * PAGE + 144, struct.pack("<Q", changed))
            with pytest.raises(StoreUnreadableError, match="contradict"):
                PageFile.open(path)
        patch(path, page * PAGE + 144, struct.pack("<Q", transaction))
        patch(path, page * PAGE + 16, b"\x00")
        with pytest.raises(StoreUnreadableError, match=rf"meta page {page} is damaged"):
            PageFile.open(path)
        patch(path, page * PAGE, content[page * PAGE : page * PAGE + PAGE])
    assert damage(path) == []
