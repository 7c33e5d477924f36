# SPDX-License-Identifier: Apache-2.0
"""What other exporters do to a model, and what tests do with it then."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from samq_onnx import assets, data, images, quantize
from samq_onnx.families import Part, identify
from samq_onnx.models import read_model
from samq_onnx.predictor import SamPredictor

RGB = images.load(data.image_paths(assets.demo_images())[0])[:200]
BOX = np.array([20.0, 30.0, 150.0, 120.0])
POINT = np.array([[60.0, 70.0]])


def behind(model: onnx.ModelProto, name: str, nodes: list[onnx.NodeProto], made: str) -> None:
    """Put nodes between an input and all that reads it; they read it and make ``made``."""
    for node in model.graph.node:
        node.input[:] = [made if value == name else value for value in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    del model.graph.value_info[:]


def retyped(model: onnx.ModelProto, name: str, dtype: int) -> onnx.ModelProto:
    """An input gets another type."""
    behind(model, name, [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT)], f"{name}_float")
    value = next(value for value in model.graph.input if value.name == name)
    value.type.tensor_type.elem_type = dtype
    return model


def part_of(path: Path) -> Part:
    """What a file is."""
    return identify(read_model(path), str(path))


def answers(encoder: Path, decoder: Path) -> list[np.ndarray]:
    """What a pair says to a box and to a point."""
    predictor = SamPredictor(encoder, decoder)
    predictor.set_image(RGB)
    return [*predictor.predict(box=BOX), *predictor.predict(POINT, np.ones(1))]


def assert_same(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    """Arrays agree, rounding aside."""
    for expected, actual in zip(one, two, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def quantizes(source: Path, *more: str | Path) -> bool:
    """Whether the command makes ``quantized.onnx`` beside a file."""
    output = source.with_name("quantized.onnx")
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--method", "minmax", *more]
    with contextlib.suppress(FileNotFoundError):
        output.unlink()
    return quantize.main([str(argument) for argument in arguments]) == 0 and output.is_file()
