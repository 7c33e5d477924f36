# SPDX-License-Identifier: Apache-2.0
"""What numbers the image input of a model wants: pixels normalised by SAM's statistics, or as they are.

An exporter may put the normalisation into the model. What lies between the image and the first layer is run on images
of one colour; the factor that it comes to tells which numbers it expects: those that it brings to the size of
normalised ones.
"""

from __future__ import annotations

import enum

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from samq_onnx.images import PIXEL_MEAN, PIXEL_STD
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import scalar_of

__all__ = ["Pixels", "find_pixels"]

# Operators that an exporter writes in front of the first layer: per-channel arithmetic and views.
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Reciprocal", "Clip", "BatchNormalization"})
VIEWS = frozenset(
    {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Slice", "Split", "Concat", "Pad"}
    | {"Resize"}
)
WIDEST = 16.0  # spread that normalised pixels have at most: 255 / 58 is 4.4, 255 / 16 is wider than any used
NARROWEST = 0.5  # and at least: [0, 1] is 1 wide
LEAST_FACTOR = 1.5  # that makes 0..1 normalised: to [-1, 1] it is 2
NEAR = 1e-3
CHANNELS = 3


class Pixels(enum.Enum):
    """Numbers of an image, by what they are called in messages."""

    NORMALISED = "normalised by SAM's mean and deviation"
    BYTES = "from 0 to 255"
    UNIT = "from 0 to 1"

    def of_normalised(self, image: np.ndarray) -> np.ndarray:
        """Turn normalised pixels, float32 [N, 3, H, W], into such ones; SAM's padding of zeros becomes its mean."""
        if self is Pixels.NORMALISED:
            return image
        pixels = image * PIXEL_STD.reshape(1, CHANNELS, 1, 1) + PIXEL_MEAN.reshape(1, CHANNELS, 1, 1)
        return pixels if self is Pixels.BYTES else pixels / np.float32(255)


def find_pixels(model: ir.Model, name: str, size: int = 1) -> tuple[Pixels, str]:
    """What the image input of that name wants, and a doubt about it, or nothing.

    The doubt is a part of a sentence; pixels that the model leaves as they are, are normalised ones.

    Args:
        size: of its free sides but the first of four, which counts images; a free number of channels is three.
    """
    if any(function.domain != DOMAIN for function in model.functions.values()):
        try:
            model = model.clone()
            common.InlinePass(lambda function: function.domain != DOMAIN)(model)
        except Exception:  # of a graph that onnx_ir cannot follow, as whoever quantizes or runs it will say
            return Pixels.NORMALISED, ""
    image = next(value for value in model.graph.inputs if value.name == name)
    if image.dtype is not None and not image.dtype.is_floating_point():
        return Pixels.BYTES, ""
    end, calculates = _first_layer_input(image)
    if not calculates:
        return Pixels.NORMALISED, ""
    try:
        black, one, white = _medians(model, image, end, size)
    except Exception as error:  # ONNX Runtime raises errors of any kind
        return Pixels.NORMALISED, f"does arithmetic on its image that does not run alone ({type(error).__name__})"
    return _told_by(black, one - black, white - black)


def _told_by(offset: float, unit: float, span: float) -> tuple[Pixels, str]:
    """By what 0 becomes, and how far 1 and 255 are from it then."""
    unit, span = abs(unit), abs(span)
    if abs(span / 255 - 1) < NEAR and abs(offset) < NEAR:
        return Pixels.NORMALISED, ""
    if NARROWEST <= span <= WIDEST or (abs(span / 255 - 1) < NEAR and 0.1 * 255 < abs(offset) < 255):
        return Pixels.BYTES, ""
    if LEAST_FACTOR <= unit <= WIDEST or abs(unit / 255 - 1) < NEAR:
        return Pixels.UNIT, ""
    return (
        Pixels.NORMALISED,
        f"multiplies its image by {unit:.3g} and adds {offset:.3g}, which is no usual normalisation",
    )


def _first_layer_input(image: ir.Value) -> tuple[ir.Value, bool]:
    """The value behind all arithmetic and views on the image, and whether there is arithmetic."""
    front, calculates = [image], False
    for value in front:  # grows
        for node, _ in value.uses():
            if node.op_type == "Shape" or _tells_finite(node):
                continue
            if node.domain != "" or not (node.op_type in ARITHMETIC | VIEWS or _mixes_channels(node)):
                return value, calculates
            calculates |= node.op_type not in VIEWS
            front += [made for made in node.outputs if made not in front]
    return image, False


def _tells_finite(node: ir.Node) -> bool:
    """A product with 0, which only tells whether the image is finite; quantized models have one."""
    return node.op_type == "Mul" and any(scalar_of(value) == 0 for value in node.inputs)


def _mixes_channels(node: ir.Node) -> bool:
    """A convolution that gives three channels of the same pixel."""
    if node.op_type != "Conv" or node.inputs[1] is None or node.inputs[1].shape is None:
        return False
    shape = node.inputs[1].shape
    return shape[0] == CHANNELS and all(side == 1 for side in shape[2:])


def _medians(model: ir.Model, image: ir.Value, end: ir.Value, size: int) -> list[float]:
    """Medians of ``end`` for images of the colours 0, 1 and 255."""
    graph = ir.convenience.extract(model.graph, [image], [end])
    graph.opset_imports.update(model.opset_imports)
    if graph.outputs[0].type is None:
        graph.outputs[0].type = ir.TensorType(image.dtype or ir.DataType.FLOAT)
    piece = ir.external_data.load_to_model(ir.Model(graph, ir_version=model.ir_version or 8))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(piece).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert image.shape is not None and image.dtype is not None
    free = (1, CHANNELS, size, size) if len(image.shape) == 4 else (size,) * len(image.shape)
    shape = [side if isinstance(side, int) else free[axis] for axis, side in enumerate(image.shape)]
    colours = (np.full(shape, colour, image.dtype.numpy()) for colour in (0, 1, 255))
    return [float(np.median(session.run(None, {image.name or "": colour})[0])) for colour in colours]
