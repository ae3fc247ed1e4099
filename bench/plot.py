"""Line charts as SVG, without a library: axes with round numbers, a legend, one line per series.

Purpose: pictures of memory over time that a browser and a repository page show; a hundred lines instead of a dependency.

Rules: pure: the same series give the same text. Values are plotted as they are; series are told apart by colour and, where it is asked for,
by a dashed line; all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

COLOURS: Final = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#5c5f66", "#c2255c")
_LEFT: Final = 70
_RIGHT: Final = 20
_TOP: Final = 40
_BOTTOM: Final = 50
_LEGEND_ROW: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: (x, y) in the order of x. Lines of the same `colour` number belong together."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    is_dashed: bool = False


def ticks(highest: float, count: int = 6) -> list[float]:
    """Round numbers from 0 to the first one not below `highest`: about `count` of them, in steps of 1, 2 or 5 times a power of ten."""
    if not math.isfinite(highest) or highest <= 0:
        return [0.0, 1.0]
    raw = highest / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    steps = math.ceil(highest / step - 1e-9)
    return [number * step for number in range(steps + 1)]


def project(value: float, highest: float, start: float, length: float) -> float:
    """Where `value` of [0, highest] lies on an axis from `start`; a negative `length` runs up the page."""
    return start + length * value / highest


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], *, width: int = 900, height: int = 420) -> str:
    """The SVG document."""
    x_ticks = ticks(max((x for each in series for x, _ in each.points), default=0.0), 10)
    y_ticks = ticks(max((y for each in series for _, y in each.points), default=0.0))
    across, up = width - _LEFT - _RIGHT, _TOP + _BOTTOM - height
    bottom = height - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 22, title, anchor="middle", size=15),
    ]
    for tick in y_ticks:
        y = project(tick, y_ticks[-1], bottom, up)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width - _RIGHT}" y2="{y:.1f}" stroke="#dee2e6"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    for tick in x_ticks:
        x = project(tick, x_ticks[-1], _LEFT, across)
        parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#495057"/>')
        parts.append(_text(x, bottom + 18, f"{tick:g}", anchor="middle"))
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{width - _RIGHT}" fill="none" stroke="#495057"/>')
    parts.append(_text(_LEFT + across / 2, height - 12, x_label, anchor="middle"))
    parts.append(_text(16, _TOP + (bottom - _TOP) / 2, y_label, anchor="middle", turned=True))
    parts += [_line(each, x_ticks[-1], y_ticks[-1], across, bottom, up) for each in series if each.points]
    parts += _legend(series)
    return "\n".join([*parts, "</svg>\n"])


def _line(series: Series, x_highest: float, y_highest: float, across: float, bottom: float, up: float) -> str:
    where = " ".join(f"{project(x, x_highest, _LEFT, across):.1f},{project(y, y_highest, bottom, up):.1f}" for x, y in series.points)
    return f'<polyline points="{where}" fill="none" stroke-width="1.8" {_stroke(series)}/>'


def _legend(series: Sequence[Series]) -> list[str]:
    parts = []
    for number, each in enumerate(series):
        y = _TOP + 14 + number * _LEGEND_ROW
        parts.append(f'<line x1="{_LEFT + 14}" y1="{y}" x2="{_LEFT + 44}" y2="{y}" stroke-width="2.5" {_stroke(each)}/>')
        parts.append(_text(_LEFT + 52, y + 4, each.label))
    return parts


def _stroke(series: Series) -> str:
    dashes = ' stroke-dasharray="5 4"' if series.is_dashed else ""
    return f'stroke="{COLOURS[series.colour % len(COLOURS)]}"{dashes}'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#212529"{turn}>{escape(text)}</text>'
