# SPDX-License-Identifier: Apache-2.0
"""Put mask upscaling on rows: where the kernel of a transposed convolution is as long as its stride, every position is
multiplied alone, so it is a linear layer of the image's tokens.

    x [N, C, H, W] -> ConvTranspose k x k, stride k -> LayerNorm of channels -> GELU -> .. -> y [N, C', H', W']
      -> MatMul(weights [N, M, C'], Reshape(y, [N, C', H' W'])) -> Reshape [N, M, H', W']

    tokens [N, H W, C] -> MatMul -> Reshape [N, H W k k, C1] -> LayerNormalization -> GELU -> .. -> rows [N, H' W', C']
      -> MatMul(rows, weights^T) -> Reshape, Transpose, Reshape [N, M, H', W']

Rows come out as (y, x, ky, kx) and are put in the order of the plane, whole, before the next such layer; the last ones
stay so, and their masks are put in order. Equal but for the order of sums. Takes two-dimensional kernels of float32
without padding, dilation or groups, in known shapes but for N; refuses whatever something else reads on the way, other
than scalar constants in GELU, and models before opset 17, which have no LayerNormalization.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from samq_onnx.passes.graph import array_of, constant, only_reader
from samq_onnx.passes.lift.gelu import find_gelus
from samq_onnx.passes.lift.norm import find_norms
from samq_onnx.passes.lift.structure import Gelu, Norm
from samq_onnx.passes.lift.trace import nodes_between
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report

__all__ = ["upscale_rows"]

OPSET = 17
CHANNELS = (1, -3)  # the axis of channels in [N, C, H, W]
ROWS = 4  # where arrays of fewer axes leave the rank of rows [N, P, C] as it is

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
    arrays = [array_of(value) for value in _weights(node)]
    if any(array is None or array.dtype != np.float32 for array in arrays):
        return False
    kernel = constant(node.inputs[1]).shape[2:]
    plain = {"strides": kernel, "kernel_shape": kernel, "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
    plain |= {"output_padding": (0, 0), "auto_pad": "NOTSET"}
    asked = {name: attribute.value for name, attribute in node.attributes.items()}
    return len(kernel) == 2 and "strides" in asked and all(plain.get(name) == value for name, value in asked.items())


def _weights(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs[1:] if value is not None]


def _plane(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Channels, height and width."""
    dims = list(value.shape)[1:] if value is not None and value.shape is not None else []
    if len(dims) != 3 or not all(isinstance(dim, int) for dim in dims):
        return None
    channels, height, width = dims
    return int(channels), int(height), int(width)  # type: ignore[arg-type]


def _next(value: ir.Value, op_type: str, index: int) -> ir.Node | None:
    """The node of this type that alone reads the value, there."""
    found = only_reader(value, op_type)
    return found[0] if found is not None and found[1] == index else None


