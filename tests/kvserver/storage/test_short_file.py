"""LMDB may leave free pages at the end of its file unwritten: such a file is shorter than its meta page says, and sound."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from kvserver.storage import StoreUnreadableError
from kvserver.storage.checking import check_structure
from kvserver.storage.files import open_env, read_only_env

TABLES = (b"one",)


def shortened_store(path: Path) -> Path:
    """A copy of a store at a moment when it ends before its last page."""
    rng = random.Random(59)
    env, dbs = open_env(path, quota_bytes=1 << 28, tables=TABLES)
    try:
        for _ in range(400):
            with env.begin(write=True) as txn:
                for _ in range(rng.choice([1, 5, 300])):
                    key = b"%06d" % rng.randrange(3000)
                    if rng.random() < rng.choice([0.2, 0.8]):
                        txn.delete(key, db=dbs[0])
                    else:
                        txn.put(key, rng.randbytes(rng.choice([10, 200, 1500, 5000, 30000])), db=dbs[0])
                if rng.random() < 0.05:
                    for key, _ in list(txn.cursor(dbs[0])):
                        txn.delete(key, db=dbs[0])
            if path.stat().st_size < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
                copy = path.with_name("copy")
                shutil.copyfile(path, copy)
                return copy
    finally:
        env.close()
    raise AssertionError("LMDB wrote every page: the case does not arise any more")


def test_a_file_that_ends_before_its_free_last_pages_is_opened(tmp_path: Path) -> None:
    copy = shortened_store(tmp_path / "db")
    env, dbs = open_env(copy, quota_bytes=1 << 28, tables=TABLES)
    with env.begin() as txn:
        assert sum(1 for _ in txn.cursor(dbs[0])) == txn.stat(dbs[0])["entries"]
    env.close()
    read_only_env(copy, tables=1).close()


@pytest.mark.parametrize("value_bytes", [100, 30_000])
def test_a_file_that_ends_within_a_page_in_use_is_refused(tmp_path: Path, value_bytes: int) -> None:
    path = tmp_path / "db"
    env, dbs = open_env(path, quota_bytes=1 << 28, tables=TABLES)
    with env.begin(write=True) as txn:
        for number in range(200):
            txn.put(b"%06d" % number, bytes(value_bytes), db=dbs[0])
    env.close()
    content = path.read_bytes()
    check_structure(path, TABLES)
    for size in [len(content) - 1, *range(len(content) - 4096, len(content) - 10 * 4096, -4096)]:
        path.write_bytes(content[:size])
        with pytest.raises(StoreUnreadableError, match="truncated"):
            check_structure(path, TABLES)
