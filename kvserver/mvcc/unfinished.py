"""A request that is on its way into the tables: what it is and how far it has come, in the meta table.

Purpose: a request that deletes very many keys is written slice by slice, over several of the store's batches (docs/adr/0008). Between two
slices the tables hold changes of the revision to come, which no reader sees (`Snapshot.unfinished`), and these two rows. They are in the
same batch as the slice, so after a crash the request goes on exactly behind the last slice that is on disk, and not one change is made
twice or left out. The last slice removes them.

    key (table meta)      value
    unfinished            how far it is, below
    unfinished_request    what it is: the bytes that its caller gave (the entry's data), unchanged

    unfinished, big-endian
    0   8   operation: the number of the operation that goes on, 0 is the first of those that run
    8   8   changes: how many keys are changed so far, which is the sub revision of the next one
    16  n   key: where the operation goes on, which is behind the last key that is done (that key and a zero byte)
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from kvserver.errors import FatalError
from kvserver.mvcc.keyspace import Writer
from kvserver.mvcc.layout import META
from kvserver.storage import Reader

PROGRESS_KEY: Final = b"unfinished"
REQUEST_KEY: Final = b"unfinished_request"

_HEAD: Final = struct.Struct(">QQ")


class UnfinishedMismatchError(FatalError):
    """What is to be applied isn't the request that was begun: to go on would leave half of that one behind."""

    def __init__(self) -> None:
        super().__init__(
            "the store holds a part of a request that changes very many keys, and the log goes on with another one: store and log don't "
            "belong together; replace this member"
        )


class Progress(NamedTuple):
    """How far a request is: everything of `operation` that comes before `key` is done, in `changes` changes."""

    operation: int
    changes: int
    key: bytes


def read_progress(reader: Reader) -> Progress | None:
    """How far the request is that was begun and isn't finished; None if there is none. Raises CorruptError."""
    data = reader.get(META, PROGRESS_KEY)
    if data is None:
        return None
    operation, changes = _HEAD.unpack_from(data)
    return Progress(operation, changes, data[_HEAD.size :])


def read_request(reader: Reader) -> bytes:
    """What that request is. Raises CorruptError."""
    return reader.get(META, REQUEST_KEY) or b""


def begin(writer: Writer, request: bytes) -> None:
    """Remember what is being written."""
    writer.put(META, REQUEST_KEY, request)


def save_progress(writer: Writer, progress: Progress) -> None:
    """A slice is written, and more are to come."""
    writer.put(META, PROGRESS_KEY, _HEAD.pack(progress.operation, progress.changes) + progress.key)


def end(writer: Writer) -> None:
    """The last slice is written."""
    writer.delete(META, PROGRESS_KEY)
    writer.delete(META, REQUEST_KEY)
