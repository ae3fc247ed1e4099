"""The engine's file: opening, checking, copying and replacing it.

Layout of the directory that holds the store (mode 0700; files 0600)

    <name>          the LMDB file, no subdirectory
    <name>-lock     LMDB's reader table; made anew by the first process that opens the file, removed with a replaced file

Rules
- The map is sparse and sized once, at `MAP_FACTOR` times the quota; it never grows while open. No WRITEMAP: a full disk is then an error
  and not a signal.
- A file shorter than its own meta page says is refused before anything reads it, because reading past its end would kill the process.
- `replace` is atomic: the new file is fsynced first, renamed over the old one, and the directory fsynced. A crash before the rename
  leaves the old store and the new file under its own name, a crash after it the new store; neither leaves anything to repair.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from kvserver.storage.errors import StoreUnreadableError

MAP_FACTOR: Final = 4
MIN_MAP_BYTES: Final = 64 << 20
MAX_READERS: Final = 126
SPARE_TXNS: Final = 8

NO_SPACE_CODES: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PROBE_BYTES: Final = 1 << 20


def open_env(path: Path, *, quota_bytes: int, tables: Sequence[bytes]) -> tuple[lmdb.Environment, list[Any]]:
    """Open (or create) the store's file and its tables, and clear the reader slots that dead processes left.

    Raises:
        StoreUnreadableError: not an LMDB file, truncated, or not accessible.
    """
    existed = path.exists()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        env = lmdb.open(
            str(path),
            map_size=max(MIN_MAP_BYTES, MAP_FACTOR * quota_bytes),
            subdir=False,
            mode=0o600,
            max_dbs=len(tables),
            max_readers=MAX_READERS,
            max_spare_txns=SPARE_TXNS,
        )
        try:
            _check_length(env, path)
            env.reader_check()
            dbs = [env.open_db(name) for name in tables]
        except BaseException:
            env.close()
            raise
    except (lmdb.Error, OSError) as error:
        raise StoreUnreadableError(path, str(error)) from error
    if not existed:
        sync_directory(path.parent)
    return env, dbs


def read_only_env(path: Path, *, tables: int) -> lmdb.Environment:
    """Open a copy that nobody writes, for checking it.

    Raises:
        StoreUnreadableError: missing, not an LMDB file, or truncated.
    """
    try:
        env = lmdb.open(str(path), subdir=False, readonly=True, create=False, lock=False, max_dbs=tables)
        try:
            _check_length(env, path)
        except BaseException:
            env.close()
            raise
    except (lmdb.Error, OSError) as error:
        raise StoreUnreadableError(path, str(error)) from error
    return env


def copy_env(env: lmdb.Environment, path: Path) -> None:
    """Write a compact, consistent, fsynced copy of what is committed to the new file `path`; blocks for as long as that takes.

    Raises:
        FileExistsError: `path` exists.
        OSError: it can't be written; nothing is left of it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            env.copyfd(fd, compact=True)
            os.fsync(fd)
        finally:
            os.close(fd)
    except lmdb.Error as error:
        path.unlink(missing_ok=True)
        raise OSError(getattr(error, "code", errno.EIO), f"the copy of the store failed: {error}", str(path)) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace(path: Path, source: Path) -> None:
    """Put `source` in the place of the closed store `path`; both lie on one file system. See the module's rules for crashes."""
    fd = os.open(source, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    lock_path(path).unlink(missing_ok=True)
    source.replace(path)
    sync_directory(path.parent)


def lock_path(path: Path) -> Path:
    """Where LMDB keeps the reader table of the store `path`."""
    return path.with_name(path.name + "-lock")


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_disk_full(directory: Path) -> bool:
    """Whether the file system of `directory` has no room for another mebibyte (for this user); found out by trying."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            written = probe.write(bytes(_PROBE_BYTES))
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in NO_SPACE_CODES
    return written < _PROBE_BYTES


def _check_length(env: lmdb.Environment, path: Path) -> None:
    size_bytes = path.stat().st_size
    needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if size_bytes < needed_bytes:
        raise StoreUnreadableError(
            path, f"it has {size_bytes} bytes but its meta page covers {needed_bytes}: it was truncated; restore this member from its peers"
        )
