"""What can go wrong with the log on disk, and what the operator does about it.

Rules: one base, `WalError`; a leaf carries what is known (file, offset, index) as fields and in its text, and its text ends with what to
do. `deterministic` says whether the same call on the same files fails again; nothing here is retryable in place: a log that failed is
opened anew by the next process.

Invariants: an error raised by `Wal.open` before its repair has begun leaves every file as it was found.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

from raft.types import Index, Term
from wal.guides import WAY_OUT, guide
from wal.reserve import OUT_OF_FILES_ERRNOS

REPLACE_MEMBER: Final = f"Keep a copy of the directory, do not delete or edit single WAL files; then {WAY_OUT}."
VERSION_OFFSET_BYTES: Final = 8
"""Where a segment's format version stands (the table is in segment.py)."""
FREE_SPACE: Final = f"free space on its file system ({guide('disk-full')})"

MORE_FILES: Final = "let the process open more files (ulimit -n) or lower --max-connections"


class WalError(Exception):
    """The base of everything that the log raises about its files."""

    deterministic: ClassVar[bool] = True
    what: str = ""
    """What is wrong, without the file and without advice; empty where the text is short by itself."""


class WalExistsError(WalError):
    """`Wal.create` met a directory that already holds something."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"{directory}: a write-ahead log, or something else, is already there. Choose another data directory or start from this one."
        )
        self.directory = directory


class WalMissingError(WalError):
    """`Wal.open` met a directory that is absent or holds no segment."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}: there is no write-ahead log segment here. Check the data directory's path. {REPLACE_MEMBER}")
        self.directory = directory


class WalIOError(WalError):
    """The operating system refused an operation while the log was created, opened, read or released."""

    deterministic = False

    def __init__(self, operation: str, path: Path, cause: OSError) -> None:
        super().__init__(
            f"{path}: {operation} failed: {cause.strerror or cause}. Check the disk, its free space and the directory's permissions."
        )
        self.operation = operation
        self.path = path
        self.errno = cause.errno


def _remedy(cause: BaseException | None) -> str:
    """What to do about a failed write, at the beginning of a sentence."""
    is_out_of_files = isinstance(cause, OSError) and cause.errno in OUT_OF_FILES_ERRNOS
    return MORE_FILES[0].upper() + MORE_FILES[1:] if is_out_of_files else "Check the disk and its free space"


class WalFailedError(WalError):
    """A write or a sync failed (now or earlier): what reached the disk is unknown, so this instance does nothing more.

    Nothing of the failing save may be acknowledged. The process ends; the next `Wal.open` proves the tail again.
    """

    deterministic = False

    def __init__(self, path: Path, cause: BaseException | None) -> None:
        super().__init__(
            f"{path}: a write or sync of the write-ahead log failed ({cause}); what reached the disk is unknown. Nothing more is"
            f" acknowledged. {_remedy(cause)}, then restart the process: it proves the end of the log again."
        )
        self.path = path


class WalNoSpaceError(WalError):
    """There is no space, or no file descriptor, for the next segment. What was saved is durable, the log lives: make the same call again.

    `saved_entries` is how many of the entries that were being written are durable; None: all of them.
    """

    deterministic = False

    def __init__(self, path: Path, cause: OSError) -> None:
        is_out_of_files = cause.errno in OUT_OF_FILES_ERRNOS
        wanting = (
            "there is no file descriptor for this write-ahead log segment"
            if is_out_of_files
            else "there is no space for this write-ahead log segment"
        )
        super().__init__(
            f"{path}: {wanting}: {cause.strerror or cause}. Nothing is lost and nothing more is acknowledged; "
            f"{MORE_FILES if is_out_of_files else FREE_SPACE}, and the log goes on by itself."
        )
        self.path = path
        self.cause = cause
        self.saved_entries: int | None = None


class WalClosedError(WalError):
    """The log was closed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}: the write-ahead log is closed. Open it again.")
        self.directory = directory


class IllegalSaveError(WalError):
    """The caller asked the log to record something that its own reader would refuse. Nothing was written."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the log refuses to record this: {reason}. This is a defect of the caller; nothing was written.")
        self.reason = reason


class MetadataMismatchError(WalError):
    """The log belongs to another cluster or another member."""

    def __init__(self, path: Path, field: str, expected: int, found: int) -> None:
        super().__init__(
            f"{path}: this log belongs to {field} {found:x}, but this process is {field} {expected:x}. Check the data directory's path and"
            " the cluster flags; a directory can not move between members or clusters."
        )
        self.path = path
        self.field = field
        self.expected = expected
        self.found = found


class FormatVersionError(WalError):
    """A segment has a format version that this program does not read."""

    def __init__(self, path: Path, version: int) -> None:
        self.reason = f"WAL format version {version} is not one that this program reads"
        self.what = f"at offset {VERSION_OFFSET_BYTES}: {self.reason}"
        super().__init__(
            f"{path}: {self.what}. Use the program version that wrote it; if that is this one, the file is damaged. {REPLACE_MEMBER}"
        )
        self.path = path
        self.offset_bytes = VERSION_OFFSET_BYTES
        self.version = version


class DamagedError(WalError):
    """Bytes on disk are not what was written, and no repair is safe."""

    def __init__(self, path: Path, offset_bytes: int, last_index: Index, reason: str) -> None:
        self.what = f"damaged at offset {offset_bytes}, behind index {last_index}: {reason}"
        super().__init__(f"{path}: {self.what}. Acknowledged entries may be lost, so nothing was repaired. {REPLACE_MEMBER}")
        self.path = path
        self.offset_bytes = offset_bytes
        self.last_index = last_index
        self.reason = reason


class SegmentError(WalError):
    """The set of segment files is not the one that was written: one is missing, empty, foreign, renamed or out of place.

    `offset_bytes` is set where the file's own bytes say so.
    """

    def __init__(self, path: Path, reason: str, offset_bytes: int | None = None) -> None:
        self.what = f"at offset {offset_bytes}: {reason}" if offset_bytes is not None else reason
        super().__init__(f"{path}: {self.what}. Put the missing or original file back if you have it. {REPLACE_MEMBER}")
        self.path = path
        self.reason = reason
        self.offset_bytes = offset_bytes


class AppliedMismatchError(WalError):
    """The log holds another entry than the one that the store applied at this index: an older or a foreign copy of one of the two."""

    def __init__(self, path: Path, index: Index, wal_term: Term, store_term: Term) -> None:
        self.what = (
            f"the log's entry {index} is of term {wal_term}, but the store applied entry {index} of term {store_term}: the log and the"
            " store are not of one piece"
        )
        super().__init__(f"{path}: {self.what}. Nothing was changed. Put back the parts that belong together. {REPLACE_MEMBER}")
        self.path = path
        self.index = index
        self.wal_term = wal_term
        self.store_term = store_term


class LostEntriesError(WalError):
    """The log ends before an index that this member has committed or applied."""

    def __init__(self, path: Path, offset_bytes: int, last_index: Index, required_index: Index) -> None:
        self.what = (
            f"the log ends at offset {offset_bytes} with index {last_index}, but index {required_index} is known to be committed: entries"
            " are lost"
        )
        super().__init__(f"{path}: {self.what}. Nothing was changed. {REPLACE_MEMBER}")
        self.path = path
        self.offset_bytes = offset_bytes
        self.last_index = last_index
        self.required_index = required_index
