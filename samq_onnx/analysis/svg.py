# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG: histograms, ranges of channels, errors of codes, bars. The page's style has the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["bars", "channels", "curve", "histogram"]

WIDTH, HEIGHT = 300, 110  # of a plot
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 8, 20  # around it
ROW, REMARK = 22, 230  # of a bar: height, and width of the words right of it
LETTER = 6.4  # width
BAR = 300  # longest
LEAST_SHARE = 1e-6  # of a histogram, that is drawn


def _svg(width: float, height: float, content: Sequence[str], what: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(what)}">{"".join(content)}</svg>'
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


class _Axes:
    """A plot's place for numbers."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)

    def words(self, *values: float) -> list[str]:
        """Numbers below the axis, those left out that would touch the one before."""
        made, end = [], -math.inf
        for value in values:
            text, place = _number(value), self.x(value)
            half = 3.2 * len(text)
            place = min(max(place, half), WIDTH - half)
            if place - half > end:
                made.append(f'<text x="{place:.1f}" y="{HEIGHT - 6}" class="n">{text}</text>')
                end = place + half + 4
        base = HEIGHT - BOTTOM
        return [f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" class="axis"/>', *made]


def histogram(
    edges: tuple[float, float], before: Sequence[float], after: Sequence[float], kept: tuple[float, float] | None
) -> str:
    """Shares of values on a logarithmic axis, before and after the folds, and the range that the codes hold."""
    axes = _Axes(*edges)
    content = []
    if kept is not None:
        left, right = axes.x(kept[0]), axes.x(kept[1])
        content.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}" class="kept"/>'
        )
    for counts, kind in ((before, "before"), (after, "after")):
        total = sum(counts) or 1.0
        points = [f"{LEFT},{HEIGHT - BOTTOM}"]
        for index, count in enumerate(counts):
            share = max(count / total, LEAST_SHARE)
            y = TOP + (HEIGHT - TOP - BOTTOM) * math.log10(share) / math.log10(LEAST_SHARE)
            for place in (index, index + 1):
                points.append(f"{LEFT + (WIDTH - LEFT - RIGHT) * place / len(counts):.1f},{y:.1f}")
        points.append(f"{WIDTH - RIGHT},{HEIGHT - BOTTOM}")
        content.append(f'<polyline points="{" ".join(points)}" class="{kind}"/>')
    return _svg(WIDTH, HEIGHT, [*content, *axes.words(edges[0], 0.0, edges[1])], "histogram")


def channels(before: tuple[Sequence[float], Sequence[float]], after: tuple[Sequence[float], Sequence[float]]) -> str:
    """Lowest and highest value of each channel, before and after the folds."""
    low = min(0.0, *before[0], *after[0])
    high = max(0.0, *before[1], *after[1])
    wide, tall = 2 * WIDTH + 20, HEIGHT + 30
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return TOP + (tall - TOP - BOTTOM) * (high - value) / span

    content = []
    step = (wide - LEFT - RIGHT) / len(after[0])
    for (lows, highs), kind in ((before, "before"), (after, "after")):
        path = "".join(
            f"M{LEFT + step * (index + 0.5):.1f} {y(bottom):.1f}V{y(top):.1f}"
            for index, (bottom, top) in enumerate(zip(lows, highs, strict=True))
        )
        content.append(f'<path d="{path}" class="{kind}" style="stroke-width:{max(step * 0.8, 0.6):.1f}"/>')
    content.append(f'<line x1="{LEFT}" y1="{y(0.0):.1f}" x2="{wide - RIGHT}" y2="{y(0.0):.1f}" class="axis"/>')
    content.append(f'<text x="{LEFT}" y="{tall - 6}" class="s">channels 0 to {len(after[0]) - 1}</text>')
    content.append(f'<text x="{wide - RIGHT}" y="{tall - 6}" class="e">from {_number(low)} to {_number(high)}</text>')
    return _svg(wide, tall, content, "ranges of channels")


def curve(points: Sequence[tuple[float, float]], chosen: float) -> str:
    """Errors of some choices, on a logarithmic axis, as bars; the chosen one stands out."""
    logs = [math.log10(max(error, 1e-300)) for _, error in points]
    low, high = min(logs), max(logs)
    span = (high - low) or 1.0
    step = (WIDTH - LEFT - RIGHT) / len(points)
    content = []
    for index, ((name, _), value) in enumerate(zip(points, logs, strict=True)):
        height = 8 + (HEIGHT - TOP - BOTTOM - 8) * (value - low) / span
        x = LEFT + step * index
        content.append(
            f'<rect x="{x + step * 0.15:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{step * 0.7:.1f}" '
            f'height="{height:.1f}" class="{"chosen" if name == chosen else "other"}"/>'
        )
        label = f"tau {name:g}" if name else "uniform"
        content.append(f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 6}" class="n">{label}</text>')
    return _svg(WIDTH, HEIGHT, content, "errors of codes")


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Bars of (name, length, remark)."""
    longest = max((length for _, length, _ in rows), default=0.0) or 1.0
    names = [name if len(name) < 52 else "…" + name[-50:] for name, _, _ in rows]
    left = 8 + LETTER * max(map(len, names), default=0)
    content = []
    for number, (shown, (_, length, remark)) in enumerate(zip(names, rows, strict=True)):
        top = number * ROW
        wide = max(2.0, BAR * length / longest)
        content.append(f'<text x="{left - 8:g}" y="{top + 15}" class="e">{escape(shown)}</text>')
        content.append(f'<rect x="{left:g}" y="{top + 3}" width="{wide:.1f}" height="{ROW - 7}" class="chosen"/>')
        content.append(f'<text x="{left + wide + 6:.1f}" y="{top + 15}" class="s">{escape(remark)}</text>')
    return _svg(left + BAR + REMARK, ROW * len(rows), content, "costliest sites")
