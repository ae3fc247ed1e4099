"""Faults as words of a command line.

    OPERATION[,OPERATION...]:ERROR[:KEY=VALUE...]

    fdatasync:EIO:after=100              from the 101st fdatasync on
    sync:EIO:count=1:path=*.wal          the first fdatasync, fsync or fsync_dir of a WAL segment
    space:ENOSPC:when=/run/test/full     the disk is full for the log and the snapshots while that file exists
    pwritev:EIO:partial                  every write fails, half done

OPERATION is a method of `wal.Files` or `wal.File`, or a group: `sync`, `space` (what takes room), `any`. ERROR is a name of the errno
module. Keys: after=N (so many pass first), count=N (fail so often, then no more), path=PATTERN (of the file's name), when=FILE, partial.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from kvserver.testing.faults.injection import OPERATIONS, SYNCS, WRITES, Fault

GROUPS: Final = {"any": OPERATIONS, "sync": SYNCS, "space": WRITES, "open": frozenset({"open_read", "open_write"})}


class SpecificationError(ValueError):
    """The text is no fault; it says why."""


def parse_fault(text: str) -> Fault:
    """The fault that `text` describes. Raises SpecificationError."""
    names, _, rest = text.partition(":")
    error_name, _, options = rest.partition(":")
    operations: set[str] = set()
    for name in names.split(","):
        operations |= GROUPS.get(name, {name})
    number = getattr(errno, error_name, None)
    if not isinstance(number, int):
        raise SpecificationError(f"{text!r}: {error_name!r} is not an error of the errno module (EIO, ENOSPC, ...)")
    values = _read_options(text, options)
    try:
        return Fault(
            operations=frozenset(operations),
            errno=number,
            after=int(values.get("after", "0")),
            count=int(values["count"]) if "count" in values else None,
            path=values.get("path", "*"),
            when=Path(values["when"]) if "when" in values else None,
            partial=0.5 if "partial" in values else None,
        )
    except ValueError as error:
        raise SpecificationError(f"{text!r}: {error}") from error


def _read_options(text: str, options: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for option in options.split(":") if options else []:
        key, _, value = option.partition("=")
        if key not in ("after", "count", "path", "when", "partial") or bool(value) == (key == "partial"):
            raise SpecificationError(f"{text!r}: {option!r} is none of after=N, count=N, path=PATTERN, when=FILE, partial")
        values[key] = value
    return values
