"""Memory pages as text: blocks, tables, JSON.

Rules: pure. Sizes are in powers of 1024 (the limits are), with one decimal; the JSON has exact figures: each endpoint's page as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from kvserver.cli.memory.asking import Answer
from kvserver.cli.memory.page import Holder, MemberMemory
from kvserver.cli.output.json import dump
from kvserver.cli.output.table import render

OVERVIEW_HEADER: Final = (
    "endpoint",
    "member",
    "role",
    "rss",
    "anon",
    "file",
    "accounted",
    "window",
    "[first .. applied .. last]",
    "held by",
)
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_UNKNOWN: Final = "?"


def format_bytes(size_bytes: int | None) -> str:
    """`512 B`, `1.5 KiB`, `64.0 MiB`; `?` for what isn't known."""
    if size_bytes is None:
        return _UNKNOWN
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size, power = size_bytes / 1024, 0
    while size >= 1023.95 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.1f} {_UNITS[power]}"


def as_blocks(answers: Sequence[Answer]) -> bytes:
    """The simple format: a paragraph for each endpoint."""
    return "\n".join(_block(answer) for answer in answers).encode("utf-8", "surrogateescape")


def as_tables(answers: Sequence[Answer]) -> bytes:
    """Two boxed tables: the overview, and the accounted bytes by owner."""
    return render(OVERVIEW_HEADER, _overview(answers)) + render(("accounted bytes", *_columns(answers)), _by_owner(answers))


def as_json(answers: Sequence[Answer]) -> bytes:
    """One line: a list in the order of the endpoints."""
    return dump(
        [
            {"Endpoint": answer.endpoint, "Memory": answer.memory.page}
            if answer.memory is not None
            else {"Endpoint": answer.endpoint, "Error": answer.error}
            for answer in answers
        ]
    )


def as_lines(answers: Sequence[Answer]) -> list[str]:
    """Both tables without boxes, for `top`."""
    return [
        *_aligned([tuple(title.upper() for title in OVERVIEW_HEADER), *_overview(answers)]),
        "",
        *_aligned([("ACCOUNTED BYTES", *_columns(answers)), *_by_owner(answers)]),
    ]


def holder_text(holder: Holder | None) -> str:
    """`kv3 (down) 1.2 MiB, 1200 entries`; `nobody`."""
    if holder is None:
        return "nobody"
    return f"{holder.name} ({holder.claim.replace('_', ' ')}) {format_bytes(holder.bytes)}, {_count(holder.entries)}"


def _block(answer: Answer) -> str:
    member = answer.memory
    if member is None:
        return f"{answer.endpoint}: unreachable: {answer.error}\n"
    owners = ", ".join(f"{_owner(name)} {format_bytes(size)}" for name, size in member.accounted_bytes.items() if size)
    limit = format_bytes(member.max_window_bytes)
    lines = [
        f"{answer.endpoint}: {member.name}, {member.role} in term {member.term}",
        f"  memory     rss {format_bytes(member.rss_bytes)} = anonymous {format_bytes(member.anonymous_bytes)} "
        f"+ file {format_bytes(member.file_bytes)}",
        f"  accounted  {format_bytes(member.total_accounted_bytes)}: {owners or 'nothing'}{_rest(member)}",
        f"  window     {_span(member)}: {_count(member.window_entries)}, {format_bytes(member.window_bytes)} of {limit}",
        f"  held by    {holder_text(member.holder)}{_until(member.holder)}",
    ]
    return "\n".join(lines) + "\n"


def _rest(member: MemberMemory) -> str:
    """What no owner counts."""
    rest_bytes = (member.anonymous_bytes or 0) - member.total_accounted_bytes
    return f"; {format_bytes(rest_bytes)} are the program, its libraries and what the allocator keeps" if rest_bytes > 0 else ""


def _until(holder: Holder | None) -> str:
    if holder is None or holder.remaining_s is None or holder.claim == "active":  # an active one is heard from all the time
        return ""
    return f", for {holder.remaining_s:.0f} s more at most"


def _overview(answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    return [_overview_row(answer) for answer in answers]


def _overview_row(answer: Answer) -> tuple[str, ...]:
    member = answer.memory
    if member is None:
        return (answer.endpoint, "", "unreachable", *[""] * 6, answer.error)
    return (
        answer.endpoint,
        member.name,
        member.role,
        format_bytes(member.rss_bytes),
        format_bytes(member.anonymous_bytes),
        format_bytes(member.file_bytes),
        format_bytes(member.total_accounted_bytes),
        format_bytes(member.window_bytes),
        _span(member),
        holder_text(member.holder),
    )


def _by_owner(answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    """A row for each owner, a column for each member that answered."""
    members = [answer.memory for answer in answers if answer.memory is not None]
    owners = dict.fromkeys(owner for member in members for owner in member.accounted_bytes)
    return [(_owner(owner), *(format_bytes(member.accounted_bytes.get(owner)) for member in members)) for owner in owners]


def _columns(answers: Sequence[Answer]) -> list[str]:
    return [answer.memory.name for answer in answers if answer.memory is not None]


def _owner(name: str) -> str:
    return name.replace("_", " ")


def _span(member: MemberMemory) -> str:
    return f"[{member.first_index} .. {member.applied_index} .. {member.last_index}]"


def _count(entries: int) -> str:
    return f"{entries} entry" if entries == 1 else f"{entries} entries"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip_longest(*table, fillvalue="")]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in table]
