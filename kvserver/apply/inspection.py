"""Looking into a store: what it says about itself, without opening it for use."""

from __future__ import annotations

from pathlib import Path

from kvserver.apply import meta
from kvserver.apply.meta import Meta
from kvserver.mvcc import META, TABLES
from kvserver.storage import LayeredReader, StoreUnreadableError, read_only_env
from raft.types import SnapshotMetadata


def inspect(path: Path) -> Meta:
    """Read the meta of a store that nobody has open: a copy.

    Raises:
        StoreUnreadableError: not an intact store.
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


def read_meta(reader: meta.MetaReader, path: Path) -> Meta | None:
    """The meta of the store in `path`, None of a new one. Raises StoreUnreadableError."""
    try:
        return meta.read(reader)
    except ValueError as error:
        raise StoreUnreadableError(path, str(error)) from error


def position_of(found: Meta) -> SnapshotMetadata:
    """What a snapshot with this meta covers."""
    return SnapshotMetadata(index=found.index, term=found.term, conf_state=found.conf_state)