def _product(y: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The product of weights and ``y``, and the Reshape of it to masks."""
    plane = _plane(y)
    flat = _next(y, "Reshape", 0)
    product = _next(flat.outputs[0], "MatMul", 1) if flat is not None else None
    masks = _next(product.outputs[0], "Reshape", 0) if product is not None else None
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
        following = _next(value, "ConvTranspose", 0)
        if step is not None and _takes_positions_apart(step):
            steps.append(step)
            value = step.output
        elif following is not None and _enlarges(following):
            steps.append(following)
            value = following.outputs[0]
        else:
            return None
    return _Chain(steps, *found)


def _takes_positions_apart(step: Norm | Gelu) -> bool:
    """Whether the step does to every position the same, alone, and gives nothing but its output."""
    between, plane = nodes_between(step.x, step.output), _plane(step.x)
    if between is None or plane is None:
        return False
    if isinstance(step, Gelu):
        made = {step.x, *(node.outputs[0] for node in between)}
        arrays = [array_of(value) for node in between for value in node.inputs if value not in made]
        return all(array is not None and array.size == 1 and array.ndim < ROWS for array in arrays)
    shapes = [
        (1,) * (4 - array.ndim) + array.shape for array in map(array_of, (step.scale, step.bias)) if array is not None
    ]
    spelled = step.node.op_type != "LayerNormalization"  # which is over an axis and all after it
    return spelled and step.axis in CHANNELS and shapes == [(1, plane[0], 1, 1)] * 2


def _turns(node: ir.Node) -> bool:
    """Whether the node transposes [N, A, B] to [N, B, A]."""
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and perm is not None and perm.value == (0, 2, 1)


class _Rewriter:
    """Puts a chain on rows, step by step."""

    def __init__(self, builder: Builder, chain: _Chain) -> None:
        first = chain.steps[0]
        assert isinstance(first, ir.Node)
        x, plane = first.inputs[0], _plane(first.inputs[0])
        assert x is not None and x.shape is not None and plane is not None
        self._builder = builder
        self._batch = x.shape[0]
        self._channels, self._height, self._width = plane
        self._kernel: tuple[int, int] | None = None  # of rows not yet in order
        self._tape = Tape()
        self._rows = self._tokens(x)
        self._put(first)

    def _put(self, before: ir.Node) -> None:
        self._builder.graph.insert_before(before, self._tape.nodes)
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

    def _reshaped(self, x: ir.Value, dims: list[int], name: str) -> ir.Value:
        shape = self._builder.constant(f"{name}_shape", np.array([0, *dims], np.int64))
        return self._op("Reshape", [x, shape], dims)

    def _tokens(self, x: ir.Value) -> ir.Value:
        """x [N, C, H, W] as [N, H W, C], which may be what it was made from."""
        dims = [self._height * self._width, self._channels]
        view = x.producer()
        source = view.inputs[0] if view is not None and view.op_type == "Reshape" else None
        turn = source.producer() if source is not None else None
        if view is not None and turn is not None and not view.domain and not turn.domain and _turns(turn):
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
        weight, name = constant(node.inputs[1]), node.outputs[0].name
        channels, high, wide = weight.shape[1:]
        matrix = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        dims = [self._height * self._width, matrix.shape[1]]
        rows = self._op(
            "MatMul", [self._rows, self._builder.constant(f"{name}_weight", matrix)], dims, name=node.name or ""
        )
        if len(_weights(node)) > 1:
            bias = self._builder.constant(f"{name}_bias", np.tile(constant(node.inputs[2]), high * wide))
            rows = self._op("Add", [rows, bias], dims)
        self._kernel, self._channels = (high, wide), channels
        self._rows = self._reshaped(rows, [dims[0] * high * wide, channels], f"{name}_rows")
        self._put(node)

    def normalize(self, norm: Norm) -> None:
        last = norm.output.producer()
        assert last is not None and norm.bias is not None and self._rows.shape is not None
        inputs = [self._rows]
        for value in (norm.scale, norm.bias):
            inputs.append(self._builder.constant(f"{value.name}_of_rows", constant(value).ravel()))
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
        take_place(self._builder.graph, given, made, [masks])


def upscale_rows(builder: Builder) -> Report:
    """Put mask upscaling on rows, in place; what was there before stays, unused."""
    graph, report = builder.graph, Report("mask upscaling")
    found = [node for node in graph if _enlarges(node)]
    if (opset := graph.opset_imports.get("", 0)) < OPSET:
        for node in found:
            report.refuse(node.name or "", f"stays a convolution: opset {opset} has no LayerNormalization")
        return report
    norms = {norm.x: norm for norm in find_norms(graph)}
    gelus = {gelu.x: gelu for gelu in find_gelus(graph)}
    enlarged: set[ir.Node] = set()
    for node in found:
        if node in enlarged:
            continue
        chain = _chain(node, norms, gelus)
        if chain is None:
            report.refuse(node.name or "", "stays a convolution: something else lies or reads between it and the masks")
            continue
        rewriter = _Rewriter(builder, chain)
        for step in chain.steps:
            if isinstance(step, Norm):
                rewriter.normalize(step)
            elif isinstance(step, Gelu):
                rewriter.activate(step)
            else:
                enlarged.add(step)
                report.done.append(step.name or "")
                rewriter.enlarge(step)
        rewriter.finish(chain.product, chain.masks)
    return report
