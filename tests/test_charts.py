"""The charts of `make bench`: that they are whole, say what they show, and show it to scale."""

from xml.etree import ElementTree

import pytest

from bench.charts import Bar, Bars, Chart, Curve, Goal, Group, Panel, draw

BARS = Bars(
    "turns",
    "Turns & <tokens>",
    [Panel("µs", [Group([Bar("floor", 50), Bar("Turnkeeper", 100, ours=True)])], Goal(150, "≤ 3"))],
)
CURVE = Curve("history", "Cost", "messages", "µs", [(10, 200), (1_000, 210)], Goal(260, "≤ 1.3"))
SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw(chart))


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in parsed(chart).iter(f"{SVG}text")]


@pytest.mark.parametrize("chart", [BARS, CURVE], ids=["bars", "curve"])
def test_a_chart_is_one_whole_file_for_light_and_dark(chart: Chart) -> None:
    drawn = parsed(chart)
    assert drawn.findtext(f"{SVG}title") == chart.title
    assert "prefers-color-scheme: dark" in (drawn.findtext(f"{SVG}style") or "")


def test_bars_say_their_names_values_axis_and_goal() -> None:
    assert {"floor", "Turnkeeper", "50.0", "100", "µs", "≤ 3"} <= set(texts(BARS))


def test_a_bar_twice_the_value_is_twice_as_long_and_the_goal_stands_to_scale() -> None:
    drawn = parsed(BARS)
    floor, ours = (
        float(bar.attrib["width"])
        for bar in drawn.iter(f"{SVG}rect")
        if bar.attrib["class"] in ("other", "ours")
    )
    [goal] = [line for line in drawn.iter(f"{SVG}line") if line.attrib["class"] == "goal"]
    axis = min(float(line.attrib["x1"]) for line in drawn.iter(f"{SVG}line"))
    assert ours == pytest.approx(2 * floor, abs=0.2)
    assert float(goal.attrib["x1"]) - axis == pytest.approx(3 * floor, abs=0.3)


def test_a_curve_says_its_sizes_values_axes_and_goal() -> None:
    assert {"10", "1,000", "200", "210", "messages", "µs", "≤ 1.3"} <= set(texts(CURVE))


@pytest.mark.parametrize("value", [0, 0.003, 1, 99_999])
def test_no_value_is_too_small_or_large_to_draw(value: float) -> None:
    assert parsed(Bars("one", "One", [Panel("s", [Group([Bar("it", value)])])])) is not None
    assert parsed(Curve("one", "One", "n", "s", [(10, value)])) is not None
