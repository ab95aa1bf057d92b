from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skiff.report import svg


def parse(chart: str) -> ElementTree.Element:
    """The chart as XML (legend included); raises when it is not well formed."""
    return ElementTree.fromstring(f"<div>{chart}</div>")


def test_nothing_to_draw_is_said() -> None:
    assert svg.line_chart([], x_label="step") == svg.EMPTY
    assert svg.line_chart([svg.Line("a", [])], x_label="step") == svg.EMPTY
    assert svg.stacked_bars([], colours={}, x_label="step") == svg.EMPTY
    assert svg.stacked_bars([svg.Column("1", {})], colours={}, x_label="step") == svg.EMPTY
    assert svg.time_line([], x_format=svg.plain) == svg.EMPTY


@pytest.mark.parametrize("points", [[(3.0, 0.0)], [(1.0, 0.5), (2.0, 0.5)], [(0.0, -1e-9)]])
def test_a_flat_line_or_a_single_point_has_an_axis(points: list[tuple[float, float]]) -> None:
    root = parse(svg.line_chart([svg.Line("a", points)], x_label="step"))
    assert len(root.findall(".//circle")) == len(points)


def test_names_are_escaped() -> None:
    hostile = '<script>"x"&'
    chart = svg.stacked_bars(
        [svg.Column(hostile, {hostile: 1.0, "b": 1.0})], colours={}, x_label=hostile
    )
    assert parse(chart).findall(".//script") == []


def test_bars_add_up_to_the_axis() -> None:
    columns = [svg.Column("1", {"a": 0.25, "b": 0.75}), svg.Column("2", {"a": 1.0})]
    root = parse(svg.stacked_bars(columns, colours={"a": 0, "b": 1}, x_label="step"))
    heights = [float(bar.attrib["height"]) for bar in root.findall(".//rect")]
    whole = svg.HEIGHT - svg.BOTTOM - svg.TOP
    assert heights[0] + heights[1] == pytest.approx(whole, abs=0.2)
    assert heights[2] == pytest.approx(whole, abs=0.2)


def test_a_part_without_a_colour_is_drawn_grey() -> None:
    root = parse(svg.stacked_bars([svg.Column("1", {"new": 1.0})], colours={"a": 0}, x_label="s"))
    assert [bar.attrib["class"] for bar in root.findall(".//rect")] == [f"bar c{svg.GREY}"]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_axis_covers_the_data_with_a_readable_number_of_ticks(
    one: float, other: float, whole: bool
) -> None:
    low, high = sorted((one, other))
    axis = svg.Axis.over(low, high, 0, 100, whole=whole)
    assert -1e-6 <= axis.at(low) <= axis.at(high) <= 100 + 1e-6
    assert len(axis.ticks) <= 12
    assert all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick in axis.ticks)
    assert all(tick == int(tick) for tick in axis.ticks) or not whole
