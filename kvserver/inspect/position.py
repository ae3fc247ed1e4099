"""What the store says about itself, read page by page without LMDB, so that a damaged file or a running server does no harm."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from kvserver.apply import meta
from kvserver.apply.meta import Meta
from kvserver.mvcc import META, TABLES, describe_row
from kvserver.storage import StoreDamagedError, StoreUnreadableError
from kvserver.storage.page_format import Faults
from kvserver.storage.pages import PageFile
from kvserver.storage.seal import SEAL_BYTES


class _Rows:
    """The meta table as a MetaReader."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = rows

    def get(self, table: int, key: bytes) -> bytes | None:
        return self._rows.get(key) if table == META else None


def read_position(path: Path) -> Meta | None:
    """The meta of the store in `path`; None if there is no file, or nothing in it.

    Raises:
        StoreUnreadableError: its meta can't be read (StoreDamagedError: it is damaged); the text says why.
    """
    try:
        if path.stat().st_size == 0:
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnreadableError(path, error.strerror or str(error)) from error
    with PageFile.open(path, describe_row) as file:
        return meta_of(file)


def meta_of(file: PageFile) -> Meta | None:
    """The meta in an open file. Raises StoreUnreadableError."""
    faults = Faults()
    tree = file.trees(TABLES, faults.report)[META]
    format_row = next((row for row in file.rows_unsealed(tree, Faults().report) if row.key == meta.FORMAT_KEY), None)
    unsealed = None if format_row is None else meta.unsealed_format(format_row.value)
    if unsealed is not None:
        raise StoreUnreadableError(file.path, meta.other_format(unsealed))
    rows = {row.key: row.value[:-SEAL_BYTES] for row in file.rows(tree, faults.report)}
    faults.raise_any(file.path)
    try:
        return meta.read(_Rows(rows))
    except DecodeError as error:
        raise StoreDamagedError(file.path, f"a row of its meta table can't be read: {error}") from error
    except ValueError as error:
        raise StoreUnreadableError(file.path, str(error)) from error
