"""Line charts for a page without script, as plain figures that the template draws.

A plot is an SVG that stretches with the page (`preserveAspectRatio="none"`), under strokes that do not; all text
stands around and over it as text of the page. So one drawing is legible on a phone and on a wide screen alike.
Places are shares of the plot, 0 to 1, from the left and from the top; paths are in thousandths of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from report.axes import Axis
from report.numbers import is_number

UNITS = 1000
# Where there are more, each of half as many stretches keeps its smallest and its largest: spikes stay.
MOST_POINTS = 600

Point = tuple[float, float]


@dataclass
class Series:
    """Points (x, y) in the axes' units; `style` names colour and kind of line in style.css.

    Of the points given it keeps those to draw: of many a choice, and none whose figure was no number.
    """

    label: str
    points: list[Point]
    style: str = ""
    is_dots: bool = False
    is_joined: bool = False  # dots with a line through them
    is_faint: bool = False

    def __post_init__(self):
        self.points = thinned([point for point in self.points if is_number(point[1])])


@dataclass
class Mark:
    """Something that happened at one x: a line across the plot."""

    x: float
    label: str = ""


@dataclass
class Note:
    """A word at one point."""

    x: float
    y: float
    text: str


@dataclass
class Chart:
    """`description` is what somebody hears who cannot see it. `spans` names stretches of x: (from, to, text, style)."""

    title: str
    description: str
    x: Axis
    y: Axis
    series: list[Series]
    marks: list[Mark] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    spans: list[tuple[float, float, str, str]] = field(default_factory=list)
    hint: str = ""
    is_tall: bool = False

    @property
    def legend(self) -> list[Series]:
        """One for each label."""
        return list({series.label: series for series in self.series if series.label and series.points}.values())

    def place(self, x: float, y: float) -> Point:
        return self.x.share(x), 1 - self.y.share(y)

    def line(self, series: Series) -> str:
        """The path of a line."""
        points = [self.place(*point) for point in series.points]
        return "M" + " ".join(f"{thousandths(x)} {thousandths(y)}" for x, y in points) if points else ""

    def dots(self, series: Series) -> str:
        """The path of lines of no length, whose round ends are the dots."""
        points = [self.place(*point) for point in series.points]
        return "".join(f"M{thousandths(x)} {thousandths(y)}h0" for x, y in points)


def thousandths(share: float) -> str:
    return f"{UNITS * share:.1f}".removesuffix(".0")


def thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS` of them, the first and last, and smallest and largest in y, among them."""
    if len(points) <= MOST_POINTS:
        return points
    n_stretches = MOST_POINTS // 2 - 1
    kept = [points[0]]
    for i in range(n_stretches):
        start, end = (len(points) * each // n_stretches for each in (i, i + 1))
        stretch = range(start, end)
        low, high = min(stretch, key=lambda j: points[j][1]), max(stretch, key=lambda j: points[j][1])
        kept += [points[j] for j in sorted({low, high})]
    return kept + [points[-1]]
