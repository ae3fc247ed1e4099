"""One batch on its way to the disk: what the commit thread does, and what it means when it fails."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lmdb

from kvserver.storage import files
from kvserver.storage.layer import Layer


def write(env: lmdb.Environment, dbs: Sequence[Any], layer: Layer) -> float:
    """Write and fsync one sealed layer as one transaction; returns the seconds it took. Runs on the commit thread."""
    started = perf_counter()
    with env.begin(write=True) as txn:
        for table, items in enumerate(layer.tables):
            if not items:
                continue
            puts: list[tuple[bytes, bytes]] = []
            for key in layer.ordered_keys(table):
                value = items[key]
                if value is None:
                    txn.delete(key, db=dbs[table])
                else:
                    puts.append((key, value))
            txn.cursor(dbs[table]).putmulti(puts)
    return perf_counter() - started


def is_no_space(error: BaseException, path: Path) -> bool:
    """Whether a commit failed for want of space. LMDB reports a write that was cut short as EIO, so for that one the disk is asked."""
    if isinstance(error, lmdb.MapFullError):
        return True
    code = getattr(error, "code", None) if isinstance(error, lmdb.Error) else getattr(error, "errno", None)
    return code in files.NO_SPACE_CODES or (code == errno.EIO and files.is_disk_full(path.parent))
