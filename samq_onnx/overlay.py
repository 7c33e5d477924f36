# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at: masks, boxes and points drawn on images, and panels in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

__all__ = ["PANEL_SIDE", "draw_box", "draw_masks", "draw_outline", "draw_points", "side_by_side"]

COLOURS = np.array(
    [
        [230, 75, 53],
        [46, 160, 67],
        [66, 133, 244],
        [244, 180, 0],
        [171, 71, 188],
        [0, 172, 193],
        [255, 112, 67],
        [158, 157, 36],
        [92, 107, 192],
        [240, 98, 146],
    ],
    np.uint8,
)
OPACITY = 0.45
PROMPT_COLOUR = (255, 255, 0)
NEGATIVE_COLOUR = (255, 0, 0)
OUTLINE_COLOUR = (0, 230, 255)
PANEL_SIDE = 384  # pixels of a panel's longest side
CAPTION = 28
GAP = 8


def draw_masks(rgb: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Tint each mask bool [H, W] in a colour of its own and draw its contour; uint8 [H, W, 3]."""
    picture = rgb.copy()
    for number, mask in enumerate(masks):
        colour = COLOURS[number % len(COLOURS)]
        picture[mask] = ((1 - OPACITY) * picture[mask] + OPACITY * colour).astype(np.uint8)
        picture[_contour(mask, _line_width(rgb))] = colour
    return picture


def draw_outline(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the contour of a mask bool [H, W] over all else, twice as wide as others; uint8 [H, W, 3]."""
    picture = rgb.copy()
    picture[_contour(mask, 2 * _line_width(rgb))] = OUTLINE_COLOUR
    return picture


def draw_box(rgb: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Draw a box x0, y0, x1, y1 given in pixels; uint8 [H, W, 3]."""
    picture = Image.fromarray(rgb)
    ImageDraw.Draw(picture).rectangle(tuple(box), outline=PROMPT_COLOUR, width=_line_width(rgb))
    return np.array(picture)


def draw_points(rgb: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw points [n, 2] as discs, background ones (label 0) in red; uint8 [H, W, 3]."""
    picture = Image.fromarray(rgb)
    draw = ImageDraw.Draw(picture)
    radius = 2 * _line_width(rgb)
    for (x, y), label in zip(points, labels, strict=True):
        disc = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(disc, fill=PROMPT_COLOUR if label else NEGATIVE_COLOUR, outline="black")
    return np.array(picture)


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Panels of a title and an RGB uint8 image each, scaled to one size and set in a row under their captions."""
    pictures = [(title, _scaled(rgb)) for title, rgb in panels]
    width = sum(picture.width for _, picture in pictures) + GAP * (len(pictures) + 1)
    height = max(picture.height for _, picture in pictures) + CAPTION + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=CAPTION * 0.6)
    x = GAP
    for title, picture in pictures:
        draw.text((x + picture.width / 2, CAPTION / 2), title, fill="black", font=font, anchor="mm")
        canvas.paste(picture, (x, CAPTION))
        x += picture.width + GAP
    return np.array(canvas)


def _contour(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask that are next to its edge, bool [H, W]."""
    inwards = ndimage.distance_transform_cdt(mask, "taxicab")  # 0 outside, -1 where nothing is outside
    return (inwards > 0) & (inwards <= width)


def _line_width(rgb: np.ndarray) -> int:
    """Lines that are seen on large images and leave small objects visible on small ones."""
    return max(1, round(max(rgb.shape) / 400))


def _scaled(rgb: np.ndarray) -> Image.Image:
    height, width = rgb.shape[:2]
    scale = PANEL_SIDE / max(height, width)
    return Image.fromarray(rgb).resize((max(1, round(width * scale)), max(1, round(height * scale))))
