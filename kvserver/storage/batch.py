"""One batch on its way to the disk: what the commit thread does, and what it means when it fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import lmdb

from kvserver.storage import files
from kvserver.storage.errors import StorageNoSpaceError
from kvserver.storage.layer import Layer
from kvserver.storage.seal import seal

ROOM_FACTOR: Final = 4
"""A batch may write so many times its own bytes: the tree's inner pages, and what a page holds beside the change."""
ROOM_SLACK_BYTES: Final = 4 << 20


def commit(env: lmdb.Environment, dbs: Sequence[Any], layer: Layer, path: Path) -> float:
    """Write and fsync one sealed layer as one transaction; returns the seconds it took. Runs on the commit thread.

    Raises:
        StorageNoSpaceError: there was no space; nothing of the layer is in the file, and it may be written again (which writes every page
            of it anew, so that a sync that failed for space is not relied on). It is doubtful for an EIO where space was tight when the
            commit began and is not wanting any more.
        lmdb.Error, OSError: anything else.
    """
    room_bytes = files.free_bytes(path.parent)
    try:
        return write(env, dbs, layer)
    except (lmdb.Error, OSError) as error:
        if is_no_space(error, path):
            raise StorageNoSpaceError(path, str(error)) from error
        if _code(error) == errno.EIO and room_bytes < ROOM_FACTOR * layer.size_bytes + ROOM_SLACK_BYTES:
            raise StorageNoSpaceError(path, str(error), is_doubtful=True) from error
        raise


def write(env: lmdb.Environment, dbs: Sequence[Any], layer: Layer) -> float:
    """Write and fsync one sealed layer as one transaction; returns the seconds it took. Runs on the commit thread."""
    started = perf_counter()
    with env.begin(write=True) as txn:
        for table, items in enumerate(layer.tables):
            if not items:
                continue
            ordered = layer.ordered_keys(table)
            for key in ordered:
                if items[key] is None:
                    txn.delete(key, db=dbs[table])
            txn.cursor(dbs[table]).putmulti(_sealed(table, ordered, items))
    return perf_counter() - started


def _sealed(table: int, ordered: Sequence[bytes], items: Mapping[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """The rows to store; one at a time, because a sealed value is a copy."""
    for key in ordered:
        value = items[key]
        if value is not None:
            yield key, seal(table, key, value)


def is_no_space(error: BaseException, path: Path) -> bool:
    """Whether a commit certainly failed for want of space. Blocking.

    LMDB reports a write that was cut short as EIO. That one counts if the disk turns out to be full.
    """
    if isinstance(error, lmdb.MapFullError):
        return True
    code = _code(error)
    return code in files.NO_SPACE_CODES or (code == errno.EIO and files.is_disk_full(path.parent))


def _code(error: BaseException) -> int | None:
    return getattr(error, "code", None) if isinstance(error, lmdb.Error) else getattr(error, "errno", None)
