# SPDX-License-Identifier: Apache-2.0
"""Panels of lines side by side, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, TITLE, LEGEND = 380, 70, 50, 24  # pixels: a panel's plot, what is around it, a line of the legend
INK, GRID = (30, 30, 30), (225, 225, 225)
COLOURS = ((120, 120, 120), (31, 119, 180), (46, 160, 67), (214, 96, 20), (148, 70, 189))
SMALLEST = 1e-6  # stands for zero, which has no logarithm


class Line(NamedTuple):
    """Points (x, y) under a name."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, x_name: str, panels: Mapping[str, Sequence[Line]]) -> Image.Image:
    """Draw panels (title -> lines); the lines of all panels have the same names, shown once below."""
    names = [line.name for line in next(iter(panels.values()))]
    height = TITLE + SIDE + MARGIN + LEGEND * (len(names) + 1)
    picture = Image.new("RGB", (len(panels) * (SIDE + MARGIN) + MARGIN, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 14), title, INK, ImageFont.load_default(20))
    for number, (name, lines) in enumerate(panels.items()):
        _panel(draw, MARGIN + number * (SIDE + MARGIN), TITLE + 24, f"{name}, by {x_name}", lines)
    for number, name in enumerate(names):
        top = height - LEGEND * (len(names) - number) - 8
        draw.line((MARGIN, top + 10, MARGIN + 30, top + 10), COLOURS[number], 3)
        draw.text((MARGIN + 40, top), name, INK, ImageFont.load_default(16))
    return picture


def _panel(draw: ImageDraw.ImageDraw, left: int, top: int, title: str, lines: Sequence[Line]) -> None:
    font = ImageFont.load_default(13)
    draw.text((left, top - 22), title, INK, ImageFont.load_default(16))
    logs = [[(math.log2(x), math.log10(max(y, SMALLEST))) for x, y in line.points] for line in lines]
    xs = [x for line in logs for x, _ in line]
    low_x, high_x = min(xs), max(xs)
    low = math.floor(min(y for line in logs for _, y in line))
    high = max(low + 1, math.ceil(max(y for line in logs for _, y in line)))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + SIDE * (x - low_x) / (high_x - low_x), top + SIDE * (high - y) / (high - low)

    for power in range(low, high + 1):
        draw.line((place(low_x, power), place(high_x, power)), GRID)
        draw.text((left - 50, place(low_x, power)[1] - 8), f"{10.0**power:g}", INK, font)
    for x in sorted(set(xs)):
        draw.line((place(x, low), place(x, high)), GRID)
        draw.text((place(x, low)[0] - 12, top + SIDE + 6), f"{2**x:.0f}", INK, font)
    for points, colour in zip(logs, COLOURS, strict=False):
        draw.line([place(*point) for point in points], colour, 3)
