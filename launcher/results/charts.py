"""Line charts as SVG: values in, markup out. Pure; without scripts and fonts.

A chart scales with the page, so its text is large enough for a narrow one. Colours are the page's classes `c0`, `c1`,
…, which differ in light, dark and print; dashes tell the lines of two runs apart on paper.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from trainer.shared.text import visible

_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 12, 34
_BUCKETS = 180
_TICKS = 5
_MOST_MARKS = 30
# From this ratio of the largest to the smallest value on, a linear axis would hide the small ones.
_LOG_FROM = 30.0
_LARGEST = 1e30
# Of the values themselves: a smaller span is rounding.
_SMALLEST_SPAN = 1e-9
_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        color: the number of the page's colour class.
        dots: show each point, as for a few evaluations.
        dashed: draw dashes, as for the second of two runs.
    """

    label: str
    points: Sequence[Point]
    color: int = 0
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        marks: the places on the x axis of evaluations.
        may_be_log: use a logarithmic axis if the values differ much, as of a loss that begins far too high.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    marks: Sequence[float] = ()
    may_be_log: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(_finite(line.points) for line in self.lines)

    @property
    def labelled(self) -> Sequence[Line]:
        """The lines of the legend: those with a name, if they have points."""
        return [line for line in self.lines if line.label and _finite(line.points)]


class _Axis(NamedTuple):
    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool
    start: float
    length: float

    def place(self, value: float) -> float:
        scale = math.log10 if self.is_log else float
        low, high = scale(self.low), scale(self.high)
        return round(self.start + self.length * (scale(value) - low) / (high - low), 1)


class _Bucket(NamedTuple):
    x: float
    mean: float
    low: float
    high: float


def draw(chart: Chart) -> Markup:
    """Return a chart as an `svg` element; it has at least one point."""
    points = [point for line in chart.lines for point in _finite(line.points)]
    x = _linear([point[0] for point in points], _LEFT, _WIDTH - _LEFT - _RIGHT, rounded=False)
    values = [point[1] for point in points]
    is_log = chart.may_be_log and min(values) > 0 and max(values) / min(values) >= _LOG_FROM
    y = (_logarithmic if is_log else _linear)(values, _HEIGHT - _BOTTOM, _TOP + _BOTTOM - _HEIGHT)
    parts = [*_grid(x, y, chart.x_label), *_marks(chart.marks, x)]
    for line in chart.lines:
        parts += _draw_line(line, x.place, y.place)
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    title = visible(chart.title)
    return head.format(_WIDTH, _HEIGHT, title, title) + Markup("").join(parts) + Markup("</svg>")


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if _is_shown(point)]


def _is_shown(point: Point) -> bool:
    """Return whether a point can be drawn; the arithmetic of the axes would overflow near a float's limits."""
    return all(abs(value) < _LARGEST and (value == 0 or abs(value) > 1 / _LARGEST) for value in point)


def _logarithmic(values: Sequence[float], start: float, length: float) -> _Axis:
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**power for power in powers][:: max(1, len(powers) // _TICKS)]
    return _Axis(min(low, ticks[0]), max(high, ticks[-1]), ticks, True, start, length)


def _linear(values: Sequence[float], start: float, length: float, *, rounded: bool = True) -> _Axis:
    """Return a linear axis.

    Args:
        rounded: begin and end with a tick. The x axis ends where the run ends.
    """
    low, high = min(values), max(values)
    if high - low <= _SMALLEST_SPAN * max(abs(low), abs(high)):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = _nice_step((high - low) / _TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [step * number for number in range(first, last + 1)]
    if rounded:
        return _Axis(ticks[0], ticks[-1], ticks, False, start, length)
    return _Axis(low, high, [tick for tick in ticks if low <= tick <= high], False, start, length)


def _nice_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _grid(x: _Axis, y: _Axis, x_label: str) -> Iterator[Markup]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in y.ticks:
        place = y.place(tick)
        yield Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, place, right)
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT - 5, place + 4, _tick_text(tick, y)
        )
    for tick in x.ticks:
        anchor = "middle" if x.place(tick) < right - 12 else "end"
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            x.place(tick), bottom + 14, anchor, _tick_text(tick, x)
        )
    yield Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(_LEFT, _TOP, bottom, right)
    yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(right, _HEIGHT - 5, x_label)


def _tick_text(value: float, axis: _Axis) -> str:
    largest = max(abs(axis.low), abs(axis.high))
    for factor, suffix in _SUFFIXES:
        if largest >= 10 * factor and not axis.is_log:
            return f"{value / factor:.6g}{suffix if value else ''}"
    return f"{value:.6g}" if abs(value) < 1e5 and (abs(value) >= 1e-3 or value == 0) else f"{value:.0e}"


def _marks(marks: Sequence[float], x: _Axis) -> Iterator[Markup]:
    """Draw a line at each evaluation, unless the lines would cover the chart: dots show the evaluations there."""
    shown = [mark for mark in marks if x.low <= mark <= x.high]
    for mark in shown if len(shown) <= _MOST_MARKS else ():
        yield Markup('<path class="mark" d="M{} {}V{}"/>').format(x.place(mark), _TOP, _HEIGHT - _BOTTOM)


def _draw_line(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[Markup]:
    classes = f"line c{line.color}" + (" dashed" if line.dashed else "")
    for piece in _pieces(line.points):
        buckets = _buckets(piece)
        if len(buckets) < len(piece):
            edge = [f"{x(b.x)} {y(b.high)}" for b in buckets] + [f"{x(b.x)} {y(b.low)}" for b in reversed(buckets)]
            yield Markup('<path class="band c{}" d="M{}Z"/>').format(line.color, "L".join(edge))
        path = "L".join(f"{x(b.x)} {y(b.mean)}" for b in buckets)
        # A line of one point would not be seen.
        yield Markup('<path class="{}" d="M{}{}"/>').format(classes, path, "h0.1" if len(buckets) == 1 else "")
        if line.dots and len(piece) <= _BUCKETS:
            for point in piece:
                yield Markup('<circle class="c{}" cx="{}" cy="{}" r="{}"><title>{}: {:.5g}</title></circle>').format(
                    line.color,
                    x(point[0]),
                    y(point[1]),
                    3 if len(piece) <= _MOST_MARKS else 1.8,
                    visible(line.label),
                    point[1],
                )


def _pieces(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the parts of a line between its gaps: a loss that is no number is a gap."""
    piece: list[Point] = []
    for point in points:
        if _is_shown(point):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _buckets(points: Sequence[Point]) -> list[_Bucket]:
    """Return at most some hundred points that stand for all, each with the range of its neighbours."""
    if len(points) <= 2 * _BUCKETS:
        return [_Bucket(x, y, y, y) for x, y in points]
    size = math.ceil(len(points) / _BUCKETS)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [
        _Bucket(
            sum(x for x, _ in group) / len(group),
            sum(y for _, y in group) / len(group),
            min(y for _, y in group),
            max(y for _, y in group),
        )
        for group in groups
    ]
