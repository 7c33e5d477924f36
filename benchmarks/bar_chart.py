# SPDX-License-Identifier: Apache-2.0
"""Charts of horizontal bars, each with its name on the left and a remark on the right."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

BARS, NAMES, REMARKS = 500, 300, 200  # pixels: of bars, and least ones of the columns left and right of them
ROW, BAR, TITLE, MARGIN = 36, 22, 48, 16
INK, OTHER, HIGHLIGHT = (30, 30, 30), (160, 170, 180), (46, 160, 67)


def bar_chart(title: str, bars: Sequence[tuple[str, float, str, bool]]) -> Image.Image:
    """Draw bars of (name, length in any unit, remark, highlighted)."""
    font = ImageFont.load_default(16)
    names = max(NAMES, *(2 * MARGIN + round(font.getlength(name)) for name, _, _, _ in bars))
    remarks = max(REMARKS, *(8 + MARGIN + round(font.getlength(remark)) for _, _, remark, _ in bars))
    picture = Image.new("RGB", (names + BARS + remarks, TITLE + ROW * len(bars) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(20))
    scale = BARS / (max(length for _, length, _, _ in bars) or 1)
    for number, (name, length, remark, highlighted) in enumerate(bars):
        top = TITLE + ROW * number + (ROW - BAR) // 2
        end = names + max(1, round(scale * length))
        draw.text((MARGIN, top), name, INK, font)
        draw.rectangle((names, top, end, top + BAR), HIGHLIGHT if highlighted else OTHER)
        draw.text((end + 8, top), remark, INK, font)
    return picture


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Charts in rows below each other."""
    width = max(sum(chart.width for chart in row) for row in rows)
    picture = Image.new("RGB", (width, sum(max(chart.height for chart in row) for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for chart in row:
            picture.paste(chart, (left, top))
            left += chart.width
        top += max(chart.height for chart in row)
    return picture
