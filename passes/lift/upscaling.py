# SPDX-License-Identifier: Apache-2.0
"""Put mask upscaling on rows: where the kernel of a transposed convolution is as long as its stride, every position is
multiplied alone, so it is a linear layer of the image's tokens.

    x [N, C, H, W] -> ConvTranspose k x k, stride k -> LayerNorm of channels -> GELU -> .. -> y [N, C', H', W']
      -> MatMul(weights [N, M, C'], Reshape(y, [N, C', H' W'])) -> Reshape [N, M, H', W']

    tokens [N, H W, C] -> MatMul -> Reshape [N, H W k k, C1] -> LayerNormalization -> GELU -> .. -> rows [N, H' W', C']
      -> MatMul(rows, weights^T) -> Reshape, Transpose, Reshape [N, M, H', W']

Rows come out as (y, x, ky, kx) and are put in the order of the plane, whole, before the next such layer; the last ones
stay so, and their masks are put in order. Equal but for the order of sums. Takes two-dimensional kernels of float32
without padding, dilation or groups, in known shapes but for N; refuses whatever something else reads on the way,
and models before opset 17, which have no LayerNormalization.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.tape import Tape

from samq_onnx.passes.lift.gelu import find_gelus
from samq_onnx.passes.lift.linear import is_constant
from samq_onnx.passes.lift.norm import find_norms
from samq_onnx.passes.lift.structure import Gelu, Norm
from samq_onnx.passes.lift.trace import nodes_between

__all__ = ["upscale_rows"]

OPSET = 17
CHANNELS = (1, -3)  # the axis of channels in [N, C, H, W]

Step: TypeAlias = ir.Node | Norm | Gelu


@dataclasses.dataclass
class _Chain:
    """Transposed convolutions and what stands between them, and the product that gives masks [N, M, H', W']."""

    steps: list[Step]
    product: ir.Node
    masks: ir.Node


def _enlarges(node: ir.Node) -> bool:
    """Whether the node is a transposed convolution of positions that do not overlap."""
    if node.op_type != "ConvTranspose" or node.domain or _plane(node.inputs[0]) is None:
        return False
    if not all(is_constant(value) and value.dtype == ir.DataType.FLOAT for value in _weights(node)):
        return False
    kernel = _array(node, 1).shape[2:]
    plain = {"strides": kernel, "kernel_shape": kernel, "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
    plain |= {"output_padding": (0, 0), "auto_pad": "NOTSET"}
    asked = {name: attribute.value for name, attribute in node.attributes.items()}
    return len(kernel) == 2 and "strides" in asked and all(plain.get(name) == value for name, value in asked.items())


def _weights(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs[1:] if value is not None]


def _array(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _plane(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Channels, height and width."""
    dims = list(value.shape)[1:] if value is not None and value.shape is not None else []
    if len(dims) != 3 or not all(isinstance(dim, int) for dim in dims):
        return None
    channels, height, width = dims
    return int(channels), int(height), int(width)  # type: ignore[arg-type]


def _only_reader(value: ir.Value, op_type: str, index: int) -> ir.Node | None:
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    ((node, at),) = uses
    return node if not node.domain and node.op_type == op_type and at == index else None


