# SPDX-License-Identifier: Apache-2.0
"""A chart of horizontal bars, each with its name on the left and a remark on the right."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, NAMES, REMARKS = 1000, 300, 200  # pixels: the whole, and the columns left and right of the bars
ROW, BAR, TITLE, MARGIN = 36, 22, 48, 16
INK, OTHER, HIGHLIGHT = (30, 30, 30), (160, 170, 180), (46, 160, 67)


def bar_chart(title: str, bars: Sequence[tuple[str, float, str, bool]]) -> Image.Image:
    """Draw bars of (name, length in any unit, remark, highlighted)."""
    picture = Image.new("RGB", (WIDTH, TITLE + ROW * len(bars) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(20))
    font = ImageFont.load_default(16)
    scale = (WIDTH - NAMES - REMARKS) / max(length for _, length, _, _ in bars)
    for number, (name, length, remark, highlighted) in enumerate(bars):
        top = TITLE + ROW * number + (ROW - BAR) // 2
        end = NAMES + max(1, round(scale * length))
        draw.text((MARGIN, top), name, INK, font)
        draw.rectangle((NAMES, top, end, top + BAR), HIGHLIGHT if highlighted else OTHER)
        draw.text((end + 8, top), remark, INK, font)
    return picture
