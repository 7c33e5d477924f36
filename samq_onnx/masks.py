# SPDX-License-Identifier: Apache-2.0
"""Masks from COCO's segmentations. Everything is checked before it is decoded.

Run lengths are decoded here. Polygons are rasterised by pycocotools, which is imported when the first one is asked for;
what reaches far out of the image is cut off before, as it holds every step of an outline in memory.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from samq_onnx.errors import UserError

__all__ = ["FARTHEST", "decode"]

FIRST_CHARACTER = ord("0")
DIGIT_BITS = 5  # of a number, in a character of compressed run lengths
SIGN, MORE = 16, 32  # bits of a character: of the last one, the number is negative; another one follows
MOST_DIGITS = 7  # for numbers of 32 bits
STEPS = 5  # that pycocotools makes along an outline for each pixel
FARTHEST = 1_000_000  # pixels; no image is so large
MOST_STEPS = 20_000_000  # of 20 bytes; an outline as long as a thousand sides of an image of 4000 pixels
MOST_POLYGONS = 10_000


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of a segmentation as JSON gives it, bool [height, width].

    Raises:
        ValueError: it is none, or one of another image; the message is the reason.
        UserError: it holds polygons, and pycocotools is not installed.
    """
    if segmentation is None or segmentation == []:
        raise ValueError("there is none")
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise ValueError(f"neither polygons nor run lengths, but {reprlib.repr(segmentation)}")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"its size {reprlib.repr(size)} is not the image's {[height, width]}")
    if isinstance(counts, str):
        runs = _decompressed(counts, height * width)
    elif isinstance(counts, list):
        runs = _numbers(counts)
    else:
        raise ValueError(f"its run lengths are {reprlib.repr(counts)}")
    if not ((runs >= 0) & (runs <= height * width)).all() or runs.sum() != height * width or (runs % 1).any():
        raise ValueError(f"its run lengths do not add up to the image's {height * width} pixels")
    filled = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))
    return filled.reshape(width, height).T  # run lengths go down the columns


def _decompressed(text: str, pixels: int) -> np.ndarray:
    """Run lengths int64 of COCO's compressed form: numbers of five bits a character, from the fourth on as the
    difference to the one before the last."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    if not len(codes) or codes.min() < 0 or codes.max() >= 2 * MORE or codes[-1] & MORE:
        raise ValueError("its run lengths are no complete numbers")
    last = np.flatnonzero(codes & MORE == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > MOST_DIGITS:
        raise ValueError("its run lengths hold a number without end")
    places = DIGIT_BITS * (np.arange(len(codes)) - np.repeat(first, digits))
    runs = np.add.reduceat((codes & (MORE - 1)) << places, first)
    runs[codes[last] & SIGN != 0] -= 1 << (DIGIT_BITS * digits[codes[last] & SIGN != 0])
    if np.abs(runs).max() > pixels:
        raise ValueError(f"its run lengths do not add up to the image's {pixels} pixels")
    for start in (1, 2):
        runs[start::2] = np.cumsum(runs[start::2])
    return runs


def _polygons(polygons: list[Any], height: int, width: int) -> np.ndarray:
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise UserError("masks need the package pycocotools; run: pip install samq_onnx[eval]") from error
    outlines = [_cut(outline, height, width) for outline in map(_points, polygons) if len(outline) >= 3]
    outlines = [outline for outline in outlines if len(outline) >= 3]
    if not outlines:
        raise ValueError("no polygon of three points or more reaches into the image")
    steps = sum(_steps(outline) for outline in outlines)
    if steps > MOST_STEPS or len(outlines) > MOST_POLYGONS:
        raise ValueError(
            f"its {len(outlines)} outlines are {steps // STEPS} pixels long, which is no outline of an object"
        )
    runs = coco.frPyObjects([outline.ravel().tolist() for outline in outlines], height, width)
    return coco.decode(coco.merge(runs)).astype(bool)


def _points(polygon: Any) -> np.ndarray:
    """Corners (x, y) of an outline, float64 [n, 2]."""
    if not isinstance(polygon, list):
        raise ValueError(f"a polygon is {reprlib.repr(polygon)}, not a list of coordinates")
    numbers = _numbers(polygon)
    if len(numbers) % 2:
        raise ValueError(f"a polygon has {len(numbers)} coordinates, an odd number")
    if len(numbers) and np.abs(numbers).max() > FARTHEST:
        raise ValueError(f"a polygon has a coordinate of {np.abs(numbers).max():g}, far out of the image")
    return numbers.reshape(-1, 2)


def _numbers(values: list[Any]) -> np.ndarray:
    """Finite numbers, float64."""
    for value in values:
        if type(value) not in (int, float):
            raise ValueError(f"{reprlib.repr(value)} is not a number")
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        numbers = np.array([np.inf])
    if not np.isfinite(numbers).all():
        raise ValueError("a number is not finite")
    return numbers


def _steps(outline: np.ndarray) -> int:
    return int(np.abs(np.roll(outline, 1, axis=0) - outline).max(axis=1).sum() * STEPS) + len(outline)


def _cut(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """An outline without what lies more than the image's longest side beyond its edges (Sutherland and Hodgman).

    One that stays within is returned as it is. The edges along the cut are out of the image, and fill nothing there
    that was not filled.
    """
    margin = max(height, width)
    for axis, side in enumerate((width, height)):
        for bound, sign in ((-margin, 1.0), (side + margin, -1.0)):
            if len(outline) and (sign * outline[:, axis] < sign * bound).any():
                outline = _half_plane(outline, axis, bound, sign)
    return outline


def _half_plane(outline: np.ndarray, axis: int, bound: float, sign: float) -> np.ndarray:
    kept = []
    for start, end in zip(np.roll(outline, 1, axis=0), outline, strict=True):
        inside, ends_inside = sign * start[axis] >= sign * bound, sign * end[axis] >= sign * bound
        if inside != ends_inside:
            part = (bound - start[axis]) / (end[axis] - start[axis])
            crossing = start * (1 - part) + end * part
            crossing[axis] = bound
            kept.append(crossing)
        if ends_inside:
            kept.append(end)
    return np.array(kept).reshape(-1, 2)
