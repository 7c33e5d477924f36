# SPDX-License-Identifier: Apache-2.0
"""A SAM of 64 pixels and 16 channels with random weights, made without torch: what fuzzers change and run.

It has all that is recognised in the real one: windows aside, attention with relative position in the encoder, and in
the decoder self-attention of tokens, cross-attention both ways, norms, GELU, upscaling and products of masks.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

__all__ = ["SIDE", "Graph", "attention", "decoder", "encoder", "rel_pos_attention"]

SIDE, GRID, WIDTH, HEADS = 64, 4, 16, 2
TOKENS, DEPTH = GRID * GRID, WIDTH // HEADS
MASKS = 4


class Graph:
    """Lines of a graph in ONNX's own language, and its weights."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, seed: int = 0) -> None:
        self.width, self.heads, self.depth = width, heads, width // heads
        self._random = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: list[onnx.TensorProto] = []

    def held(self, array: object, dtype: type = np.float32) -> str:
        """A weight of these values."""
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def drawn(self, *shape: int, scale: float = 0.3) -> str:
        """A random weight."""
        return self.held(scale * self._random.standard_normal(shape))

    def ints(self, *values: int) -> str:
        """Integers, as shapes and axes are."""
        return self.held(values, np.int64)

    def op(self, name: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """A node; the name of its output, or of all, with commas."""
        made = ", ".join(f"v{len(self.lines)}_{number}" for number in range(outputs))
        shown = ", ".join(f"{key} = {_text(value)}" for key, value in attributes.items())
        self.lines.append(f"{made} = {name} {f'<{shown}>' if shown else ''} ({', '.join(inputs)})")
        return made

    def linear(self, x: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
        product = self.op("MatMul", x, self.drawn(inputs, outputs))
        return self.op("Add", product, self.drawn(outputs)) if bias else product

    def norm(self, x: str) -> str:
        return self.op("LayerNormalization", x, self.held(np.ones(self.width)), self.drawn(self.width), axis=-1)

    def mlp(self, x: str) -> str:
        hidden = self.linear(x, self.width, 2 * self.width)
        erf = self.op("Erf", self.op("Div", hidden, self.held(np.sqrt(2))))
        gated = self.op("Mul", hidden, self.op("Add", erf, self.held(1)))
        return self.linear(self.op("Mul", gated, self.held(0.5)), 2 * self.width, self.width)

    def model(self, inputs: str, outputs: str, results: dict[str, str], opset: int = 17) -> onnx.ModelProto:
        """The whole; ``results``: name of an output -> value."""
        lines = [*self.lines, *(f"{name} = Identity ({value})" for name, value in results.items())]
        header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
        model = onnx.parser.parse_model(f"{header}\ntiny ({inputs}) => ({outputs})\n{{\n" + "\n".join(lines) + "\n}")
        model.graph.initializer.extend(self.weights)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _text(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def rel_pos_attention(g: Graph, x: str, rows: int, columns: int) -> str:
    """Self-attention of x [1, rows, columns, width] with relative position, q, k and v from one linear."""
    tokens, heads, depth = rows * columns, g.heads, g.depth
    qkv = g.op("Reshape", g.linear(x, g.width, 3 * g.width), g.ints(1, tokens, 3, heads, depth))
    parts = g.op("Reshape", g.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), g.ints(3, heads, tokens, depth))
    q, k, v = (g.op("Squeeze", part, g.ints(0)) for part in g.op("Split", parts, outputs=3, axis=0).split(", "))
    scaled = g.op("Mul", q, g.held(depth**-0.5))
    scores = g.op("MatMul", scaled, g.op("Transpose", k, perm=[0, 2, 1]))
    grid = g.op("Reshape", q, g.ints(heads, rows, columns, depth))
    total = g.op("Reshape", scores, g.ints(heads, rows, columns, rows, columns))
    for equation, axis, side in (("bhwc,hkc->bhwk", 4, rows), ("bhwc,wkc->bhwk", 3, columns)):
        term = g.op("Einsum", grid, g.drawn(side, side, depth), equation=equation)
        total = g.op("Add", total, g.op("Unsqueeze", term, g.ints(axis)))
    weights = g.op("Softmax", g.op("Reshape", total, g.ints(heads, tokens, tokens)), axis=-1)
    read = g.op("Reshape", g.op("MatMul", weights, v), g.ints(1, heads, rows, columns, depth))
    joined = g.op("Reshape", g.op("Transpose", read, perm=[0, 2, 3, 1, 4]), g.ints(1, rows, columns, g.width))
    return g.linear(joined, g.width, g.width)


def encoder() -> onnx.ModelProto:
    """float32 ``image`` [1, 3, 64, 64] -> ``image_embeddings`` [1, 16, 4, 4]; one block of global attention."""
    g = Graph()
    patch = SIDE // GRID
    patches = g.op("Conv", "image", g.drawn(WIDTH, 3, patch, patch, scale=0.05), g.drawn(WIDTH), strides=[patch, patch])
    x = g.op("Add", g.op("Transpose", patches, perm=[0, 2, 3, 1]), g.drawn(1, GRID, GRID, WIDTH))
    x = g.op("Add", x, rel_pos_attention(g, g.norm(x), GRID, GRID))
    x = g.op("Add", x, g.mlp(g.norm(x)))
    made = g.op("Conv", g.op("Transpose", x, perm=[0, 3, 1, 2]), g.drawn(WIDTH, WIDTH, 1, 1))
    outputs = f"float[1, {WIDTH}, {GRID}, {GRID}] image_embeddings"
    return g.model(f"float[1, 3, {SIDE}, {SIDE}] image", outputs, {"image_embeddings": made})


def attention(g: Graph, q: str, k: str, v: str, biased: str = "qkv") -> str:
    """Attention of rows q [1, m, width] to rows k and v [1, n, width]; projections of ``biased`` have a bias."""
    heads = []
    for name, x in zip("qkv", (q, k, v), strict=True):
        made = g.linear(x, g.width, g.width, bias=name in biased)
        apart = g.op("Reshape", made, g.ints(1, -1, g.heads, g.depth))
        heads.append(g.op("Transpose", apart, perm=[0, 2, 1, 3]))
    scores = g.op("MatMul", heads[0], g.op("Transpose", heads[1], perm=[0, 1, 3, 2]))
    weights = g.op("Softmax", g.op("Div", scores, g.held(g.depth**0.5)), axis=-1)
    read = g.op("Transpose", g.op("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    return g.linear(g.op("Reshape", read, g.ints(1, -1, g.width)), g.width, g.width)


def _points(g: Graph) -> str:
    """Tokens [1, n, 16] of the points."""
    places = g.op("Div", g.op("Add", "point_coords", g.held(0.5)), g.held(SIDE))
    angles = g.op("MatMul", places, g.drawn(2, WIDTH // 2, scale=3.0))
    waves = g.op("Concat", g.op("Sin", angles), g.op("Cos", angles), axis=-1)
    labels = g.op("Unsqueeze", "point_labels", g.ints(-1))
    total = g.op("Where", g.op("Equal", labels, g.held(-1)), g.held(0), waves)
    for label in range(-1, 4):
        chosen = g.op("Cast", g.op("Equal", labels, g.held(label)), to=1)
        total = g.op("Add", total, g.op("Mul", chosen, g.drawn(WIDTH)))
    return total


def _resized(g: Graph, low_res: str) -> str:
    """Masks at the size of the original image: the part of the square that it fills, scaled."""
    square = g.op("Resize", low_res, "", "", g.ints(1, MASKS, SIDE, SIDE), mode="linear")
    scale = g.op("Div", g.held(SIDE), g.op("ReduceMax", "orig_im_size", keepdims=1))
    sides = g.op("Cast", g.op("Floor", g.op("Add", g.op("Mul", "orig_im_size", scale), g.held(0.5))), to=7)
    filled = g.op("Slice", square, g.ints(0, 0), sides, g.ints(2, 3))
    wanted = g.op("Concat", g.ints(1, MASKS), g.op("Cast", "orig_im_size", to=7), axis=0)
    return g.op("Resize", filled, "", "", wanted, mode="linear")


def decoder() -> onnx.ModelProto:
    """The inputs of segment-anything's decoder -> ``masks``, ``iou_predictions``, ``low_res_masks``."""
    g = Graph()
    tokens = g.op("Concat", g.drawn(1, 1 + MASKS, WIDTH), _points(g), axis=1)
    shown = g.op("Mul", g.op("Conv", "mask_input", g.drawn(WIDTH, 1, 4, 4), strides=[4, 4]), "has_mask_input")
    hidden = g.op("Mul", g.drawn(1, WIDTH, 1, 1), g.op("Sub", g.held(1), "has_mask_input"))
    source = g.op("Add", "image_embeddings", g.op("Add", shown, hidden))
    flat = g.op("Reshape", source, g.ints(1, WIDTH, TOKENS))
    pixels, places = g.op("Transpose", flat, perm=[0, 2, 1]), g.drawn(1, TOKENS, WIDTH)
    asked = tokens
    tokens = g.norm(g.op("Add", tokens, attention(g, tokens, tokens, tokens)))
    read = attention(g, g.op("Add", tokens, asked), g.op("Add", pixels, places), pixels)
    tokens = g.norm(g.op("Add", tokens, read))
    tokens = g.norm(g.op("Add", tokens, g.mlp(tokens)))
    written = attention(g, g.op("Add", pixels, places), g.op("Add", tokens, asked), tokens)
    pixels = g.norm(g.op("Add", pixels, written))
    read = attention(g, g.op("Add", tokens, asked), g.op("Add", pixels, places), pixels)
    tokens = g.norm(g.op("Add", tokens, read))
    image = g.op("Reshape", g.op("Transpose", pixels, perm=[0, 2, 1]), g.ints(1, WIDTH, GRID, GRID))
    half = g.op("ConvTranspose", image, g.drawn(WIDTH, 8, 2, 2), g.drawn(8), strides=[2, 2])
    whole = g.op("ConvTranspose", g.op("Relu", half), g.drawn(8, 4, 2, 2), g.drawn(4), strides=[2, 2])
    kinds = g.op("Slice", tokens, g.ints(1), g.ints(1 + MASKS), g.ints(1))
    products = g.op("MatMul", g.linear(kinds, WIDTH, 4), g.op("Reshape", whole, g.ints(1, 4, 16 * TOKENS)))
    low_res = g.op("Reshape", products, g.ints(1, MASKS, 4 * GRID, 4 * GRID))
    first = g.op("Squeeze", g.op("Slice", tokens, g.ints(0), g.ints(1), g.ints(1)), g.ints(1))
    return g.model(
        f"float[1, {WIDTH}, {GRID}, {GRID}] image_embeddings, float[1, num_points, 2] point_coords, "
        f"float[1, num_points] point_labels, float[1, 1, {4 * GRID}, {4 * GRID}] mask_input, float[1] has_mask_input, "
        "float[2] orig_im_size",
        f"float[1, {MASKS}, height, width] masks, float[1, {MASKS}] iou_predictions, "
        f"float[1, {MASKS}, {4 * GRID}, {4 * GRID}] low_res_masks",
        {"masks": _resized(g, low_res), "iou_predictions": g.linear(first, WIDTH, MASKS), "low_res_masks": low_res},
    )  # fmt: skip
