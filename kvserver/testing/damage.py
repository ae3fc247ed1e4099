"""Flipping a bit of a store's file where a test wants it: in a row, as a disk would do it.

Rules: the store is closed. The row is looked up through LMDB and then changed in the file itself, wherever its bytes stand, in use or in a
page of an older state: no transaction, no new seal.
"""

from __future__ import annotations

from pathlib import Path

import lmdb

from kvserver.mvcc import TABLES


def flip_row(store: Path, table: int, key: bytes, *, offset_bytes: int = 0, bit: int = 4) -> int:
    """Flip a bit of the value that `table` holds under `key`, `offset_bytes` into it (from its end when negative); how many copies were
    found.

    Raises:
        LookupError: there is no such row, or its bytes don't stand in the file in one piece (a large value: on pages of its own).
    """
    with lmdb.open(str(store), subdir=False, max_dbs=len(TABLES), readonly=True, lock=False) as env, env.begin() as txn:
        stored = txn.get(key, db=env.open_db(TABLES[table], txn=txn, create=False))
    if stored is None:
        raise LookupError(f"{store}: table {TABLES[table]!r} has no row {key!r}")
    row = key + bytes(stored)
    content = bytearray(store.read_bytes())
    copies = 0
    place = content.find(row)
    while place >= 0:
        content[place + len(key) + offset_bytes % len(stored)] ^= 1 << bit
        copies += 1
        place = content.find(row)
    if not copies:
        raise LookupError(f"{store}: the row {key!r} of table {TABLES[table]!r} does not stand there in one piece")
    store.write_bytes(content)
    return copies
