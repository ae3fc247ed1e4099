"""Whose log is in a directory: read before the log itself is opened, by a member that learns its own id from there.

Rules: reads one header and changes nothing. `Wal.open` checks every segment against the answer.
"""

from __future__ import annotations

from pathlib import Path

from wal.codec import Metadata
from wal.errors import WalIOError, WalMissingError
from wal.files import Files, OsFiles
from wal.segment import SUFFIX, ChunkedSource, parse_segment_name, read_header

OS_FILES = OsFiles()


def read_metadata(directory: Path, *, files: Files = OS_FILES) -> Metadata:
    """The cluster and the member that the oldest segment names.

    Raises:
        WalMissingError: there is no segment.
        WalError: its header is damaged or can't be read.
    """
    try:
        names = files.names(directory) if files.is_directory(directory) else []
        segments = sorted(name for name in names if name.endswith(SUFFIX) and parse_segment_name(name) is not None)
        if not segments:
            raise WalMissingError(directory)
        file = files.open(directory / segments[0], writable=False)
        try:
            header, *_ = read_header(ChunkedSource(file))
        finally:
            file.close()
    except OSError as error:
        raise WalIOError("reading whose log it is", directory, error) from error
    return header.metadata
