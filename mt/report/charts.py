"""Charts as SVG. Plots take 100% of the page's width, so that their text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mt.report.page import Number, Unit, macro, table

_MAX_BARS = 64  # per histogram; more bars would be too thin for a finger or a pointer
_HEIGHT = 180  # of a plot, in pixels
_N_COLOURS = 6  # in style.css; after them, colours repeat
_NO_DATA = Markup("<p>There is nothing to show.</p>")
_RECT = Markup('<rect x="{}" y="{}" width="{}" height="{}" class="f{}"><title>{}</title></rect>')
_DOT = Markup('<circle cx="{:.3f}%" cy="{:.2f}" r="4" class="dot f{}{}"><title>{}</title></circle>')
_GRID_LINE = Markup(
    '<line x1="0" x2="100%" y1="{0:.2f}" y2="{0:.2f}" class="grid"/>'
    '<text x="-8" y="{0:.2f}" dy="0.35em" text-anchor="end">{1}</text>'
)
_X_TICK = Markup('<text x="{:.3f}%" y="{}" text-anchor="middle">{}</text>')
# A line has its own SVG, which is stretched, because its points cannot be given in percent.
_LINE = Markup(
    '<svg width="100%" height="{0}" viewBox="0 0 100 {0}" preserveAspectRatio="none">'
    '<path d="{1}" class="line s{2}"/></svg>'
)

Points = Sequence[tuple[float, float] | None]  # None is a gap


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    xs: Sequence[float | None]
    ys: Sequence[float | None]  # None or NaN: the line has a gap

    @property
    def points(self) -> Points:
        return [
            None if x is None or y is None or not math.isfinite(y) else (x, y)
            for x, y in zip(self.xs, self.ys, strict=True)
        ]

    def __str__(self) -> str:
        """Return a description for screen readers."""
        known = [point for point in self.points if point is not None]
        if not known:
            return f"{self.name}: no points."
        (first_x, first_y), (last_x, last_y) = known[0], known[-1]
        return f"{self.name}: from {first_y:,.4g} at {first_x:,g} to {last_y:,.4g} at {last_x:,g}."


def bars(title: str, rows: Mapping[str, float], unit: Unit = "count") -> Markup:
    """Return horizontal bars, each with its label and its number."""
    longest = max(rows.values(), default=0) or 1
    numbers = {label: Number(value, unit) for label, value in rows.items()}
    parts = {label: _segments([(100 * rows[label] / longest, f"{label}: {numbers[label]}")]) for label in rows}
    return macro("bars", title, [], [(label, parts[label], None, numbers[label]) for label in rows])


def stacked_bars(title: str, rows: Mapping[str, Mapping[str, int]]) -> Markup:
    """Return one bar per row, divided in proportion to the row's numbers; from the seventh name on, colours repeat.

    The numbers are only in tooltips: show them in a table, too.
    """
    shown, names = [], []
    for label, counts in rows.items():
        total, names = sum(counts.values()), list(counts)
        tooltips = [f"{name}: {count:,}" for name, count in counts.items()]
        percents = [100 * count / (total or 1) for count in counts.values()]
        shown.append((label, _segments(zip(percents, tooltips, strict=True)), "; ".join(tooltips), Number(total)))
    return macro("bars", title, _legend(names), shown)


def _segments(segments: Iterable[tuple[float, str]]) -> Markup:
    """Return the parts of a bar.

    Args:
        segments: (percent, tooltip) of each part.
    """
    rects, left = [], 0.0
    for number, (percent, tooltip) in enumerate(segments):
        if percent > 0:
            rects.append(_RECT.format(f"{left:.3f}%", 0, f"{percent:.3f}%", "100%", _colour(number), tooltip))
        left += percent
    return Markup("").join(rects)


def fraction_bar(fraction: float | None) -> Markup:
    """Return a bar for a table cell; its full width is 1."""
    text = str(Number(fraction or 0.0, "fraction"))
    rect = _segments([(100 * min(max(fraction or 0, 0), 1), text)])
    return Markup('<svg class="fraction" role="img" aria-label="{}">{}</svg>').format(text, rect)


def histograms(counts: Mapping[str, Sequence[int]], x_label: str, y_label: str) -> list[Markup]:
    """Return histograms of the values 1, 2, 3, …, with the same axes, and the numbers in tables that unfold.

    Args:
        counts: title → the frequency of each value.
    """
    longest = max((i for one in counts.values() for i, count in enumerate(one, start=1) if count), default=0)
    if not longest:
        return [macro("figure", title, [], _NO_DATA) for title in counts]
    width = math.ceil(longest / _MAX_BARS)
    spans = [range(start, min(start + width, longest + 1)) for start in range(1, longest + 1, width)]
    heights = {title: [sum(one[span.start - 1 : span.stop - 1]) for span in spans] for title, one in counts.items()}
    top, step = max(map(max, heights.values())), 100 / len(spans)
    axes = _grid(_ticks(0, top, whole=True), 0, top)
    axes += [_x_tick(step * (tick - 0.5) / width, f"{tick:g}") for tick in _ticks(1, longest, whole=True)]
    figures = []
    for title, one in counts.items():
        parts, tooltips = list(axes), []
        for i, (span, height) in enumerate(zip(spans, heights[title], strict=True)):
            numbers = f"{span[0]}" if width == 1 else f"{span[0]}–{span[-1]}"
            tooltips.append(f"{numbers} {x_label}: {height:,} {y_label}")
            if height:
                pixels = max(_HEIGHT * height / top, 1)
                place = (f"{i * step + step * 0.06:.3f}%", f"{_HEIGHT - pixels:.2f}", f"{step * 0.88:.3f}%")
                parts.append(_RECT.format(*place, f"{pixels:.2f}", 1, tooltips[-1]))
        highest = tooltips[heights[title].index(max(heights[title]))]
        spoken = f"Histogram: {title}. {len(spans)} bars; the highest is {highest}."
        listed = table([x_label, y_label], [(f"{i}", count) for i, count in enumerate(one[:longest], start=1)])
        figures.append(macro("figure", title, [], macro("plot", spoken, parts, x_label, y_label, _HEIGHT, listed)))
    return figures


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """Return lines with a legend, and all numbers in a table that unfolds.

    Args:
        from_zero: start the y axis at zero, so that small differences look small.
    """
    known = [point for line in series for point in line.points if point is not None]
    if not known:
        return macro("figure", title, [], _NO_DATA)
    left, right = _widened([x for x, _ in known], 0)
    low, high = _widened([y for _, y in known], 0.05)
    low = min(0.0, low) if from_zero else low
    parts = _grid(_ticks(low, high), low, high)
    parts += [_x_tick(_percent(x, left, right), _compact(x)) for x in _ticks(left, right)]
    for number, line in enumerate(series):
        places = [
            None if point is None else (_percent(point[0], left, right), _y(point[1], low, high))
            for point in line.points
        ]
        parts += _path_and_dots(line, places, _colour(number))
    spoken = f"Line chart: {title}. {' '.join(map(str, series))}"
    plot = macro("plot", spoken, parts, x_label, y_label, _HEIGHT, _line_table(series, x_label))
    return macro("figure", title, _legend([line.name for line in series]), plot, True)


def _path_and_dots(line: Series, places: Points, colour: int) -> list[Markup]:
    """Return a line and its points with tooltips; points are visible if they are few or have no neighbour."""
    commands, dots = [], []
    neighbours = zip((None, *places), line.points, places, (*places[1:], None), strict=False)
    for before, point, place, after in neighbours:
        if point is not None and place is not None:
            commands.append(f"{'L' if before else 'M'}{place[0]:.3f} {place[1]:.2f}")
            faint = " faint" if len(places) > 30 and (before or after) else ""
            dots.append(_DOT.format(*place, colour, faint, f"{line.name}: {point[1]:,.4g} at {point[0]:,g}"))
    return [_LINE.format(_HEIGHT, "".join(commands), colour), *dots]


def _line_table(series: Sequence[Series], x_label: str) -> Markup:
    columns = [
        {x: Number(y, digits=_digits(line.ys)) for x, y in zip(line.xs, line.ys, strict=True) if x is not None}
        for line in series
    ]
    rows = [
        [Number(x, digits=None if isinstance(x, int) else 2), *(column.get(x, "") for column in columns)]
        for x in sorted({x for column in columns for x in column})
    ]
    return table([x_label, *(line.name for line in series)], rows)


def _digits(ys: Sequence[float | None]) -> int:
    """Return 4, or for small numbers, such as learning rates, the decimals that show four significant digits."""
    largest = max((abs(y) for y in ys if y and math.isfinite(y)), default=1.0)
    return max(4, 3 - math.floor(math.log10(largest)))


def _legend(names: Sequence[str]) -> list[tuple[int, str]]:
    return [(_colour(number), name) for number, name in enumerate(names)]


def _colour(number: int) -> int:
    return number % _N_COLOURS + 1


def _percent(value: float, low: float, high: float) -> float:
    return 100 * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT * (high - value) / (high - low)


def _grid(ticks: Sequence[float], low: float, high: float) -> list[Markup]:
    return [_GRID_LINE.format(_y(tick, low, high), _compact(tick)) for tick in ticks]


def _x_tick(percent: float, label: str) -> Markup:
    return _X_TICK.format(percent, _HEIGHT + 18, label)


def _compact(value: float) -> str:
    """Return a number for an axis: 1,500 as 1.5k."""
    for suffix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _widened(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return the range of values, widened at both ends by a fraction of it."""
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers from `low` to `high`; with `whole`, only integers."""
    if low == high:
        return [low]
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [tick for tick in ticks if tick == int(tick)] if whole else ticks
