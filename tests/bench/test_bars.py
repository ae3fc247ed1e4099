"""Bars: one per value, each panel to its own scale, well-formed text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bench.bars import Panel, bars, shown

SVG = "{http://www.w3.org/2000/svg}"


def test_every_panel_has_a_bar_per_value_and_the_longest_fills_it() -> None:
    panels = [Panel(title="s", values=[1.0, 2.0, None]), Panel(title="MB", values=[300.0, 0.0, 150.0])]
    root = ET.fromstring(bars("<title> & more", ["a", "b", "c"], panels))
    widths: dict[str | None, list[float]] = {}
    for rectangle in root.findall(f"{SVG}rect")[1:]:
        widths.setdefault(rectangle.get("fill"), []).append(float(rectangle.get("width") or 0))
    seconds, megabytes = widths.values()
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert megabytes[0] == pytest.approx(2 * megabytes[1])
    assert seconds[1] == megabytes[0]
    texts = [element.text for element in root.findall(f"{SVG}text")]
    assert {"<title> & more", "a", "b", "c", "s", "MB", "1.00", "2.00", "-", "300", "0.00"} <= set(texts)


def test_a_panel_without_figures_has_no_bars() -> None:
    root = ET.fromstring(bars("t", ["a"], [Panel(title="s", values=[None])]))
    assert len(root.findall(f"{SVG}rect")) == 1


def test_a_panel_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one value per label"):
        bars("t", ["a", "b"], [Panel(title="s", values=[1.0])])


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")])
def test_a_value_has_three_digits(value: float | None, text: str) -> None:
    assert shown(value) == text
