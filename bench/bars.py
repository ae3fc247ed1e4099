"""Horizontal bars as SVG: one row per label, one panel per figure, each with its own scale.

Purpose: figures of different units over the same points, side by side, where the points have no numeric axis.

Rules: pure: the same input gives the same text; every bar starts at 0 and has its value beside it; a figure that is missing (None) has no
bar and says so; all text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from bench.plot import COLOURS

_ROW: Final = 22
_BAR: Final = 14
_TOP: Final = 64
_LABELS: Final = 210
_PANEL: Final = 230
_VALUE: Final = 58
_GAP: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure of every label, in their order."""

    title: str
    values: Sequence[float | None]


def bars(title: str, labels: Sequence[str], panels: Sequence[Panel]) -> str:
    """The SVG document.

    Raises:
        ValueError: a panel has not one value per label.
    """
    if any(len(panel.values) != len(labels) for panel in panels):
        raise ValueError("every panel needs one value per label")
    width, height = _LABELS + len(panels) * (_PANEL + _GAP), _TOP + len(labels) * _ROW + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 22, title, anchor="middle", size=15),
    ]
    parts += [_text(_LABELS - 8, _TOP + row * _ROW + _BAR - 3, label, anchor="end") for row, label in enumerate(labels)]
    for column, panel in enumerate(panels):
        parts += _panel(panel, _LABELS + column * (_PANEL + _GAP), COLOURS[column % len(COLOURS)])
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, left: float, colour: str) -> list[str]:
    highest = max((value for value in panel.values if value is not None), default=0.0)
    parts = [_text(left, _TOP - 14, panel.title)]
    for row, value in enumerate(panel.values):
        y = _TOP + row * _ROW
        length = (_PANEL - _VALUE) * value / highest if value and highest > 0 else 0.0
        if length > 0:
            parts.append(f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>')
        parts.append(_text(left + length + 5, y + _BAR - 3, shown(value)))
    return parts


def shown(value: float | None) -> str:
    """Three digits that matter; a dash for a missing value."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#212529">{escape(text)}</text>'
