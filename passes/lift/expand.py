# SPDX-License-Identifier: Apache-2.0
"""Take the fusions of ONNX Runtime apart again, into operators of ONNX, so that everything behind finds what it knows.

    FusedMatMul(A, B)          ->  MatMul(A or its transpose, B or its transpose) * alpha
    SkipLayerNormalization     ->  LayerNormalization(input + skip + bias)
    Attention(x, W, b)         ->  three MatMuls and Adds, heads apart, Softmax(q kT * scale + bias) v, heads together

and so for GELUs and biases, for convolutions, Gemms and products with an activation, and for layer norms in opsets that
have none. A model that was saved at ORT_ENABLE_ALL has convolutions in a layout of the machine that saved it, which is
refused. Other fusions (masks, caches, packed operands) are left alone, and told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.errors import UserError
from samq_onnx.passes.graph import add_constant, array_of, input_of
from samq_onnx.passes.lift.propagate import propagate

__all__ = ["DOMAIN", "expand"]

DOMAIN = "com.microsoft"
LAYOUTS = "com.microsoft.nchwc"
NORM_OPSET = 17  # that brought LayerNormalization
AXES_OPSET = 18  # since then, axes of ReduceMean are an input


def expand(model: ir.Model) -> list[str]:
    """Take fusions apart in the outermost graph of ``model``, in place; nodes are in order.

    Returns:
        A sentence for each kind of fusion that is left.

    Raises:
        UserError: convolutions are laid out for one machine.
    """
    counts = Counter(node.op_type for node in model.graph.all_nodes() if node.domain == LAYOUTS)
    if counts:
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common(3))
        raise UserError(
            f"ONNX Runtime has laid it out for the machine that saved it ({found} of {LAYOUTS}); give the model that "
            "it was made from, or save it with ORT_ENABLE_EXTENDED instead of ORT_ENABLE_ALL"
        )
    if not any(_apart(node, model.opset_imports.get("", 0)) for node in model.graph):
        return _left(model)
    propagate(model, lambda node: _expanded(model, node))
    return _left(model)


def _left(model: ir.Model) -> list[str]:
    counts = Counter(
        node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in FUSED
    )
    return [
        f"{count} {name} of {DOMAIN} stay in float: a fusion of ONNX Runtime that is not taken apart; give the model "
        "that it was made from"
        for name, count in counts.items()
    ]


def _apart(node: ir.Node, opset: int) -> Callable[[_Parts], Sequence[ir.Value] | None] | None:
    """What takes a node apart, None of those that are no fusion."""
    if node.domain == DOMAIN:
        return FUSED.get(node.op_type)
    if node.domain == "" and node.op_type == "SimplifiedLayerNormalization":
        return _root_mean_square
    if node.domain == "" and node.op_type == "LayerNormalization" and opset < NORM_OPSET:
        return _layer_norm
    return None


def _expanded(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    """The nodes that stand for one, itself where it is left alone."""
    apart = _apart(node, model.opset_imports.get("", 0))
    if apart is None:
        return [node]
    parts = _Parts(model, node)
    try:
        made = apart(parts)
    except _Left:
        made = None
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    if made is None or any(value not in node.outputs[: len(made)] for value in used):
        parts.drop()
        return [node]
    for old, new in zip(node.outputs, made, strict=False):
        new.name, new.type, new.shape = old.name, old.type or new.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.insert_before(node, parts.nodes)
    model.graph.remove(node, safe=True)
    return parts.nodes


class _Left(Exception):
    """A fusion in a form that is left alone."""


class _Parts:
    """The nodes that a fusion becomes, in order."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.node, self.nodes = node, list[ir.Node]()
        self._graph, self.opset = model.graph, model.opset_imports.get("", 0)
        self._constants: list[ir.Value] = []

    def drop(self) -> None:
        """Forget what was made."""
        for node in reversed(self.nodes):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        for value in self._constants:
            del self._graph.initializers[value.name or ""]

    def input(self, index: int) -> ir.Value:
        """An input that is there."""
        value = input_of(self.node, index)
        if value is None:
            raise _Left
        return value

    def without(self, *places: int) -> None:
        """Leave a node alone that has one of these inputs."""
        if any(input_of(self.node, place) is not None for place in places):
            raise _Left

    def number(self, name: str, default: float) -> float:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """One more node; its output has a name of its own."""
        place = len(self.nodes)
        node = ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]
        node.name = f"{self.node.name or self.node.outputs[0].name}_{place}"
        node.outputs[0].name = f"{self.node.outputs[0].name}_part_{place}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        made = add_constant(self._graph, f"{self.node.outputs[0].name}_{name}", array)
        self._constants.append(made)
        return made

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A constant of the type of a value."""
        dtype = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
        return self.constant(np.array(number, dtype), "number")

    def scaled(self, value: ir.Value, factor: float) -> ir.Value:
        return value if factor == 1 else self.op("Mul", value, self.scalar(factor, value))

    def target(self, *sizes: int) -> ir.Value:
        return self.constant(np.array(sizes, np.int64), "sizes")

    def sum(self, *values: ir.Value | None) -> ir.Value:
        """Of those that are there."""
        total, *others = [value for value in values if value is not None]
        for value in others:
            total = self.op("Add", total, value)
        return total

    def mean(self, value: ir.Value, axis: int) -> ir.Value:
        if self.opset < AXES_OPSET:
            return self.op("ReduceMean", value, axes=[axis], keepdims=1)
        return self.op("ReduceMean", value, self.target(axis), keepdims=1)


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        raise _Left
    return len(value.shape)


def _size(value: ir.Value, axis: int) -> int:
    side = value.shape[axis] if value.shape is not None and len(value.shape) else None
    if not isinstance(side, int):
        raise _Left
    return side


def _factor(parts: _Parts, index: int, side: str) -> ir.Value:
    """A factor of a product, transposed as its attributes say."""
    value = parts.input(index)
    batch, last = (bool(parts.number(f"trans{what}{side}", 0)) for what in ("Batch", ""))
    if not batch and not last:
        return value
    axes = list(range(_rank(value)))
    if len(axes) < 2:
        return value  # a vector has no transpose
    if batch:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if last:
        axes[-2:] = axes[:-3:-1]
    return parts.op("Transpose", value, perm=axes)


def _matmul(parts: _Parts) -> list[ir.Value]:
    product = parts.op("MatMul", _factor(parts, 0, "A"), _factor(parts, 1, "B"))
    return [parts.scaled(product, parts.number("alpha", 1.0))]


def _activated(parts: _Parts, value: ir.Value, numbers: Sequence[float]) -> ir.Value:
    """Behind the activation that the node names, of which ``numbers`` are the parameters."""
    kind = parts.node.attributes.get_string("activation", "")
    if kind in ("Relu", "Sigmoid", "Tanh"):
        return parts.op(kind, value)
    if kind == "LeakyRelu":
        return parts.op(kind, value, alpha=numbers[0] if numbers else 0.01)
    if kind == "HardSigmoid" and len(numbers) == 2:
        return parts.op(kind, value, alpha=numbers[0], beta=numbers[1])
    if kind == "Clip" and len(numbers) == 2:
        return parts.op(kind, value, *(parts.scalar(number, value) for number in numbers))
    if kind:
        raise _Left
    return value


def _plain(parts: _Parts, op_type: str, inputs: Sequence[ir.Value | None]) -> ir.Value:
    """The operator with the node's attributes, without its activation."""
    made = parts.op(op_type, *inputs)
    kept = {name: one for name, one in parts.node.attributes.items() if not name.startswith("activation")}
    parts.nodes[-1].attributes.update(kept)
    return made


