"""Small inline SVG charts, so that a report is one self-contained file that works offline.

Compared with matplotlib figures, these SVGs are sharp at any size, use the page's fonts and colours, and need neither a
large import nor a megabyte of base64.

Example::

    svg = line_chart([Series("sampled", [0, 1, 2], [0.3, 0.4, 0.5])], x_label="iteration")
    svg = interval_chart([IntervalRow("SFT", 0.5, 0.43, 0.57)])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2458c5", "#d9822b", "#1f8a5b", "#8250b8", "#6b7280")


@dataclass(frozen=True)
class Series:
    """One line of `y` (finite values) over `x`; `smooth` adds a running mean, `low` and `high` draw a band."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    smooth: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval chart: a mean with its interval, in data units."""

    label: str
    mean: float
    low: float
    high: float
    group: int = 0


def percent(value: float) -> str:
    """0.375 -> '38 %' (no decimals: the intervals are several points wide)."""
    return f"{100 * value:.0f} %"


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_format: Callable[[float], str] = percent,
    y_range: tuple[float, float] | None = None,
    width: int = 620,
    height: int = 250,
) -> str:
    """Draw an SVG line chart; returns a note instead if there is no finite point."""
    points = [(float(a), float(b)) for s in series for a, b in zip(s.x, s.y, strict=True) if math.isfinite(b)]
    if not points:
        return '<p class="note">No points to draw.</p>'
    left, right, top, bottom = 52, 14, 12, 42
    x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
    y0, y1 = y_range or _nice(min(p[1] for p in points), max(p[1] for p in points))
    span_x, span_y = (x1 - x0) or 1.0, (y1 - y0) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        px = left + (x - x0) / span_x * (width - left - right)
        return px, height - bottom - (y - y0) / span_y * (height - top - bottom)

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(x_label)}">']
    for i in range(5):
        y = y0 + span_y * i / 4
        _, py = at(x0, y)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        out.append(
            f'<text class="tick" x="{left - 8}" y="{py + 4:.1f}" text-anchor="end">{y_format(y)}</text>'
        )
    for x in _ticks(x0, x1):
        px, _ = at(x, y0)
        anchor = "end" if px > width - 40 else "middle"
        label = f"{x:,.0f}" if x1 - x0 > 4 else f"{x:g}"
        out.append(
            f'<text class="tick" x="{px:.1f}" y="{height - bottom + 18}" '
            f'text-anchor="{anchor}">{label}</text>'
        )
    middle = (left + width - right) / 2
    out.append(
        f'<text class="tick" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, s in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        pairs = [(float(a), float(b)) for a, b in zip(s.x, s.y, strict=True) if math.isfinite(b)]
        if not pairs:
            continue
        if s.smooth:
            dots = "".join(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2"/>' for px, py in (at(*p) for p in pairs)
            )
            out.append(f'<g fill="{colour}" opacity=".35">{dots}</g>')
            pairs = _running_mean(pairs, max(1, len(pairs) // 8))
        if s.low is not None and s.high is not None:
            edge = [*zip(s.x, s.high, strict=True), *reversed(list(zip(s.x, s.low, strict=True)))]
            around = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(float(a), float(b)) for a, b in edge))
            out.append(f'<polygon fill="{colour}" opacity=".15" points="{around}"/>')
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*p) for p in pairs))
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2.2" points="{path}"/>')
    out.append("</svg>")
    return "".join(out) + _legend([s.label for s in series])


def interval_chart(
    rows: Sequence[IntervalRow], *, groups: Sequence[str] = (), zero: bool = False, width: int = 620
) -> str:
    """Draw means with 95 % intervals, one row each; `zero` draws a line at zero, for differences."""
    if not rows:
        return '<p class="note">No rows to draw.</p>'
    left, right, step, bottom = max(210, 20 + round(6.4 * max(len(row.label) for row in rows))), 64, 26, 30
    height = step * len(rows) + bottom + 6
    low, high = (min(0.0, *(r.low for r in rows)), max(0.0, *(r.high for r in rows))) if zero else (0.0, 1.0)
    low, high = _nice(low, high) if zero else (low, high)

    def at(value: float) -> float:
        return left + (value - low) / ((high - low) or 1.0) * (width - left - right)

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="means with intervals">']
    for i in range(5):
        value = low + (high - low) * i / 4
        x, text = at(value), f"{100 * value:+.0f}" if zero else percent(value)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - bottom + 4}"/>')
        out.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{text}</text>')
    if zero:
        out.append(
            f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="2" y2="{height - bottom + 4}"/>'
        )
    for i, row in enumerate(rows):
        y, colour = step * i + step / 2 + 4, COLOURS[row.group % len(COLOURS)]
        value_text = f"{100 * row.mean:+.0f} pts" if zero else percent(row.mean)
        out.append(
            f'<text class="label" x="{left - 12}" y="{y + 4:.1f}" '
            f'text-anchor="end">{escape(row.label)}</text>'
            f'<line x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="3" stroke-linecap="round" opacity=".45"/>'
            f'<circle cx="{at(row.mean):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
            f'<text class="tick" x="{width - right + 10}" y="{y + 4:.1f}">{value_text}</text>'
        )
    out.append("</svg>")
    return "".join(out) + (_legend(groups) if groups else "")


STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#374151}.tick{fill:#6b7280}"
    ".grid{stroke:#e5e7eb}.zero{stroke:#9ca3af;stroke-dasharray:4 3}"
)


def standalone(chart: str, labels: Sequence[str] = ()) -> str:
    """Convert a chart to a complete SVG file with a white background and its legend.

    Args:
        chart: from `line_chart` or `interval_chart`.
        labels: legend labels, in the order of the colours.

    Raises:
        ValueError: the chart is a note, because there was nothing to draw.
    """
    if not chart.startswith("<svg"):
        raise ValueError(f"expected an SVG chart with data; got {chart[:60]!r}")
    svg = chart[: chart.index("</svg>")]
    head, _, body = svg.partition(">")
    left, top, width, height = (float(v) for v in head.partition('viewBox="')[2].partition('"')[0].split())
    rows, x = [], 52.0
    for i, label in enumerate(labels):
        rows.append(
            f'<circle cx="{x:.0f}" cy="{height + 12:.0f}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>'
            f'<text x="{x + 10:.0f}" y="{height + 16:.0f}">{escape(label)}</text>'
        )
        x += 30 + 6.4 * len(label)
    tall, wide = height + (26 if labels else 0), max(width, x)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:g} {top:g} {wide:g} {tall:g}" width="{wide:g}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}{"".join(rows)}</svg>\n'
    )


def _legend(labels: Sequence[str]) -> str:
    items = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escape(label)}</span>'
        for i, label in enumerate(labels)
        if label
    )
    return f'<div class="legend">{items}</div>' if items else ""


def _nice(low: float, high: float) -> tuple[float, float]:
    """Widen a range to round limits."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    unit = 10 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / unit) * unit, math.ceil(high / unit) * unit


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    unit *= next(m for m in (1, 2, 5, 10) if m * unit >= raw)
    first = math.ceil(low / unit - 1e-9)
    return [i * unit for i in range(first, math.floor(high / unit + 1e-9) + 1)]


def _running_mean(pairs: list[tuple[float, float]], half: int) -> list[tuple[float, float]]:
    out = []
    for i, (x, _) in enumerate(pairs):
        window = [y for _, y in pairs[max(0, i - half) : i + half + 1]]
        out.append((x, sum(window) / len(window)))
    return out
