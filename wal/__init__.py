"""The write-ahead log of one member. `log.py` is the door; `record.py`, `codec.py` and `segment.py` hold the bytes."""

from wal.codec import Marker, Metadata
from wal.errors import (
    AppliedMismatchError,
    DamagedError,
    FormatVersionError,
    IllegalSaveError,
    LostEntriesError,
    MetadataMismatchError,
    SegmentError,
    WalClosedError,
    WalError,
    WalExistsError,
    WalFailedError,
    WalIOError,
    WalMissingError,
    WalNoSpaceError,
)
from wal.files import File, Files, OsFile, OsFiles
from wal.guides import WAY_OUT, guide
from wal.history import HistoryGoneError, HistoryReader
from wal.identity import read_metadata
from wal.log import DEFAULT_SEGMENT_BYTES, Recovered, SegmentInfo, Wal
from wal.reader import EntrySink
from wal.reserve import DescriptorReserve
from wal.writer import MAX_ENTRY_DATA_BYTES

__all__ = [
    "DEFAULT_SEGMENT_BYTES",
    "MAX_ENTRY_DATA_BYTES",
    "WAY_OUT",
    "AppliedMismatchError",
    "DamagedError",
    "DescriptorReserve",
    "EntrySink",
    "File",
    "Files",
    "FormatVersionError",
    "HistoryGoneError",
    "HistoryReader",
    "IllegalSaveError",
    "LostEntriesError",
    "Marker",
    "Metadata",
    "MetadataMismatchError",
    "OsFile",
    "OsFiles",
    "Recovered",
    "SegmentError",
    "SegmentInfo",
    "Wal",
    "WalClosedError",
    "WalError",
    "WalExistsError",
    "WalFailedError",
    "WalIOError",
    "WalMissingError",
    "WalNoSpaceError",
    "guide",
    "read_metadata",
]
