# SPDX-License-Identifier: Apache-2.0
"""Mask logits brought to the size of an image, for decoders that leave this to others.

Bilinear, pixels being areas (PyTorch's interpolate without align_corners, ONNX's half_pixel), without a filter where
it makes smaller: what SAM's own post-processing does.
"""

from __future__ import annotations

import numpy as np

from samq_onnx import images

__all__ = ["bilinear", "to_image"]


def bilinear(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float maps [..., h, w] -> float32 [..., height, width]."""
    low, high, share = _places(maps.shape[-2], height)
    share = share[:, None]
    rows = maps[..., low, :] * (1 - share) + maps[..., high, :] * share
    low, high, share = _places(maps.shape[-1], width)
    made = rows[..., low] * (1 - share) + rows[..., high] * share
    return made.astype(np.float32, copy=False)


def _places(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new place, the two old ones that it lies between, and the share of the second, float32."""
    at = np.maximum((np.arange(after) + 0.5) * (before / after) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), before - 1)
    return low, np.minimum(low + 1, before - 1), (at - low).astype(np.float32)


def to_image(maps: np.ndarray, side: int, size: tuple[int, int], stretched: bool) -> np.ndarray:
    """Low-resolution logits [..., L, L] of a square image -> logits [..., H, W] of the original.

    Args:
        side: of the square image. size: height and width of the original.
        stretched: whether the original filled the square; else its longest side did, and padding is cut off.
    """
    if stretched:
        return bilinear(maps, *size)
    height, width = images.resized_shape(*size, side)
    return bilinear(bilinear(maps, side, side)[..., :height, :width], *size)
