# SPDX-License-Identifier: Apache-2.0
"""Small float networks for image classification that have nothing of SAM."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

__all__ = ["NETS", "SIDE", "build"]

SIDE = 64

CONVOLUTIONAL = """
<ir_version: 8, opset_import: ["" : 17]>
convolutional (float[1, 3, SIDE, SIDE] image) => (float[1, 10] logits)
<float[8, 3, 3, 3] w1, float[8] b1, float[16, 8, 3, 3] w2, float[16] b2, float[32, 16] w3,
 float[32] b3, float[32, 10] w4>
{
    conv1 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (image, w1, b1)
    relu1 = Relu(conv1)
    conv2 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (relu1, w2, b2)
    relu2 = Relu(conv2)
    pooled = GlobalAveragePool(relu2)
    flat = Flatten(pooled)
    hidden = Gemm <transB = 1> (flat, w3, b3)
    relu3 = Relu(hidden)
    logits = MatMul(relu3, w4)
}
"""

# one block of a vision transformer without its attention
TRANSFORMER_MLP = """
<ir_version: 8, opset_import: ["" : 17]>
transformer_mlp (float[1, 3, SIDE, SIDE] image) => (float[1, 10] logits)
<float[48, 3, 8, 8] w1, float[48] b1, float[48] gain, float[48] offset, float[48, 96] w2, float[96] b2,
 float[96, 48] w3, float[48] b3, float[48, 10] w4, float[10] b4,
 int64[3] tokens = {1, 48, -1}, float root = {1.4142135}, float one = {1.0}, float half = {0.5}>
{
    patches = Conv <strides = [8, 8]> (image, w1, b1)
    rows = Reshape(patches, tokens)
    x = Transpose <perm = [0, 2, 1]> (rows)
    normed = LayerNormalization <axis = -1> (x, gain, offset)
    up = MatMul(normed, w2)
    hidden = Add(up, b2)
    scaled = Div(hidden, root)
    erf = Erf(scaled)
    shifted = Add(erf, one)
    gated = Mul(hidden, shifted)
    gelu = Mul(gated, half)
    down = MatMul(gelu, w3)
    projected = Add(down, b3)
    sum = Add(x, projected)
    mean = ReduceMean <axes = [1], keepdims = 0> (sum)
    head = MatMul(mean, w4)
    logits = Add(head, b4)
}
"""

NETS = {"convolutional": CONVOLUTIONAL, "transformer_mlp": TRANSFORMER_MLP}


def build(name: str, side: int = SIDE) -> onnx.ModelProto:
    """A network of `NETS` on images [1, 3, side, side], its weights random."""
    model = onnx.parser.parse_model(NETS[name].replace("SIDE", str(side)))
    random = np.random.default_rng(0)
    for weight in model.graph.value_info:
        shape = [dim.dim_value for dim in weight.type.tensor_type.shape.dim]
        values = random.standard_normal(shape, np.float32) / np.sqrt(shape[0], dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight.name))
    onnx.checker.check_model(model, full_check=True)
    return model
