# SPDX-License-Identifier: Apache-2.0
"""PyTorch module -> ONNX file, by the TorchScript exporter."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from samq_onnx.export.part import Part, Shape

__all__ = ["OPSET", "trace"]

OPSET = 17  # the lowest with LayerNormalization, and the one segment_anything's own export uses


def trace(part: Part, path: Path) -> None:
    """Write the graph of a part to ``path``; weights above 2 GB go to files beside it."""
    shapes = part.inputs | part.outputs
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            part.module,
            part.sample,
            str(path),  # a Path would not get files beside it
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_axes={name: axes for name, shape in shapes.items() if (axes := _dynamic(shape))},
            opset_version=OPSET,
            dynamo=False,
        )


def _dynamic(shape: Shape) -> dict[int, str]:
    return {axis: side for axis, side in enumerate(shape) if isinstance(side, str)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own deprecation and on Python values that SAM's code traces as constants."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
