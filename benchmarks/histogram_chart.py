# SPDX-License-Identifier: Apache-2.0
"""Rows of two histograms each, what a tensor held before and what it holds after, counts on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BINS, BIN, HEIGHT = 120, 4, 110  # of a panel, pixels of a bin, pixels of the highest bar
MARGIN, TITLE, NAME, AXIS = 24, 48, 26, 22  # pixels
INK, BEFORE, AFTER = (30, 30, 30), (120, 130, 140), (214, 96, 20)


class Pair(NamedTuple):
    """Numbers [n] before and after, under a name."""

    name: str
    before: np.ndarray
    after: np.ndarray


def histogram_chart(title: str, pairs: Sequence[Pair]) -> Image.Image:
    """Draw one row for each pair; every panel has its own range, written below it."""
    width, row = BINS * BIN, NAME + HEIGHT + AXIS
    picture = Image.new("RGB", (2 * width + 3 * MARGIN, TITLE + len(pairs) * (row + MARGIN)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 12), title, INK, ImageFont.load_default(20))
    for number, pair in enumerate(pairs):
        top = TITLE + number * (row + MARGIN)
        draw.text((MARGIN, top), pair.name, INK, ImageFont.load_default(15))
        for column, (numbers, colour) in enumerate(((pair.before, BEFORE), (pair.after, AFTER))):
            _panel(draw, MARGIN + column * (width + MARGIN), top + NAME, numbers, colour)
    return picture


def _panel(draw: ImageDraw.ImageDraw, left: int, top: int, numbers: np.ndarray, colour: tuple[int, int, int]) -> None:
    counts, edges = np.histogram(numbers, BINS)
    heights = np.log1p(counts) / np.log1p(counts.max()) * HEIGHT
    bottom = top + HEIGHT
    for number, height in enumerate(heights):
        x = left + number * BIN
        draw.rectangle((x, bottom - round(height), x + BIN - 1, bottom), colour)
    font = ImageFont.load_default(13)
    low, high = f"{edges[0]:.3g}", f"{edges[-1]:.3g}"
    draw.text((left, bottom + 3), low, INK, font)
    draw.text((left + BINS * BIN - draw.textlength(high, font), bottom + 3), high, INK, font)
    middle = f"std {numbers.std():.3g}"
    draw.text((left + (BINS * BIN - draw.textlength(middle, font)) / 2, bottom + 3), middle, INK, font)
