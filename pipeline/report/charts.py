"""Small charts as inline SVG, colored by the page's style sheet, which has a light and a dark theme.

Every chart is 400 units wide and scales with its column. All texts are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 16, 26
NUM_COLORS = 6
"""Number of series colors in the style sheet: classes c0 to c5."""


def histogram(counts: Sequence[int], edges: Sequence[str], title: str) -> Markup:
    """Draw one bar per count, with the count above it. ``edges`` labels the bounds of the bars: one more than counts."""
    top = max(counts, default=0) or 1
    margin = 20  # half a label
    step = (WIDTH - 2 * margin) / max(1, len(counts))
    parts = []
    for i, count in enumerate(counts):
        height = count / top * (HEIGHT - TOP - BOTTOM)
        x, y = margin + i * step, HEIGHT - BOTTOM - height
        parts.append(_rect(x + 1, y, step - 2, height, "c0"))
        if count:
            parts.append(_text(x + step / 2, y - 4, f"{count:,}", "middle", "value"))
    parts += [_line(margin, HEIGHT - BOTTOM, WIDTH - margin, HEIGHT - BOTTOM, "axis")]
    for i, edge in enumerate(edges):
        parts.append(_text(margin + i * step, HEIGHT - BOTTOM + 15, edge, "middle"))
    return _chart(parts, title)


def steps(edges: Sequence[float], values: Sequence[float], ticks: Sequence[tuple[float, str]], title: str) -> Markup:
    """Draw a step function as a filled area: one value between each two edges. ``ticks`` are (x, label)."""
    top, levels = _levels(max(values, default=0.0))
    span = edges[-1] - edges[0] or 1.0

    def x(position: float) -> float:
        return LEFT + (position - edges[0]) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = _grid(levels, y)
    outline = [f"{x(edges[0]):.1f},{y(0):.1f}"]
    for i, value in enumerate(values):
        outline += [f"{x(edges[i]):.1f},{y(value):.1f}", f"{x(edges[i + 1]):.1f},{y(value):.1f}"]
    outline.append(f"{x(edges[-1]):.1f},{y(0):.1f}")
    parts.append(
        Markup('<polygon class="c0 area" points="{}"/><polyline class="c0 stroke" points="{}"/>').format(
            " ".join(outline), " ".join(outline[1:-1])
        )
    )
    for tick, label in ticks:
        anchor = "start" if tick == edges[0] else "middle" if x(tick) < WIDTH - 30 else "end"
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 15, label, anchor))
    return _chart(parts, title)


def whiskers(mean: Sequence[float], std: Sequence[float], title: str) -> Markup:
    """Draw a vertical bar from mean - std to mean + std per channel, over the band from -1 to 1 where it should be."""
    extent = max(1.0, *(abs(m) + s for m, s in zip(mean, std, strict=True)))
    top, levels = _levels(extent, max_levels=3)

    def y(value: float) -> float:
        return (HEIGHT - BOTTOM + TOP) / 2 - value / top * (HEIGHT - TOP - BOTTOM) / 2

    step = (WIDTH - LEFT - RIGHT) / len(mean)
    parts = [_rect(LEFT, y(1), WIDTH - LEFT - RIGHT, y(-1) - y(1), "band")]
    parts += _grid([*(-level for level in levels[1:]), *levels], y)
    every = math.ceil(len(mean) / 16)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        x = LEFT + (channel + 0.5) * step
        width = min(10.0, step * 0.6)
        parts.append(_rect(x - width / 2, y(m + s), width, y(m - s) - y(m + s), "c0 soft"))
        parts.append(
            Markup('<circle class="c0" cx="{}" cy="{}" r="{}"/>').format(
                f"{x:.1f}", f"{y(m):.1f}", f"{min(4.0, step * 0.35):.1f}"
            )
        )
        if channel % every == 0:
            parts.append(_text(x, HEIGHT - BOTTOM + 15, str(channel), "middle"))
    return _chart(parts, title)


def stack(shares: Sequence[float], title: str) -> Markup:
    """Draw one bar of colored parts; the style sheet sets its height."""
    total = sum(shares) or 1.0
    parts, x = [], 0.0
    for i, share in enumerate(shares):
        width = share / total * WIDTH
        parts.append(_rect(x, 0, max(0.0, width - 1), 10, f"c{i % NUM_COLORS}"))
        x += width
    return _stretched("stack", Markup('role="img" aria-label="{}"').format(title), parts)


def bar(share: float, color: int = 0) -> Markup:
    """Draw a bar for a table cell; hidden from screen readers, since the cell beside it has the number."""
    filled = _rect(0, 0, max(2.0, share * WIDTH), 10, f"c{color}")
    return _stretched("bar", Markup('aria-hidden="true"'), [_rect(0, 0, WIDTH, 10, "track"), filled])


def _stretched(name: str, label: Markup, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} 10" preserveAspectRatio="none" {}>{}</svg>').format(
        name, WIDTH, label, Markup("").join(parts)
    )


def _chart(parts: Sequence[Markup], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _rect(x: float, y: float, width: float, height: float, name: str) -> Markup:
    numbers = (f"{value:.1f}" for value in (x, y, width, height))
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(name, *numbers)


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> Markup:
    numbers = (f"{value:.1f}" for value in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(name, *numbers)


def _text(x: float, y: float, text: str, anchor: str, name: str = "label") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        name, f"{x:.1f}", f"{y:.1f}", anchor, text
    )


def _grid(levels: Sequence[float], y: Callable[[float], float]) -> list[Markup]:
    """Draw a labeled line across the chart at each level."""
    lines = [_line(LEFT, y(level), WIDTH - RIGHT, y(level), "grid") for level in levels]
    return lines + [_text(LEFT - 5, y(level) + 4, f"{level:g}", "end") for level in levels]


def _levels(maximum: float, max_levels: int = 5) -> tuple[float, list[float]]:
    """Return a round number of at least ``maximum``, and 0 plus up to ``max_levels`` round numbers to draw lines at."""
    if maximum <= 0:
        return 1.0, [0.0, 1.0]
    step = 10 ** math.floor(math.log10(maximum))
    step = next(s for s in (step / 5, step / 2, step, step * 2, step * 5) if maximum / s <= max_levels)
    count = math.ceil(maximum / step - 1e-9)
    return count * step, [round(i * step, 12) for i in range(count + 1)]
