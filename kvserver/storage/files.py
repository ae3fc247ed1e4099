"""The engine's file: opening, checking, copying and replacing it.

Layout of the directory that holds the store (mode 0700; files 0600)

    <name>          the LMDB file, no subdirectory
    <name>-lock     LMDB's reader table; made anew by the first process that opens the file, replaced with a replaced file

Rules
- The map is sparse and sized once, when the file is opened (`map_size_bytes`); it never grows while open. No WRITEMAP: a full disk is then
  an error and not a signal.
- LMDB writes its lock file through a map: a hole in it, met when the disk is full, would kill the process (SIGBUS). So its blocks are
  reserved before it is opened.
- A file is read page by page before LMDB maps it (checking.py), and refused if it is shorter than it says or any page is damaged:
  LMDB would follow a wrong number anywhere, past the file's end, which kills the process, or into the pages of an older state.
- A store is replaced by another file in two steps, `prepare_replace` and `replace` (swap.py says what happens between them). It is atomic:
  the new file is fsynced first, renamed over the old one, and the directory fsynced. A crash before the rename leaves the old store and
  the new file under its own name (and a lock file beside it that a start removes), a crash after it the new store.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import lmdb

from kvserver.storage.checking import CHECK_DISK, check_structure
from kvserver.storage.errors import StorageError, StoreDamagedError, StoreUnreadableError
from kvserver.storage.page_format import DescribeRow, Faults, describe_plainly
from kvserver.storage.pages import PageFile
from wal import Files

MAP_FACTOR: Final = 4
MAP_HEADROOM_BYTES: Final = 1 << 30
"""What always fits above the quota: writes that were admitted together, deletions, compactions, alarms. Address space, not disk."""
UNLIMITED_MAP_BYTES: Final = 1 << 40
"""The map without a quota."""
MAX_READERS: Final = 126
LOCK_BYTES: Final = 8192
"""LMDB's lock file for so many readers (64 bytes each, and as many for its head)."""
SPARE_TXNS: Final = 8

NO_SPACE_CODES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PROBE_BYTES: Final = 1 << 20
_MAP_UNIT_BYTES: Final = 1 << 16


def open_env(
    path: Path, *, quota_bytes: int, tables: Sequence[bytes], every_row: bool = False, checked: bool = False
) -> tuple[lmdb.Environment, list[Any]]:
    """Open (or create) the store's file and its tables, and clear the reader slots that dead processes left.

    Blocks for as long as reading the file takes, unless it was `checked` by the caller just before.

    Raises:
        StoreUnreadableError: not an LMDB file, truncated, damaged (see `check_structure`), or not accessible.
    """
    existed = path.exists()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if existed and not checked and path.stat().st_size:
        check_structure(path, tables, every_row=every_row)
    try:
        _reserve_lock(lock_path(path))
        env = lmdb.open(
            os.fsencode(path),  # a path need not be text
            map_size=map_size_bytes(quota_bytes=quota_bytes, file_bytes=path.stat().st_size if existed else 0),
            subdir=False,
            mode=0o600,
            max_dbs=len(tables),
            max_readers=MAX_READERS,
            max_spare_txns=SPARE_TXNS,
        )
        try:
            env.reader_check()
            dbs = [env.open_db(name) for name in tables]
        except BaseException:
            env.close()
            raise
    except (lmdb.Error, OSError) as error:
        raise StoreUnreadableError(path, str(error), CHECK_DISK) from error
    if not existed:
        sync_directory(path.parent)
    return env, dbs


def map_size_bytes(*, quota_bytes: int, file_bytes: int) -> int:
    """How large a store may become: several times the quota (negative: there is none), as freed pages are reused late; and room above both
    the quota and the file as it is, which an operator who lowers the quota needs for deleting."""
    if quota_bytes < 0:
        return _whole_pages(max(UNLIMITED_MAP_BYTES, 2 * file_bytes))
    return _whole_pages(max(MAP_FACTOR * quota_bytes, file_bytes) + MAP_HEADROOM_BYTES)


def in_use_bytes(env: lmdb.Environment, dbs: Sequence[Any]) -> int:
    """Bytes of the pages that hold something: the tables, the tree of tables, the two meta pages."""
    with env.begin() as txn:
        stats = [txn.stat(db) for db in dbs]
    stats.append(env.stat())
    pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
    return (pages + 2) * int(stats[-1]["psize"])


