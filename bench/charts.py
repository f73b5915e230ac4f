"""Charts as SVG text, drawn by hand: bars that compare, and a line over a logarithmic axis.

They stand in pages of either colour: each paints its own ground, light or dark as the reader
prefers. Knows figures and their goals; not how they were measured.
"""

import math
from collections.abc import Iterator
from html import escape

import msgspec

WIDTH = 760
LEFT = 118  # where the axis stands, right of the bars' names
RIGHT = 84  # room for a value beside the longest bar
PLOT = WIDTH - LEFT - RIGHT
TOP = 58  # below the title
BAR, BAR_GAP, GROUP_GAP = 20, 6, 14
DIGIT = 7.5  # about the width of one

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.soft { fill: #59636e }
.tick { fill: #59636e; font-size: 12px }
.value { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.best { font-weight: 600 }
.ground { fill: #ffffff }
.grid { stroke: #d8dee4; stroke-width: 1 }
.other { fill: #a3adb8 }
.ours { fill: #0969da }
.curve { fill: none; stroke: #0969da; stroke-width: 2.5; stroke-linejoin: round }
.goal { stroke: #bc4c00; stroke-width: 1.5; stroke-dasharray: 5 4 }
.promise { fill: #bc4c00; font-size: 12px }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .soft, .tick { fill: #9198a1 }
  .value { stroke: #0d1117 }
  .ground { fill: #0d1117 }
  .grid { stroke: #30363d }
  .other { fill: #6e7681 }
  .ours { fill: #4493f8 }
  .curve { stroke: #4493f8 }
  .goal { stroke: #f0883e }
  .promise { fill: #f0883e }
}
"""


class Goal(msgspec.Struct, frozen=True):
    """A line across a chart: its place on the axis of values, and what it says."""

    value: float
    label: str


class Bar(msgspec.Struct, frozen=True):
    name: str
    value: float
    ours: bool = False


class Group(msgspec.Struct, frozen=True):
    """Bars that belong together, under a heading where there is more than one group."""

    bars: list[Bar]
    heading: str = ""


class Panel(msgspec.Struct, frozen=True):
    """Bars over one axis, which begins at nought. `axis` says what it counts, with the unit."""

    axis: str
    groups: list[Group]
    goal: Goal | None = None


class Bars(msgspec.Struct, frozen=True, tag=True):
    """Panels below each other. `name` is the file's."""

    name: str
    title: str
    panels: list[Panel]


class Curve(msgspec.Struct, frozen=True, tag=True):
    """A value against a size, from tens to tens of thousands. `name` is the file's."""

    name: str
    title: str
    x_axis: str
    y_axis: str
    points: list[tuple[float, float]]
    goal: Goal | None = None


class Line(msgspec.Struct, frozen=True):
    """A value over time. `axis` says what it counts, with the unit."""

    axis: str
    points: list[tuple[float, float]]


class Lines(msgspec.Struct, frozen=True, tag=True):
    """Lines below each other, over one axis of time. `name` is the file's."""

    name: str
    title: str
    x_axis: str
    lines: list[Line]


Chart = Bars | Curve | Lines


def draw(chart: Chart) -> str:
    """The chart as a whole SVG file."""
    match chart:
        case Bars():
            height, body = _draw_bars(chart)
        case Curve():
            height, body = _draw_curve(chart)
        case Lines():
            height, body = _draw_lines(chart)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img" aria-label="{escape(chart.title)}">\n'
        f"<title>{escape(chart.title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{height:g}" rx="8"/>\n'
        f"{_text(24, 32, chart.title, 'title')}\n" + "\n".join(body) + "\n</svg>\n"
    )


def short(value: float) -> str:
    """A value beside its bar: 12,345 · 98.7 · 1.23."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# --- Bars --------------------------------------------------------------------------------------


def _draw_bars(chart: Bars) -> tuple[float, list[str]]:
    y, body = float(TOP), list[str]()
    for panel in chart.panels:
        y, drawn = _draw_panel(panel, y)
        body += drawn
    return y, body


def _draw_panel(panel: Panel, top: float) -> tuple[float, list[str]]:
    """The panel from `top` on, and where it ends."""
    values = [bar.value for group in panel.groups for bar in group.bars]
    steps = _ticks(max([*values, panel.goal.value if panel.goal else 0]))
    scale = PLOT / max(steps[-1], *values)
    y = top + (20 if panel.goal else 0)
    axis_top, bars = y, list[str]()
    for group in panel.groups:
        y += GROUP_GAP if group is not panel.groups[0] else 4
        if group.heading:
            y += 14
            bars.append(_text(LEFT + 6, y, group.heading, "soft"))
            y += 7
        for bar in group.bars:
            bars += _draw_bar(bar, y, scale, panel.goal)
            y += BAR + BAR_GAP
    y += 2
    drawn: list[str] = []
    for step in steps:
        drawn.append(_line(LEFT + step * scale, axis_top, LEFT + step * scale, y, "grid"))
        drawn.append(_text(LEFT + step * scale, y + 17, _tick(step), "tick", "middle"))
    drawn += bars
    drawn.append(_text(LEFT + PLOT / 2, y + 38, panel.axis, "soft", "middle"))
    if panel.goal:
        drawn += _draw_goal_across(panel.goal, LEFT + panel.goal.value * scale, axis_top, y)
    return y + 58, drawn


def _draw_bar(bar: Bar, y: float, scale: float, goal: Goal | None) -> list[str]:
    length, middle = bar.value * scale, y + BAR / 2 + 4.5
    kind, weight = ("ours", "best") if bar.ours else ("other", "")
    value, at = short(bar.value), LEFT + length + 8
    if goal and at - 8 <= LEFT + goal.value * scale <= at + DIGIT * len(value):
        at = LEFT + goal.value * scale + 6  # else the goal's line would cross it out
    return [
        _text(LEFT - 10, middle, bar.name, weight, "end"),
        f'<rect class="{kind}" x="{LEFT}" y="{y:g}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        _text(at, middle, value, f"value {weight}".rstrip()),
    ]


def _draw_goal_across(goal: Goal, x: float, top: float, bottom: float) -> list[str]:
    left_half = x < LEFT + PLOT / 2
    side, anchor = (x - 4, "start") if left_half else (x + 4, "end")
    return [
        _line(x, top - 2, x, bottom, "goal"),
        _text(side, top - 8, goal.label, "promise", anchor),
    ]


# --- A curve -----------------------------------------------------------------------------------


def _draw_curve(chart: Curve) -> tuple[float, list[str]]:
    top, bottom = TOP + 14, TOP + 254
    sizes = [size for size, _ in chart.points]
    values = [value for _, value in chart.points]
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    steps = _ticks(max([*values, chart.goal.value if chart.goal else 0]))
    inset = 36  # so that the first and the last value have room

    def across(size: float) -> float:
        part = (math.log10(size) - low) / (high - low) if high > low else 0.5
        return LEFT + inset + part * (PLOT - 2 * inset)

    def up(value: float) -> float:
        return bottom - value / steps[-1] * (bottom - top)

    body: list[str] = []
    for step in steps:
        body.append(_line(LEFT, up(step), LEFT + PLOT, up(step), "grid"))
        body.append(_text(LEFT - 10, up(step) + 4, _tick(step), "tick", "end"))
    if chart.goal:
        y = up(chart.goal.value)
        body.append(_line(LEFT, y, LEFT + PLOT, y, "goal"))
        body.append(_text(LEFT + 6, y - 7, chart.goal.label, "promise"))
    path = " ".join(f"{across(size):.1f},{up(value):.1f}" for size, value in chart.points)
    body.append(f'<polyline class="curve" points="{path}"/>')
    for size, value in chart.points:
        body.append(f'<circle class="ours" cx="{across(size):.1f}" cy="{up(value):.1f}" r="4.5"/>')
        body.append(_text(across(size), up(value) + 22, short(value), "value", "middle"))
        body.append(_text(across(size), bottom + 19, _tick(size), "tick", "middle"))
    body.append(_text(LEFT + PLOT / 2, bottom + 42, chart.x_axis, "soft", "middle"))
    middle = (top + bottom) / 2
    body.append(
        f'<text class="soft" text-anchor="middle" transform="translate(46 {middle:g}) '
        f'rotate(-90)">{escape(chart.y_axis)}</text>'
    )
    return bottom + 62, body


# --- Lines over time ---------------------------------------------------------------------------

LINE_HEIGHT = 96


def _draw_lines(chart: Lines) -> tuple[float, list[str]]:
    last = max((x for line in chart.lines for x, _ in line.points), default=0) or 1
    steps = [step for step in _ticks(last) if step <= last]
    y, body = float(TOP + 8), list[str]()
    for line in chart.lines:
        body.append(_text(LEFT, y, line.axis, "soft"))
        body += _draw_line(line, y + 10, last)
        y += LINE_HEIGHT + 44
    bottom = y - 34
    for step in steps:
        x = LEFT + step / last * PLOT
        body.append(_text(x, bottom + 17, _tick(step), "tick", "middle"))
    body.append(_text(LEFT + PLOT / 2, bottom + 38, chart.x_axis, "soft", "middle"))
    return bottom + 56, body


def _draw_line(line: Line, top: float, last: float) -> list[str]:
    steps = _ticks(max((y for _, y in line.points), default=0))
    bottom, scale = top + LINE_HEIGHT, LINE_HEIGHT / steps[-1]
    drawn: list[str] = []
    for step in steps:
        drawn.append(_line(LEFT, bottom - step * scale, LEFT + PLOT, bottom - step * scale, "grid"))
        drawn.append(_text(LEFT - 10, bottom - step * scale + 4, _tick(step), "tick", "end"))
    path = " ".join(
        f"{LEFT + x / last * PLOT:.1f},{bottom - y * scale:.1f}" for x, y in line.points
    )
    return [*drawn, f'<polyline class="curve" points="{path}"/>']


# --- Strokes -----------------------------------------------------------------------------------


def _ticks(most: float) -> list[float]:
    """From nought to `most` or a little over it, in three to six round steps."""
    rough = (most or 1) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= rough)
    return [number * step for number in range(math.ceil((most or 1) / step - 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.10g}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    attributes = "".join(_attributes({"class": kind, "text-anchor": anchor}))
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'


def _attributes(values: dict[str, str]) -> Iterator[str]:
    return (f' {name}="{value}"' for name, value in values.items() if value)
