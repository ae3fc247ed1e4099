"""The table format: boxes of ASCII with centred upper-case headings and cells aligned to the right.

A cell wider than 30 characters is broken at spaces, so that the lines come out as even as can be (least sum of squared slack, the last
line free); a single longer word makes the column wider. These are the habits of the table library behind etcdctl.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from kvserver.cli.output import rows
from kvserver.cli.output.types import EndpointHash, EndpointHealth, EndpointStatus, Rendered
from kvserver.pb import rpc_pb2 as pb

MAX_CELL_WIDTH: Final = 30
_OVERFULL_PENALTY: Final = 100_000


class TablePrinter:
    """Members and endpoints as tables."""

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """All members."""
        return render(rows.MEMBER_HEADER, rows.member_rows(answer))

    def status(self, found: Sequence[EndpointStatus]) -> bytes:
        """Statuses."""
        return render(rows.STATUS_HEADER, rows.status_rows(found))

    def hash_kv(self, found: Sequence[EndpointHash]) -> bytes:
        """Hashes."""
        return render(rows.HASH_HEADER, rows.hash_rows(found))

    def health(self, found: Sequence[EndpointHealth]) -> Rendered:
        """Health of each."""
        return Rendered(stdout=render(rows.HEALTH_HEADER, rows.health_rows(found)))


def render(header: Sequence[str], table: Sequence[Sequence[str]]) -> bytes:
    """The whole table."""
    widths = [min(len(title), MAX_CELL_WIDTH) for title in header]
    wrapped: list[list[list[str]]] = []
    for row in table:
        cells = []
        for column, text in enumerate(row):
            widths[column] = max(widths[column], min(len(text), MAX_CELL_WIDTH))
            lines = wrap(text, widths[column])
            widths[column] = max(widths[column], *map(len, lines))
            cells.append(lines)
        wrapped.append(cells)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    output = [rule, _line([title.upper() for title in header], widths, centred=True), rule]
    for cells in wrapped:
        output += [_line(line, widths) for line in zip_longest(*cells, fillvalue="")]
    output.append(rule)
    return ("\n".join(output) + "\n").encode("utf-8", "surrogateescape")


def _line(cells: Sequence[str], widths: Sequence[int], *, centred: bool = False) -> str:
    padded = [_centre(cell, width) if centred else cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "| " + " | ".join(padded) + " |"


def _centre(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)


def wrap(text: str, limit: int) -> list[str]:
    """Lines of at most `limit` characters (or the longest word's), as even as possible; every space between words is kept."""
    words = text.replace("\n", " ").split(" ")
    limit = max(limit, *map(len, words))
    count = len(words)
    best: list[tuple[int, int]] = [(0, count)] * (count + 1)
    for start in range(count - 1, -1, -1):
        if _length(words[start:]) <= limit:
            best[start] = (0, count)
            continue
        choices = []
        for end in range(start + 1, count):
            slack = limit - _length(words[start:end])
            choices.append((slack * slack + (_OVERFULL_PENALTY if slack < 0 else 0) + best[end][0], end))
        best[start] = min(choices, key=lambda choice: choice[0])
    lines, start = [], 0
    while start < count:
        end = best[start][1]
        lines.append(" ".join(words[start:end]))
        start = end
    return lines


def _length(words: Sequence[str]) -> int:
    return sum(map(len, words)) + len(words) - 1
