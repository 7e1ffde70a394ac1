"""Two diagrams as inline SVG: lines over steps, grouped bars with intervals. No library, no script."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, isfinite, log10

from markupsafe import Markup

from .results import Curve

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 62
# Okabe and Ito: told apart by everyone; the dashes do it in black and white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
MAX_POINTS = 240
AXIS_TITLE = 14  # height of the line below the ticks
LETTER = 6.4  # mean width of a letter at 12 px

Interval = tuple[float, float, float]
"""Value (or place on the axis), low end, high end."""


def line_chart(curve: Curve, bands: Mapping[str, Sequence[Interval]] | None = None) -> Markup:
    """Draw the series of a curve over a common axis; long series are thinned to about 240 points.

    Args:
        curve: Titles and points; points that are not finite are left out.
        bands: Name of a series to its intervals (x, low, high), drawn as an area in its colour.
    """
    series = {
        name: [(float(x), float(y)) for x, y in points if isfinite(x) and isfinite(y)]
        for name, points in curve["series"].items()
    }
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup('<p class="empty">no points were logged</p>')
    x_low, x_high = _range([x for x, _ in points])
    ends = [end for band in (bands or {}).values() for _, *interval in band for end in interval]
    y_low, y_high = _range([*(y for _, y in points), *ends])
    ticks = _ticks(y_low, y_high)
    y_low, y_high = min(y_low, ticks[0]), max(y_high, ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return _x((x - x_low) / (x_high - x_low)), _y((y - y_low) / (y_high - y_low))

    parts = [_horizontal_grid(ticks, y_low, y_high)]
    parts += [
        _text(at(tick, y_low)[0], HEIGHT - BOTTOM + 16, _number(tick), "middle")
        for tick in _ticks(x_low, x_high)
        if x_low <= tick <= x_high
    ]
    for index, (name, line) in enumerate(series.items()):
        if band := (bands or {}).get(name):
            around = [at(x, low) for x, low, _ in band] + [at(x, high) for x, _, high in reversed(band)]
            corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in around)
            parts.append(f'<polygon points="{corners}" fill="{_colour(index)}" fill-opacity="0.2"/>')
        thinned = line[:: max(1, len(line) // MAX_POINTS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in thinned))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="1.8" '
            f'stroke-dasharray="{DASHES[index % len(DASHES)]}"/>'
        )
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 32, curve["x_label"], "end"))
    parts.append(_legend(list(series), drop=AXIS_TITLE))
    label = f"{curve['title']}: {curve['y_label']} over {curve['x_label']}"
    return _svg(parts, label, curve["y_label"], AXIS_TITLE)


def bar_chart(groups: Mapping[str, Sequence[Interval]], names: Sequence[str], y_label: str) -> Markup:
    """Draw one group of bars per key, one bar per name, with intervals as whiskers.

    Args:
        groups: Label below the group to (value, low, high) per name, shares in [0, 1].
        names: Of the bars within every group, for the legend.
        y_label: Of the axis, which runs from 0 to 100 %.
    """
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_horizontal_grid(ticks, 0.0, 1.0, percent=True)]
    slot = 1 / max(1, len(groups))
    bar = 0.8 * slot / max(1, len(names))
    longest = LETTER * max(map(len, groups))
    crowded = longest > slot * (WIDTH - LEFT - RIGHT) - 6
    drop = 0.7 * longest - 8 if crowded else 0.0  # room that slanted labels need
    for position, (label, bars) in enumerate(groups.items()):
        for index, (value, low, high) in enumerate(bars):
            start = (position + 0.1) * slot + index * bar
            left, right = _x(start), _x(start + 0.92 * bar)
            middle = (left + right) / 2
            parts.append(
                f'<rect x="{left:.1f}" y="{_y(value):.1f}" width="{right - left:.1f}" '
                f'height="{_y(0) - _y(value):.1f}" fill="{_colour(index)}"/>'
                f'<path d="M{middle:.1f} {_y(low):.1f}V{_y(high):.1f}M{middle - 4:.1f} {_y(low):.1f}h8'
                f'M{middle - 4:.1f} {_y(high):.1f}h8" class="whisker"/>'
            )
        x, y = _x((position + 0.5) * slot), HEIGHT - BOTTOM + 16
        turn = f' transform="rotate(-35 {x:.1f} {y})"' if drop else ""
        parts.append(_text(x, y, label, "end" if drop else "middle", turn))
    parts.append(_legend(names, filled=True, drop=drop))
    return _svg(parts, f"{y_label}: {', '.join(names)}", f"{y_label}, %", drop)


def _svg(parts: Sequence[str], label: str, y_label: str, drop: float = 0.0) -> Markup:
    inner = _text(LEFT, 0, y_label, "start") + "".join(parts)
    view = f"0 -14 {WIDTH} {HEIGHT + 14 + drop:.0f}"
    return Markup(f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{inner}</svg>')


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _horizontal_grid(ticks: Sequence[float], low: float, high: float, percent: bool = False) -> str:
    lines = []
    for tick in ticks:
        y = _y((tick - low) / (high - low))
        lines.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        lines.append(_text(LEFT - 6, y + 4, f"{100 * tick:.0f}" if percent else _number(tick), "end"))
    return "".join(lines)


def _legend(names: Sequence[str], filled: bool = False, drop: float = 0.0) -> str:
    parts, x, y = [], float(LEFT), HEIGHT - 22 + drop
    for index, name in enumerate(names):
        width = 44 + LETTER * len(name)
        if x + width > WIDTH and x > LEFT:
            x, y = float(LEFT), y + 16
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="14" height="10" fill="{_colour(index)}"/>'
            if filled
            else f'<path d="M{x:.1f} {y - 4:.1f}h20" stroke="{_colour(index)}" stroke-width="2.4" '
            f'stroke-dasharray="{DASHES[index % len(DASHES)]}"/>'
        )
        parts.append(_text(x + 24, y, name, "start"))
        x += width
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that cover [low, high]."""
    raw = (high - low) / 5
    power = 10 ** floor(log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = floor(low / step)
    ticks = [first * step]
    while ticks[-1] < high - 1e-9 * step:
        ticks.append((first + len(ticks)) * step)
    return ticks


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value / 1000:.4g}k"