def _product(y: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The product of weights and ``y``, and the Reshape of it to masks."""
    plane = _plane(y)
    flat = _only_reader(y, "Reshape", 0)
    product = _only_reader(flat.outputs[0], "MatMul", 1) if flat is not None else None
    masks = _only_reader(product.outputs[0], "Reshape", 0) if product is not None else None
    if plane is None or flat is None or product is None or masks is None:
        return None
    channels, height, width = plane
    weights = product.inputs[0]
    given, lines, made = (
        list(value.shape)[1:] if value is not None and value.shape is not None else []
        for value in (weights, flat.outputs[0], masks.outputs[0])
    )
    fits = lines == [channels, height * width] and len(given) == 2 and made == [given[0], height, width]
    return (product, masks) if fits and isinstance(given[0], int) else None


def _chain(first: ir.Node, norms: dict[ir.Value, Norm], gelus: dict[ir.Value, Gelu]) -> _Chain | None:
    """The chain that begins with a transposed convolution."""
    steps: list[Step] = [first]
    value = first.outputs[0]
    while (found := _product(value)) is None:
        step = norms.get(value) or gelus.get(value)
        following = _only_reader(value, "ConvTranspose", 0)
        if step is not None and nodes_between(value, step.output) is not None and _of_channels(step):
            steps.append(step)
            value = step.output
        elif following is not None and _enlarges(following):
            steps.append(following)
            value = following.outputs[0]
        else:
            return None
    return _Chain(steps, *found)


def _of_channels(step: Norm | Gelu) -> bool:
    """Whether the step treats every position alone."""
    if isinstance(step, Gelu):
        return True
    spelled = step.node.op_type != "LayerNormalization"  # which is over an axis and all after it
    constants = [value.const_value for value in (step.scale, step.bias) if value is not None]
    plane = _plane(step.x)
    sizes = {tensor.size for tensor in constants if tensor is not None}
    return spelled and step.axis in CHANNELS and plane is not None and sizes == {plane[0]} and len(constants) == 2


class _Rewriter:
    """Puts a chain on rows, step by step."""

    def __init__(self, graph: ir.Graph, chain: _Chain) -> None:
        first = chain.steps[0]
        assert isinstance(first, ir.Node)
        x, plane = first.inputs[0], _plane(first.inputs[0])
        assert x is not None and x.shape is not None and plane is not None
        self._graph = graph
        self._batch = x.shape[0]
        self._channels, self._height, self._width = plane
        self._kernel: tuple[int, int] | None = None  # of rows not yet in order
        self._tape = Tape()
        self._rows = self._tokens(x)
        self._put(first)

    def _put(self, before: ir.Node) -> None:
        self._graph.insert_before(before, self._tape.nodes)
        for value in self._tape.initializers:
            self._graph.register_initializer(value)
        self._tape = Tape()

    def _op(
        self,
        op_type: str,
        inputs: list[ir.Value],
        dims: Sequence[int | ir.SymbolicDim],
        attributes: dict[str, Any] | None = None,
        name: str = "",
    ) -> ir.Value:
        made = self._tape.op(op_type, inputs, attributes, name=name or None)
        made.shape, made.type = ir.Shape([self._batch, *dims]), ir.TensorType(ir.DataType.FLOAT)
        return made

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        return self._tape.initializer(ir.tensor(array, name=name))

    def _reshaped(self, x: ir.Value, dims: list[int], name: str) -> ir.Value:
        shape = self._constant(np.array([0, *dims], np.int64), f"{name}_shape")
        return self._op("Reshape", [x, shape], dims)

    def _tokens(self, x: ir.Value) -> ir.Value:
        """x [N, C, H, W] as [N, H W, C], which may be what it was made from."""
        dims = [self._height * self._width, self._channels]
        view = x.producer()
        source = view.inputs[0] if view is not None and view.op_type == "Reshape" else None
        turn = source.producer() if source is not None else None
        if turn is not None and turn.op_type == "Transpose" and turn.attributes["perm"].value == (0, 2, 1):
            tokens = turn.inputs[0]
            if tokens is not None and tokens.shape is not None and list(tokens.shape)[1:] == dims:
                return tokens
        last = self._op("Transpose", [x], [self._height, self._width, self._channels], {"perm": [0, 2, 3, 1]})
        return self._reshaped(last, dims, f"{x.name}_rows")

    def _interleave(self, kernel: tuple[int, int]) -> None:
        """Put rows in order that stand as [H, W, kernel height, kernel width]."""
        (high, wide), name = kernel, self._rows.name
        apart = [self._height, self._width, high, wide * self._channels]
        moved = [self._height, high, self._width, wide * self._channels]
        rows = self._op(
            "Transpose", [self._reshaped(self._rows, apart, f"{name}_apart")], moved, {"perm": [0, 1, 3, 2, 4]}
        )
        self._height, self._width = self._height * high, self._width * wide
        self._rows = self._reshaped(rows, [self._height * self._width, self._channels], f"{name}_in_order")

    def enlarge(self, node: ir.Node) -> None:
        if self._kernel is not None:
            self._interleave(self._kernel)
        weight, name = _array(node, 1), node.outputs[0].name
        channels, high, wide = weight.shape[1:]
        matrix = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        dims = [self._height * self._width, matrix.shape[1]]
        rows = self._op("MatMul", [self._rows, self._constant(matrix, f"{name}_weight")], dims, name=node.name or "")
        if len(_weights(node)) > 1:
            bias = self._constant(np.tile(_array(node, 2), high * wide), f"{name}_bias")
            rows = self._op("Add", [rows, bias], dims)
        self._kernel, self._channels = (high, wide), channels
        self._rows = self._reshaped(rows, [dims[0] * high * wide, channels], f"{name}_rows")
        self._put(node)

    def normalize(self, norm: Norm) -> None:
        last = norm.output.producer()
        assert last is not None and norm.bias is not None and self._rows.shape is not None
        inputs = [self._rows]
        for value in (norm.scale, norm.bias):
            assert value.const_value is not None
            inputs.append(self._constant(value.const_value.numpy().ravel(), f"{value.name}_of_rows"))
        attributes = {"axis": -1, "epsilon": norm.epsilon}
        dims = list(self._rows.shape)[1:]
        self._rows = self._op("LayerNormalization", inputs, dims, attributes, norm.node.name or "")
        self._put(last)

    def activate(self, gelu: Gelu) -> None:
        between = nodes_between(gelu.x, gelu.output)
        assert between is not None and self._rows.shape is not None
        for node, index in list(gelu.x.uses()):
            node.replace_input_with(index, self._rows)
        for node in between:
            node.outputs[0].shape = ir.Shape(self._rows.shape)
        self._rows = gelu.output

    def finish(self, product: ir.Node, masks: ir.Node) -> None:
        weights, given = product.inputs[0], masks.outputs[0]
        assert weights is not None and weights.shape is not None and given.shape is not None
        assert self._kernel is not None
        count, name = given.shape[1], given.name
        assert isinstance(count, int)
        high, wide = self._kernel
        places = [self._height, self._width, high, wide]
        self._batch = weights.shape[0]
        turned = self._op("Transpose", [weights], [self._channels, count], {"perm": [0, 2, 1]})
        self._batch = given.shape[0]  # either operand's may be 1
        rows = self._op("MatMul", [self._rows, turned], [math.prod(places), count], name=product.name or "")
        lines = self._op("Transpose", [rows], [count, math.prod(places)], {"perm": [0, 2, 1]})
        apart = self._reshaped(lines, [count, *places], f"{name}_apart")
        order = [count, self._height, high, self._width, wide]
        moved = self._op("Transpose", [apart], order, {"perm": [0, 1, 2, 4, 3, 5]})
        made = self._reshaped(moved, [count, self._height * high, self._width * wide], f"{name}_in_order")
        self._put(masks)
        made.shape, made.type = given.shape, given.type
        ir.convenience.replace_all_uses_with(given, made, replace_graph_outputs=True)
        self._graph.remove(masks, safe=True)
        made.name = name


def upscale_rows(model: ir.Model) -> bool:
    """Put mask upscaling on rows, in place; whether there was any."""
    if model.graph.opset_imports.get("", 0) < OPSET:
        return False
    graph, changed = model.graph, False
    norms = {norm.x: norm for norm in find_norms(graph)}
    gelus = {gelu.x: gelu for gelu in find_gelus(graph)}
    enlarged: set[ir.Node] = set()
    for node in [node for node in graph if _enlarges(node)]:
        chain = _chain(node, norms, gelus) if node not in enlarged else None
        if chain is None:
            continue
        changed = True
        rewriter = _Rewriter(graph, chain)
        for step in chain.steps:
            if isinstance(step, Norm):
                rewriter.normalize(step)
            elif isinstance(step, Gelu):
                rewriter.activate(step)
            else:
                enlarged.add(step)
                rewriter.enlarge(step)
        rewriter.finish(chain.product, chain.masks)
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return changed