def _convolution(parts: _Parts) -> list[ir.Value]:
    node = parts.node
    made = _plain(parts, "Conv", [input_of(node, index) for index in range(3 if input_of(node, 2) is not None else 2)])
    numbers = node.attributes.get("activation_params")
    return [_activated(parts, parts.sum(made, input_of(node, 3)), numbers.as_floats() if numbers is not None else ())]


def _gemm(parts: _Parts) -> list[ir.Value]:
    node = parts.node
    made = _plain(parts, "Gemm", node.inputs)
    names = [f"activation_{name}" for name in ("alpha", "beta") if f"activation_{name}" in node.attributes]
    return [_activated(parts, made, [parts.number(name, 0.0) for name in names])]


def _gated(parts: _Parts, x: ir.Value, curve: ir.Value) -> ir.Value:
    """x (1 + curve) / 2, what a GELU ends with."""
    return parts.op("Mul", parts.op("Mul", x, parts.op("Add", curve, parts.scalar(1, x))), parts.scalar(0.5, x))


def _gelu_of(parts: _Parts, x: ir.Value) -> list[ir.Value]:
    return [_gated(parts, x, parts.op("Erf", parts.op("Mul", x, parts.scalar(math.sqrt(0.5), x))))]


def _gelu(parts: _Parts) -> list[ir.Value]:
    return _gelu_of(parts, parts.input(0))


