# SPDX-License-Identifier: Apache-2.0
"""Files that come with the package: SAM-Nano, and a few images to calibrate it with and to show it on."""

from __future__ import annotations

from pathlib import Path

__all__ = ["calibration_images", "demo_images", "nano_checkpoint", "nano_dir"]

HERE = Path(__file__).resolve().parent


def nano_dir() -> Path:
    """Folder of SAM-Nano's ``encoder.onnx`` and ``decoder.onnx``, float32."""
    return HERE / "sam_nano"


def nano_checkpoint() -> Path:
    """SAM-Nano's weights, a float16 state dict."""
    return nano_dir() / "sam_nano.safetensors"


def demo_images() -> Path:
    """Annotated folder (``images/`` and ``annotations.json``) that SAM-Nano was not trained on."""
    return HERE / "images"


def calibration_images() -> Path:
    """Annotated folder for calibration, none of its images in `demo_images`."""
    return HERE / "calib"
