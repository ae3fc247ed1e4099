"""The chart writer: round axes, right places, well-formed text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bench.plot import Series, chart, project, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (6.0, [0, 1, 2, 3, 4, 5, 6]),
        (6.1, [0, 2, 4, 6, 8]),
        (1_837.0, [0, 500, 1000, 1500, 2000]),
        (0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (100.0, [0, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round_and_end_at_the_first_one_not_below_the_highest(highest: float, expected: list[float]) -> None:
    assert ticks(highest) == pytest.approx(expected)


@pytest.mark.parametrize("highest", [0.0, -1.0, float("nan"), float("inf")])
def test_ticks_of_nothing_to_show_are_zero_and_one(highest: float) -> None:
    assert ticks(highest) == [0.0, 1.0]


@pytest.mark.parametrize("exponent", range(-3, 9))
@pytest.mark.parametrize("factor", [1.0, 1.01, 2.0, 3.3, 4.999, 5.0, 7.7, 9.99])
def test_ticks_cover_any_value_with_few_lines(exponent: int, factor: float) -> None:
    highest = factor * 10.0**exponent
    found = ticks(highest)
    assert found[-1] >= highest * (1 - 1e-6)
    assert found[-2] < highest
    assert 3 <= len(found) <= 8


def test_a_value_is_projected_onto_its_axis() -> None:
    assert project(0, 200, 70, 800) == 70
    assert project(50, 200, 70, 800) == 270
    assert project(200, 200, 370, -330) == 40


def test_a_chart_is_well_formed_and_holds_one_line_per_series_with_points() -> None:
    series = [
        Series(label="kvserver <anon>", points=[(0, 30), (10, 60)]),
        Series(label="etcd & co", points=[(0, 30), (5, 100), (10, 200)], colour=1),
        Series(label="empty", points=[], colour=2, is_dashed=True),
    ]
    root = ET.fromstring(chart('a "title" <1>', "seconds", "MB", series, width=500, height=300))
    lines = root.findall(f"{SVG}polyline")
    assert [len((line.get("points") or "").split()) for line in lines] == [2, 3]
    texts = [element.text for element in root.findall(f"{SVG}text")]
    assert {'a "title" <1>', "seconds", "MB", "kvserver <anon>", "etcd & co", "200"} <= set(texts)


def test_lines_stay_within_the_axes_and_higher_values_are_drawn_higher() -> None:
    root = ET.fromstring(chart("t", "x", "y", [Series(label="a", points=[(0, 0), (7, 33), (9, 91)])], width=500, height=300))
    line = root.find(f"{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in (line.get("points") or "").split()]
    assert points[0] == (70, 250)
    assert all(70 <= x <= 480 and 40 <= y <= 250 for x, y in points)
    assert points[0][1] > points[1][1] > points[2][1]


def test_a_dashed_series_has_the_colour_of_its_system() -> None:
    series = [Series(label="a", points=[(0, 1), (1, 1)], colour=1), Series(label="b", points=[(0, 2), (1, 2)], colour=1, is_dashed=True)]
    solid, dashed = ET.fromstring(chart("t", "x", "y", series)).findall(f"{SVG}polyline")
    assert solid.get("stroke") == dashed.get("stroke")
    assert solid.get("stroke-dasharray") is None
    assert dashed.get("stroke-dasharray") is not None


def test_a_chart_without_any_point_is_still_a_chart() -> None:
    assert ET.fromstring(chart("t", "x", "y", [])).tag == f"{SVG}svg"