def _bias_gelu(parts: _Parts) -> list[ir.Value]:
    return _gelu_of(parts, parts.sum(parts.input(0), parts.input(1)))


def _fast_gelu(parts: _Parts) -> list[ir.Value]:
    x = parts.sum(parts.input(0), input_of(parts.node, 1))
    cube = parts.op("Mul", parts.op("Mul", x, x), x)
    inner = parts.op("Add", x, parts.op("Mul", cube, parts.scalar(0.044715, x)))
    tanh = parts.op("Tanh", parts.op("Mul", inner, parts.scalar(math.sqrt(2 / math.pi), x)))
    return [_gated(parts, x, tanh)]


def _quick_gelu(parts: _Parts) -> list[ir.Value]:
    x = parts.input(0)
    return [parts.op("Mul", x, parts.op("Sigmoid", parts.scaled(x, parts.number("alpha", 1.702))))]


def _bias_add(parts: _Parts) -> list[ir.Value]:
    return [parts.sum(parts.input(0), parts.input(1), parts.input(2))]


def _divided(parts: _Parts, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float, axis: int) -> ir.Value:
    """x over the root of its mean square, times scale, and bias."""
    variance = parts.op("Add", parts.mean(parts.op("Mul", x, x), axis), parts.scalar(epsilon, x))
    return parts.sum(parts.op("Mul", parts.op("Div", x, parts.op("Sqrt", variance)), scale), bias)


def _normed(parts: _Parts, x: ir.Value, scale: ir.Value, bias: ir.Value | None, default: float) -> ir.Value:
    axis, epsilon = int(parts.number("axis", -1)), parts.number("epsilon", default)
    if parts.opset >= NORM_OPSET:
        return parts.op(
            "LayerNormalization", x, scale, *([bias] if bias is not None else []), axis=axis, epsilon=epsilon
        )
    if axis != -1 and axis != _rank(x) - 1:
        raise _Left
    centred = parts.op("Sub", x, parts.mean(x, -1))
    if bias is None:  # the spelling by means has one
        bias = parts.scalar(0, x)
    return _divided(parts, centred, scale, bias, epsilon, -1)


def _layer_norm(parts: _Parts) -> list[ir.Value]:
    return [_normed(parts, parts.input(0), parts.input(1), input_of(parts.node, 2), 1e-5)]


def _root_mean_square(parts: _Parts) -> list[ir.Value]:
    axis, x = int(parts.number("axis", -1)), parts.input(0)
    if axis != -1 and axis != _rank(x) - 1:
        raise _Left
    return [_divided(parts, x, parts.input(1), None, parts.number("epsilon", 1e-5), -1)]


def _skip_norm(parts: _Parts) -> list[ir.Value]:
    total = parts.sum(parts.input(0), parts.input(1), input_of(parts.node, 4))
    return _with_sum(parts, _normed(parts, total, parts.input(2), input_of(parts.node, 3), 1e-12), total)


def _skip_root_mean_square(parts: _Parts) -> list[ir.Value]:
    total = parts.sum(parts.input(0), parts.input(1), input_of(parts.node, 3))
    return _with_sum(parts, _divided(parts, total, parts.input(2), None, parts.number("epsilon", 1e-12), -1), total)


