# SPDX-License-Identifier: Apache-2.0
"""Models of a single samq node, inputs for them, and their numpy reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import ops, reference
from samq_onnx.runtime import open_session

Feed = Mapping[str, Any]
GIVE_CODES = ("LogQuantize", "QLinearLut", "Quantize")  # ends of their names


def build(
    op: str, feed: Feed, attributes: Mapping[str, int | float], *, opset: int = 17, constants: Collection[str] = ()
) -> onnx.ModelProto:
    """A model whose inputs are those of ``feed``, in order, all dimensions dynamic; its output is called out.

    Inputs of the node that are named in ``constants`` are initializers instead.
    """
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(x.dtype)), shape=ir.Shape([None] * x.ndim))
        for name, x in feed.items()
    ]
    for value in values:
        if value.name in constants:
            value.const_value = ir.tensor(feed[value.name], name=value.name)
            value.shape = ir.Shape(feed[value.name].shape)
    node = ir.node(op, values, attributes, domain=ops.DOMAIN, name=f"the_{op}")
    out = node.outputs[0]
    out.name, out.shape = "out", ir.Shape([None] * feed[next(iter(feed))].ndim)
    out.type = ir.TensorType(ir.DataType.UINT8 if op.endswith(GIVE_CODES) else ir.DataType.FLOAT)
    held = [value for value in values if value.name in constants]
    inputs = [value for value in values if value.name not in constants]
    graph = ir.Graph(inputs, [out], nodes=[node], initializers=held, opset_imports={"": opset}, name=op)
    model = ir.Model(graph, ir_version=10)
    ops.add_functions(model)
    return ir.to_proto(model)


_sessions: dict[object, ort.InferenceSession] = {}
MOST_SESSIONS = 64


def session(
    op: str, feed: Feed, attributes: Mapping[str, int | float], *, native: bool, constants: Collection[str] = ()
) -> ort.InferenceSession:
    """A session of the node; the same one for the same operator, attributes, types, ranks and constants."""
    inputs = [(name, x.dtype.str, (x.shape, x.tobytes()) if name in constants else x.ndim) for name, x in feed.items()]
    key = (op, native, repr(sorted(attributes.items())), tuple(inputs))
    if key not in _sessions:
        model = build(op, feed, attributes, constants=constants).SerializeToString()
        made = open_session(model, native=native, threads=1)
        if len(_sessions) == MOST_SESSIONS:
            del _sessions[next(iter(_sessions))]  # the oldest
        _sessions[key] = made
    return _sessions[key]


def run(
    op: str, feed: Feed, attributes: Mapping[str, int | float], *, native: bool, constants: Collection[str] = ()
) -> np.ndarray:
    """The output of the node."""
    given = {name: x for name, x in feed.items() if name not in constants}
    return session(op, feed, attributes, native=native, constants=constants).run(None, given)[0]


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    """A rank-0 array."""
    return np.array(value, dtype)


def float_feed(shape: tuple[int, ...], keys: int, depth: int, seed: int = 0, spread: float = 1.0) -> dict[str, Any]:
    """q [*shape, d], k and v [*shape[:-1], keys, d], normal."""
    random = np.random.default_rng(seed)
    key_shape = (*shape[:-1], keys, depth)
    return {
        "q": spread * random.standard_normal((*shape, depth), dtype=np.float32),
        "k": spread * random.standard_normal(key_shape, dtype=np.float32),
        "v": random.standard_normal(key_shape, dtype=np.float32),
    }


def code_feed(shape: tuple[int, ...], keys: int, depth: int, seed: int = 0, p_scale: float = 0.9) -> dict[str, Any]:
    """Codes over their whole ranges with zero points off the middle; logits spread over some tens."""
    random = np.random.default_rng(seed)
    key_shape = (*shape[:-1], keys, depth)
    return {
        "q": random.integers(0, 256, (*shape, depth), dtype=np.uint8),
        "q_scale": scalar(0.02),
        "q_zero_point": scalar(131, np.uint8),
        "k": random.integers(0, 256, key_shape, dtype=np.uint8),
        "k_scale": scalar(0.03),
        "k_zero_point": scalar(121, np.uint8),
        "v": random.integers(0, 256, key_shape, dtype=np.uint8),
        "v_scale": scalar(0.01),
        "v_zero_point": scalar(133, np.uint8),
        "p_scale": scalar(p_scale),
    }


def float_bias(groups: int, queries: int, keys: int, seed: int = 7) -> dict[str, Any]:
    """bias [groups, queries, keys], normal."""
    random = np.random.default_rng(seed)
    return {"bias": 2 * random.standard_normal((groups, queries, keys), dtype=np.float32)}


def code_bias(groups: int, queries: int, keys: int, seed: int = 7) -> dict[str, Any]:
    """Codes of a bias over their whole range, which reach some logits."""
    random = np.random.default_rng(seed)
    codes = random.integers(-32768, 32768, (groups, queries, keys)).astype(np.int16)
    return {"bias": codes, "bias_scale": scalar(1e-4)}


def without_scale(feed: Feed) -> dict[str, Any]:
    """The feed for post-softmax codes that are relative to their row."""
    return {name: x for name, x in feed.items() if name != "p_scale"}


def narrow(feed: dict[str, Any], bits: int, lowest: int = 0) -> dict[str, Any]:
    """The feed with codes of so many bits from ``lowest`` on, and zero points among them."""
    changes: dict[str, Any] = {}
    for name in ("q", "k", "v"):
        first = 0 if name == "q" else lowest
        changes[name] = (first + feed[name] % 2**bits).astype(np.uint8)
        changes[f"{name}_zero_point"] = scalar(first + 2**bits // 3, np.uint8)
    return feed | changes


def tables(hq: int, wq: int, hk: int, wk: int, depth: int, seed: int = 0) -> dict[str, Any]:
    """table_h [hq, hk, d] and table_w [wq, wk, d]."""
    random = np.random.default_rng(seed + 1)
    return {
        "table_h": 0.3 * random.standard_normal((hq, hk, depth), dtype=np.float32),
        "table_w": 0.3 * random.standard_normal((wq, wk, depth), dtype=np.float32),
    }


def code_tables(hq: int, wq: int, hk: int, wk: int, depth: int, seed: int = 0) -> dict[str, Any]:
    """s16 codes of table_h [hq, hk, d] and table_w [wq, wk, d] over their whole range, with scales."""
    random = np.random.default_rng(seed + 1)
    return {
        "table_h": random.integers(-32767, 32768, (hq, hk, depth), dtype=np.int16),
        "table_h_scale": scalar(1.1e-5),
        "table_w": random.integers(-32767, 32768, (wq, wk, depth), dtype=np.int16),
        "table_w_scale": scalar(0.7e-5),
    }


def plain(feed: Feed) -> dict[str, Any]:
    """Rank-0 arrays as Python numbers, for the reference."""
    return {name: x.item() if x.ndim == 0 else x for name, x in feed.items()}


def float_logits(feed: Feed, scale: float) -> np.ndarray:
    """scale * q kT + rel_h + rel_w in float64, of what a feed of codes stands for."""
    given = plain(feed)
    q, k = (given[f"{x}_scale"] * (given[x].astype(np.float64) - given[f"{x}_zero_point"]) for x in "qk")
    logits = scale * (q @ k.swapaxes(-1, -2))
    if "table_h" in given:
        logits = logits + reference.rel_pos(q, *(given[f"{x}_scale"] * given[x] for x in ("table_h", "table_w")))
    if "bias" in given:
        logits = reference.add_bias(logits, given["bias_scale"] * given["bias"])
    return logits
