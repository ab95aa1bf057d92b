"""Small charts as inline SVG: lines with a band, stacked bars, a time line.

Written by hand since the report must be one file that works offline, is made within milliseconds
during a run, and prints at any size. Colours come from the page's CSS classes `c0` to `c9`.
Not covered: logarithmic axes, dates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40
MAX_DOTS = 60  # of a line: more would hide it
CHAR = 7  # width of a tick label's character, roughly
GREY = 9
EMPTY = '<p class="empty">no data yet</p>'

Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """`points` are (x, y) in order of x; `band` is (x, low, high) of an interval around them."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    colour: int = 0
    thin: bool = False


@dataclass(frozen=True)
class Column:
    """One stacked bar: parts from bottom to top, by name."""

    label: str
    parts: dict[str, float]


@dataclass(frozen=True)
class Span:
    """A named stretch of time, in seconds from the start."""

    name: str
    start: float
    seconds: float


def plain(value: float) -> str:
    """A tick without needless digits."""
    return f"{value:,.6g}"


def share(value: float) -> str:
    return f"{100 * value:.3g} %"


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_format: Format = plain,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over a common x axis. `y_range` fixes the axis; by default it follows the data."""
    lines = [line for line in lines if line.points]
    if not lines:
        return EMPTY
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    x_axis = Axis.over(min(xs), max(xs), LEFT, WIDTH - RIGHT, whole=True)
    low, high = y_range or (min(ys), max(ys))
    y_axis = Axis.over(low, high, HEIGHT - BOTTOM, TOP)
    body = [frame(x_axis, y_axis, x_label, y_format)]
    for line in lines:
        if len(line.band) > 1:
            edge = [(x, top) for x, _, top in line.band]
            edge += [(x, bottom) for x, bottom, _ in reversed(line.band)]
            body.append(
                f'<polygon class="band c{line.colour}" points="{path(edge, x_axis, y_axis)}"/>'
            )
        weight = "thin" if line.thin else "line"
        body.append(
            f'<polyline class="{weight} c{line.colour}" '
            f'points="{path(line.points, x_axis, y_axis)}"/>'
        )
        if not line.thin and len(line.points) <= MAX_DOTS:
            body += [
                f'<circle class="dot c{line.colour}" cx="{x_axis.at(x):.1f}" '
                f'cy="{y_axis.at(y):.1f}" r="3">'
                f"<title>{escape(line.name)}, {escape(x_label)} {plain(x)}: "
                f"{escape(y_format(y))}</title></circle>"
                for x, y in line.points
            ]
    return chart(body) + legend(
        [(line.name, f"c{line.colour} faint" if line.thin else f"c{line.colour}") for line in lines]
    )


def stacked_bars(
    columns: Sequence[Column],
    *,
    colours: Mapping[str, int],
    x_label: str,
    y_format: Format = plain,
) -> str:
    """One bar a column; parts are stacked in the order of `colours`, unknown ones on top."""
    highest = max((sum(column.parts.values()) for column in columns), default=0.0)
    if highest <= 0:
        return EMPTY
    seen = {name for column in columns for name in column.parts}
    unknown = dict.fromkeys(sorted(seen - colours.keys()), GREY)
    used = {name: c for name, c in {**colours, **unknown}.items() if name in seen}
    y_axis = Axis.over(0, highest, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(columns)
    width = min(0.8 * step, 48)
    label_width = CHAR * (2 + max(len(column.label) for column in columns))
    labelled_every = math.ceil(label_width / step)
    body = [grid(y_axis, y_format)]
    for index, column in enumerate(columns):
        x, base = LEFT + step * (index + 0.5), 0.0
        for name, colour in used.items():
            value = column.parts.get(name, 0.0)
            top, bottom = y_axis.at(base + value), y_axis.at(base)
            if value > 0:
                body.append(
                    f'<rect class="bar c{colour}" x="{x - width / 2:.1f}" y="{top:.1f}" '
                    f'width="{width:.1f}" height="{bottom - top:.1f}">'
                    f"<title>{escape(name)}, {escape(x_label)} {escape(column.label)}: "
                    f"{escape(y_format(value))}</title></rect>"
                )
            base += value
        if index % labelled_every == 0:
            body.append(tick_label(x, column.label))
    body.append(axis_title(x_label))
    return chart(body) + legend([(name, f"c{colour}") for name, colour in used.items()])


def time_line(spans: Sequence[Span], *, x_format: Format) -> str:
    """One row a span: a bar from its start for its duration, which is written beside it."""
    if not spans:
        return EMPTY
    left, right, row = 110, 90, 24
    end = max(span.start + span.seconds for span in spans)
    scale = (WIDTH - left - right) / end if end > 0 else 0.0
    body = []
    for index, span in enumerate(spans):
        y = row * index
        x, width = left + scale * span.start, max(scale * span.seconds, 1.0)
        body.append(
            f'<text class="tick" x="{left - 8}" y="{y + 16}" text-anchor="end">'
            f'{escape(span.name)}</text><rect class="bar c{index % GREY}" x="{x:.1f}" '
            f'y="{y + 3}" width="{width:.1f}" height="{row - 6}" rx="2"/>'
            f'<text class="tick" x="{x + width + 6:.1f}" y="{y + 16}">'
            f"{escape(x_format(span.seconds))}</text>"
        )
    return chart(body, row * len(spans))


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(
        cls, low: float, high: float, start: float, end: float, *, whole: bool = False
    ) -> Axis:
        """`whole`: ticks are integers and the axis ends with the data (steps)."""
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):  # flat, as far as can be drawn
            margin = 1.0 if whole or low == 0 else 0.5 * abs(low)
            low, high = low - margin, high + margin
        step = round_step((high - low) / 5)
        step = max(1.0, math.floor(step)) if whole else step
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = [step * index for index in range(first, last + 1)]
        if whole:
            return cls(low, high, start, end, tuple(t for t in ticks if low <= t <= high))
        return cls(ticks[0], ticks[-1], start, end, tuple(ticks))

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def round_step(raw: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def path(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)


def frame(x_axis: Axis, y_axis: Axis, x_label: str, y_format: Format) -> str:
    ticks = "".join(tick_label(x_axis.at(tick), plain(tick)) for tick in x_axis.ticks)
    return grid(y_axis, y_format) + ticks + axis_title(x_label)


def grid(y_axis: Axis, y_format: Format) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_axis.at(tick):.1f}" '
        f'y2="{y_axis.at(tick):.1f}"/><text class="tick" x="{LEFT - 6}" '
        f'y="{y_axis.at(tick) + 4:.1f}" text-anchor="end">{escape(y_format(tick))}</text>'
        for tick in y_axis.ticks
    )


def tick_label(x: float, text: str, y: float = HEIGHT - BOTTOM + 16) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>'


def axis_title(label: str) -> str:
    return (
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(label)}</text>'
    )


def chart(body: Sequence[str], height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(body)}</svg>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(name, CSS class) of each colour; needed as soon as there are two."""
    if len(entries) < 2:
        return ""
    items = "".join(
        f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in entries
    )
    return f'<div class="legend">{items}</div>'
