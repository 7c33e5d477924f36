# SPDX-License-Identifier: Apache-2.0
"""Random small networks of attention, norms and linear layers on a grid of tokens."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st

from tests.fuzz.tiny import Graph, attention, rel_pos_attention

__all__ = ["feed_of", "networks"]

ATTENTIONS = ("rel_pos", "attention")
BLOCKS = (*ATTENTIONS, "linear")


@st.composite
def networks(draw: st.DrawFn, *, ends: bool = False) -> onnx.ModelProto:
    """float ``x`` [1, rows, columns, width] -> ``y`` of that shape, by an attention, an MLP and perhaps more.

    Args:
        ends: a linear is the first and the last of it, and its norms have gains.
    """
    heads, depth = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8]))
    rows, columns = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    g = Graph(heads * depth, heads, seed=draw(st.integers(0, 999)))
    shape = (1, rows, columns, g.width)
    x = g.linear("x", g.width, g.width) if ends else "x"
    more = draw(st.lists(st.sampled_from(BLOCKS), max_size=1))
    for block in draw(st.permutations([draw(st.sampled_from(ATTENTIONS)), "mlp", *more])):
        gain = g.drawn(g.width) if ends else g.held(np.ones(g.width))
        normed = g.op("LayerNormalization", x, gain, g.drawn(g.width), axis=-1) if draw(st.booleans()) else x
        if block == "rel_pos":
            made = rel_pos_attention(g, normed, rows, columns)
        elif block == "attention":
            flat = g.op("Reshape", normed, g.ints(1, rows * columns, g.width))
            made = attention(g, flat, flat, flat, draw(st.sampled_from(["qkv", "qkv", "kv", "qv", ""])))
            made = g.op("Reshape", made, g.ints(*shape))
        elif block == "mlp":
            made = g.mlp(normed)
        else:
            made = g.linear(normed, g.width, g.width, bias=draw(st.booleans()))
        x = g.op("Add", x, made) if draw(st.booleans()) else made
    x = g.linear(x, g.width, g.width) if ends else x
    dims = ", ".join(map(str, shape))
    return g.model(f"float[{dims}] x", f"float[{dims}] y", {"y": x})


def feed_of(model: onnx.ModelProto | ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """A random input of a network."""
    graph = (ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model).graph
    shape = graph.inputs[0].shape
    assert shape is not None
    return {"x": np.random.default_rng(seed).standard_normal(shape.numpy(), np.float32)}
