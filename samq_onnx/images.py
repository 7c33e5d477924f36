# SPDX-License-Identifier: Apache-2.0
"""Images as SAM wants them: read as RGB, scaled to the model's square, coordinates along with them.

The geometry and the statistics are those of ``segment_anything.utils.transforms.ResizeLongestSide`` and
``segment_anything.modeling.Sam.preprocess``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from samq_onnx.errors import UserError

__all__ = ["load", "preprocess", "resized_shape", "size", "to_model_coords"]

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
EXIF_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as RGB, uint8 [H, W, 3].

    The EXIF rotation is applied. Grey is repeated to three channels; 16-bit grey is scaled from its full range
    (65535 becomes 255). An alpha channel is dropped, as in the usual ways to load an image for SAM
    (``cv2.imread``, ``PIL.Image.convert("RGB")``), so that the pixels are those the float model sees there.

    Raises:
        UserError: no such file, not an image, damaged, or of a pixel type without a defined range.
    """
    file = _existing(path)
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise _undecodable(file, error) from error
    if image.mode in WIDE_GREY_MODES:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"{file}: grey values beyond 16 bits; convert the image to 8 or 16 bits")
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{file}: floating-point pixels have no defined range; convert the image to 8 or 16 bits")
    return np.array(image.convert("RGB"))


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image as `load` returns it, from its header alone.

    Raises:
        UserError: no such file or not an image.
    """
    file = _existing(path)
    try:
        with Image.open(file) as image:
            width, height = image.size
            transposed = image.getexif().get(EXIF_ORIENTATION) in TRANSPOSED
    except Exception as error:  # as in `load`
        raise _undecodable(file, error) from error
    return (height, width) if transposed else (width, height)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the longest side became ``size``, rounded as SAM rounds."""
    scale = size / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def to_model_coords(points: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Scale (x, y) points [..., 2] from the original image to the encoder's frame, float64 [..., 2]."""
    new_height, new_width = resized_shape(height, width, size)
    return np.asarray(points, np.float64) * (new_width / width, new_height / height)


def preprocess(rgb: np.ndarray, size: int) -> np.ndarray:
    """Turn RGB uint8 [H, W, 3] into the encoder input float32 [1, 3, size, size].

    The longest side is resized to ``size`` (PIL's bilinear filter), pixels are normalised and the rest is zero,
    at the bottom and on the right.

    Raises:
        UserError: not an RGB uint8 image, or so long and narrow that nothing is left of its short side.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise UserError(f"an image must be RGB uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}; use images.load")
    height, width = resized_shape(rgb.shape[0], rgb.shape[1], size)
    if min(height, width) < 1:
        raise UserError(f"an image of {rgb.shape[1]} x {rgb.shape[0]} pixels is too narrow for SAM; crop it")
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((1, 3, size, size), np.float32)
    canvas[0, :, :height, :width] = ((np.asarray(resized, np.float32) - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    return canvas


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such image file; check the path")
    return file


def _undecodable(file: Path, error: Exception) -> UserError:
    reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
    return UserError(f"{file}: the image does not decode ({reason}); convert it to PNG or JPEG")
