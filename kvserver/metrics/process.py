"""The memory of this process as the kernel counts it.

Rules: read from /proc when asked (a fraction of a millisecond); where there is none, nothing is known, and None says so.

Source: proc(5), /proc/pid/status. RssAnon is what only this process can give back; RssFile are pages of mapped files (the store), which the
kernel takes back under pressure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ProcessMemory", "process_memory"]

_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Resident bytes: all, anonymous, and of mapped files. `rss_bytes` is a little more than the sum: it holds shared memory, too."""

    rss_bytes: int
    anonymous_bytes: int
    file_bytes: int


def process_memory(status: Path = _STATUS) -> ProcessMemory | None:
    """What /proc says; None where it says nothing."""
    try:
        rows = status.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return _parse(rows)


def _parse(rows: Iterable[str]) -> ProcessMemory | None:
    fields = dict(row.split(":", 1) for row in rows if ":" in row)
    try:
        rss, anonymous, file = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile"))
    except (KeyError, ValueError, IndexError):
        return None
    return ProcessMemory(rss_bytes=rss, anonymous_bytes=anonymous, file_bytes=file)