def read_only_env(path: Path, *, tables: int) -> lmdb.Environment:
    """Open a file that nobody writes and that `check_structure` found sound: LMDB would follow a wrong page number anywhere.

    Raises:
        StoreUnreadableError: missing, or not an LMDB file.
    """
    try:
        env = lmdb.open(os.fsencode(path), subdir=False, readonly=True, create=False, lock=False, max_dbs=tables)
    except (lmdb.Error, OSError) as error:
        raise StoreUnreadableError(path, str(error)) from error
    return env


def existing_tables(env: lmdb.Environment, tables: Sequence[bytes]) -> list[Any]:
    """The tables of a file that is open for reading, in order; None for one that it lacks, as an older version wrote it. Raises
    lmdb.Error."""
    found: list[Any] = []
    for name in tables:
        try:
            found.append(env.open_db(name, create=False))
        except lmdb.NotFoundError:
            found.append(None)
    return found


def copy_env(
    env: lmdb.Environment, path: Path, tables: Sequence[bytes], describe_row: DescribeRow = describe_plainly, *, store: Path
) -> None:
    """Write a compact, consistent, fsynced copy of what is committed in `store` to the new file `path`, and check every row of it: no
    damage is passed on. Blocks for as long as that takes (docs/architecture/storage.md: what a check costs).

    Raises:
        FileExistsError: `path` exists.
        StoreDamagedError: the store is damaged; says where in the store. Nothing is left of the copy.
        OSError: it can't be written; nothing is left of it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            env.copyfd(fd, compact=True)
            os.fsync(fd)
        finally:
            os.close(fd)
        check_structure(path, tables, every_row=True, describe_row=describe_row)
    except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
        path.unlink(missing_ok=True)
        raise _located(env, store, tables, describe_row, f"it can't be copied: {error}") from error
    except StoreDamagedError as error:
        path.unlink(missing_ok=True)
        raise _located(env, store, tables, describe_row, f"a copy of it is not sound: {error.reason}") from error
    except lmdb.Error as error:
        path.unlink(missing_ok=True)
        raise OSError(getattr(error, "code", errno.EIO), f"the copy of the store failed: {error}", str(path)) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _located(env: lmdb.Environment, store: Path, tables: Sequence[bytes], describe_row: DescribeRow, otherwise: str) -> StoreDamagedError:
    """Where the file `store` of an open environment is damaged, as committed; `otherwise` if all of it reads well. Blocks as `copy_env`
    does, with a read transaction open."""
    faults = Faults()
    with suppress(StorageError, StoreUnreadableError, OSError), env.begin() as txn, PageFile.at(store, txn.id(), describe_row) as file:
        for tree in file.trees(tables, faults.report):
            for _ in file.rows(tree, faults.report):
                pass
    if faults.count:
        return StoreDamagedError(store, faults.reason, faults.offset_bytes, faults.count - 1)
    return StoreDamagedError(store, otherwise)


def prepare_replace(source: Path, system: Files) -> None:
    """Make the content of `source` durable, and reserve a lock file for it, which `replace` takes along. Blocking.

    Raises:
        OSError: a code of `NO_SPACE_CODES`: there is no space for the lock file, try again; anything else: it can't be used.
    """
    file = system.open(source, writable=False)
    try:
        file.fsync()
    finally:
        file.close()
    _reserve_lock(lock_path(source))


def replace(path: Path, source: Path, system: Files) -> None:
    """Put `source`, and its lock file, in the place of the store `path`; both lie on one file system, and both may be open. Blocking.

    Needs no space after `prepare_replace`. See the module's rules for crashes. Goes through `system`, so that tests lose power at each
    step. Raises OSError.
    """
    lock_path(source).replace(lock_path(path))
    system.rename(source, path)
    system.fsync_dir(path.parent)


def lock_path(path: Path) -> Path:
    """Where LMDB keeps the reader table of the store `path`."""
    return path.with_name(path.name + "-lock")


def _reserve_lock(path: Path) -> None:
    """Make the lock file if there is none, with all its blocks."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, LOCK_BYTES)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(directory: Path) -> int:
    """How much more this process may write on the file system of `directory`, as of now; a user's quota is not seen."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def is_disk_full(directory: Path) -> bool:
    """Whether the file system of `directory` has no room for another mebibyte (for this user); found out by trying."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            written = probe.write(bytes(_PROBE_BYTES))
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in NO_SPACE_CODES
    return written < _PROBE_BYTES


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // _MAP_UNIT_BYTES) * _MAP_UNIT_BYTES
