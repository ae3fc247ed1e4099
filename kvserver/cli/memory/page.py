"""A member's memory page, as far as kvctl shows it.

Rules: read leniently where the page says null (no /proc, no leader), strictly where a figure must be: a page of another shape is a
`PageError`, never a traceback. Owners are taken as they come, so that a newer server's are shown, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvserver.errors import KvError

_NO_TEXT: Final = ""


class PageError(KvError):
    """The answer is no memory page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whom the log window waits for: `claim` says why, `remaining_s` for how long yet at most (None: as long as that lasts)."""

    name: str
    claim: str
    entries: int
    bytes: int
    remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberMemory:
    """One member. Sizes in bytes; those of the process are None where the system doesn't tell."""

    name: str
    role: str
    term: int
    rss_bytes: int | None
    anonymous_bytes: int | None
    file_bytes: int | None
    accounted_bytes: Mapping[str, int]
    first_index: int
    applied_index: int
    last_index: int
    window_entries: int
    window_bytes: int
    max_window_bytes: int
    holder: Holder | None
    page: Mapping[str, Any]

    @property
    def total_accounted_bytes(self) -> int:
        """The sum over the owners: an upper bound, as they share entries."""
        return sum(self.accounted_bytes.values())


def parse_page(text: bytes) -> MemberMemory:
    """Read a page. Raises PageError."""
    try:
        page = json.loads(text)
        return _member(page)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PageError(f"its answer is no memory page: {type(error).__name__}: {error}") from None


def _member(page: Mapping[str, Any]) -> MemberMemory:
    raft, window, process = page["raft"], page["window"], page["process"]
    return MemberMemory(
        name=_name(page["member"]),
        role="learner" if raft["is_learner"] else str(raft["role"]),
        term=int(raft["term"]),
        rss_bytes=_optional(process["rss_bytes"]),
        anonymous_bytes=_optional(process["anonymous_bytes"]),
        file_bytes=_optional(process["file_bytes"]),
        accounted_bytes={str(owner): int(size) for owner, size in page["accounted_bytes"].items()},
        first_index=int(window["first_index"]),
        applied_index=int(raft["applied_index"]),
        last_index=int(window["last_index"]),
        window_entries=int(window["entries"]),
        window_bytes=int(window["bytes"]),
        max_window_bytes=int(window["limits"]["bytes"]),
        holder=None if window["held_by"] is None else _holder(window["held_by"]),
        page=page,
    )


def _holder(held: Mapping[str, Any]) -> Holder:
    remaining_s = held["remaining_s"]
    return Holder(
        name=_name(held),
        claim=str(held["claim"]),
        entries=int(held["entries"]),
        bytes=int(held["bytes"]),
        remaining_s=None if remaining_s is None else float(remaining_s),
    )


def _name(reference: Mapping[str, Any]) -> str:
    """A member by its name; one that never published any by its id."""
    return str(reference["name"] or reference["id"])


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
