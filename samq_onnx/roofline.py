# SPDX-License-Identifier: Apache-2.0
"""The least time that a model's multiply-accumulates take, at the rate of one large matrix product on this machine."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import onnx.parser

__all__ = ["KINDS", "MACS", "SHAPE", "Rate", "product"]

SHAPE = (4096, 768, 3072)  # rows, inner, columns: the first MLP product of ViT-B on all tokens
MACS = math.prod(SHAPE)

FLOAT = """
<ir_version: 8, opset_import: ["" : 17]>
product (float[ROWS, INNER] a) => (float[ROWS, COLUMNS] c) <float[INNER, COLUMNS] b> { c = MatMul(a, b) }
"""
# as `passes/lower` writes a linear: u8 activations, s8 weights
INTEGER = """
<ir_version: 8, opset_import: ["" : 17]>
product (uint8[ROWS, INNER] a) => (uint8[ROWS, COLUMNS] c)
<int8[INNER, COLUMNS] b, float scale = {0.01}, float wide = {0.1}, uint8 zero = {128}>
{
    x = DequantizeLinear(a, scale, zero)
    w = DequantizeLinear(b, scale)
    y = MatMul(x, w)
    c = QuantizeLinear(y, wide, zero)
}
"""
KINDS = {"float": FLOAT, "integer": INTEGER}


def product(kind: str) -> onnx.ModelProto:
    """A model of one matrix product of `SHAPE`, its second factor constant; ``kind`` is a key of `KINDS`."""
    text = KINDS[kind]
    for name, size in zip(("ROWS", "INNER", "COLUMNS"), SHAPE, strict=True):
        text = text.replace(name, str(size))
    model = onnx.parser.parse_model(text)
    values = np.random.default_rng(0).integers(-127, 128, SHAPE[1:])
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(values.astype(np.float32 if kind == "float" else np.int8), "b")
    )
    return model


@dataclasses.dataclass(frozen=True)
class Rate:
    """Multiply-accumulates a second that matrix products reach."""

    integers: float
    floats: float

    def floor(self, integer_macs: int, float_macs: int) -> float:
        """Seconds that so many multiply-accumulates take at least, one kind after the other."""
        return integer_macs / self.integers + float_macs / self.floats