def _with_sum(parts: _Parts, normed: ir.Value, total: ir.Value) -> list[ir.Value]:
    """What is normed and, as the fourth output where that is used, the sum."""
    outputs = parts.node.outputs
    if len(outputs) < 4:
        return [normed]
    if any(value.uses() or value.is_graph_output() for value in outputs[1:3]):
        raise _Left
    unused = [ir.Value(name=value.name) for value in outputs[1:3]]
    return [normed, *unused, total]


def _apart_heads(parts: _Parts, value: ir.Value, heads: int, size: int, perm: Sequence[int]) -> ir.Value:
    apart = parts.op("Reshape", value, parts.target(0, 0, heads, size))
    return parts.op("Transpose", apart, perm=list(perm))


def _attended(
    parts: _Parts, operands: Sequence[ir.Value], sizes: Sequence[int], bias: ir.Value | None
) -> list[ir.Value]:
    """Attention of q, k and v [batch, tokens, size] each, whose scores have a bias."""
    heads = int(parts.number("num_heads", 0))
    if heads < 1 or any(size % heads for size in sizes) or parts.number("unidirectional", 0):
        raise _Left
    q, k, v = (
        _apart_heads(parts, value, heads, size // heads, perm)
        for value, size, perm in zip(operands, sizes, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
    )
    scale = parts.number("scale", 0.0) or 1 / math.sqrt(sizes[0] // heads)
    scores = parts.sum(parts.scaled(parts.op("MatMul", q, k), scale), bias)
    mixed = parts.op("MatMul", parts.op("Softmax", scores, axis=-1), v)
    together = parts.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return [parts.op("Reshape", together, parts.target(0, 0, sizes[2]))]


def _shifted(parts: _Parts, operands: Sequence[ir.Value], sizes: Sequence[int], shift: np.ndarray) -> list[ir.Value]:
    """q, k and v with the biases that are packed in ``shift``."""
    pairs = zip("qkv", operands, np.split(shift, np.cumsum(sizes)[:2]), strict=True)
    return [parts.op("Add", value, parts.constant(one, f"{name}_bias")) for name, value, one in pairs]


def _attention(parts: _Parts) -> list[ir.Value]:
    parts.without(3, 4, 6)
    x, weight, bias = parts.input(0), parts.input(1), input_of(parts.node, 2)
    held, shift = array_of(weight), array_of(bias)
    if held is None or held.ndim != 2 or (bias is not None and shift is None) or parts.number("do_rotary", 0):
        raise _Left
    named = parts.node.attributes.get("qkv_hidden_sizes")
    sizes = list(named.as_ints()) if named is not None else [held.shape[1] // 3] * 3
    if len(sizes) != 3 or sum(sizes) != held.shape[1]:
        raise _Left
    operands = []
    for name, one in zip("qkv", np.split(held, np.cumsum(sizes)[:2], axis=1), strict=True):
        operands.append(parts.op("MatMul", x, parts.constant(np.ascontiguousarray(one), f"{name}_weight")))
    if shift is not None:
        operands = _shifted(parts, operands, sizes, shift)
    return _attended(parts, operands, sizes, input_of(parts.node, 5))


def _multi_head_attention(parts: _Parts) -> list[ir.Value]:
    parts.without(4, 6, 7, 8, 9)
    operands = [parts.input(index) for index in range(3)]
    if any(_rank(value) != 3 for value in operands):
        raise _Left
    sizes = [_size(value, 2) for value in operands]
    shift = array_of(input_of(parts.node, 3))
    if input_of(parts.node, 3) is not None:
        if shift is None or shift.shape != (sum(sizes),):
            raise _Left
        operands = _shifted(parts, operands, sizes, shift)
    return _attended(parts, operands, sizes, input_of(parts.node, 5))


FUSED: dict[str, Callable[[_Parts], Sequence[ir.Value] | None]] = {
    "Attention": _attention,
    "BiasAdd": _bias_add,
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _convolution,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_root_mean_square,
    "TransposeMatMul": _matmul,
}  # of domain com.microsoft
