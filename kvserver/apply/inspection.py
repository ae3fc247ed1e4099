"""Looking into a store: what it says about itself, without opening it for use."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from kvserver.apply import meta
from kvserver.apply.meta import Meta
from kvserver.mvcc import META, TABLES, describe_row
from kvserver.storage import (
    Checking,
    DamagedRowError,
    LayeredReader,
    StoreDamagedError,
    StoreUnreadableError,
    check_structure,
    read_only_env,
)
from raft.types import SnapshotMetadata


def inspect(path: Path, checking: Checking | None = None) -> Meta:
    """Check the pages of a store that nobody has open (a copy), and read its meta. Blocking: seconds for a GB.

    Raises:
        StoreUnreadableError: not an intact store.
        CheckStoppedError: `checking` was stopped.
    """
    check_structure(path, TABLES, describe_row=describe_row, checking=checking)
    return inspect_checked(path)


def inspect_checked(path: Path) -> Meta:
    """Read the meta of a store that nobody has open and whose pages were checked just before. Blocking for some page reads.

    Raises:
        StoreUnreadableError: it has none, or another format's.
    """
    env = read_only_env(path, tables=len(TABLES))
    try:
        try:
            db = env.open_db(TABLES[META], create=False)
        except Exception as error:
            raise StoreUnreadableError(path, f"it has no meta table: {error}") from error
        reader = LayeredReader(env, [db], ())
        try:
            found = read_meta(reader, path)
        finally:
            reader.close()
    finally:
        env.close()
    if found is None:
        raise StoreUnreadableError(path, "it is empty")
    return found


def read_meta(reader: LayeredReader, path: Path) -> Meta | None:
    """The meta of the store in `path`, None of a new one. Raises StoreUnreadableError."""
    try:
        unsealed = meta.unsealed_format(reader.stored(META, meta.FORMAT_KEY))
        if unsealed is not None:
            raise StoreUnreadableError(path, meta.other_format(unsealed))
        return meta.read(reader)
    except DecodeError as error:
        raise StoreDamagedError(path, f"a row of its meta table can't be read: {error}") from error
    except ValueError as error:
        raise StoreUnreadableError(path, str(error)) from error
    except DamagedRowError as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: DamagedRowError) -> StoreDamagedError:
    """What a damaged row that a start needs is to the operator."""
    return StoreDamagedError(path, f"{describe_row(error.table, error.key)} {error.reason}")


def position_of(found: Meta) -> SnapshotMetadata:
    """What a snapshot with this meta covers."""
    return SnapshotMetadata(index=found.index, term=found.term, conf_state=found.conf_state)
