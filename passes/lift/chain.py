# SPDX-License-Identifier: Apache-2.0
"""Follow a value up through views and scalar factors, and say which element of the first is which of the last.

Exporters write the same operand in many ways: keys transposed between two reshapes, a factor in front of a view or
behind it, one reshape in the place of two. What a chain of views *does* is told by running it on numbered elements, so
two operands are compared by what they view, not by the nodes that view it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import add_constant, array_of, input_of, is_constant, known_shape, scalar_of

__all__ = ["Chain", "chain_of", "factor_of", "passes_through", "same_order", "swapped", "unfactored"]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
KEEP_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze"})  # row-major order of elements
VIEWS = KEEP_ORDER | {"Transpose"}


@dataclasses.dataclass
class Chain:
    """What lies above a value.

    Attributes:
        views: nodes from the root down to the value.
        stems: what each view reads, less factors; the last is the value itself, less factors.
        scaled: whether a factor follows each stem.
        factor: product of all factors.
    """

    views: list[ir.Node]
    stems: list[ir.Value]
    scaled: list[bool]
    factor: float

    @property
    def root(self) -> ir.Value:
        """The value that no view and no factor makes."""
        return self.stems[0]

    def clean(self, place: int) -> bool:
        """Whether the stem of that place holds no factor from above."""
        return not any(self.scaled[:place])


def factor_of(node: ir.Node) -> tuple[ir.Value, float] | None:
    """For x * c, c * x or x / c: x and the factor."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        x, constant = node.inputs[index], scalar_of(node.inputs[1 - index])
        if constant is not None and x is not None and not is_constant(x) and math.isfinite(constant) and constant != 0:
            return x, constant if node.op_type == "Mul" else 1.0 / constant
    return None


def passes_through(node: ir.Node) -> bool:
    """Whether the node gives its input again, in whatever float type."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Cast":
        return node.inputs[0].dtype in (None, *FLOATS) and node.attributes["to"].as_int() in FLOATS
    training = input_of(node, 2)
    held = array_of(training)
    drops = training is not None and (held is None or bool(held.any()))
    return node.op_type == "Identity" or (node.op_type == "Dropout" and not drops)


def _stem(value: ir.Value) -> tuple[ir.Value, float]:
    """``value`` without scalar factors, and their product."""
    total = 1.0
    while (node := value.producer()) is not None:
        if (found := factor_of(node)) is not None:
            value, total = found[0], total * found[1]
        elif passes_through(node) and node.inputs[0] is not None:
            value = node.inputs[0]
        else:
            break
    return value, total


def chain_of(value: ir.Value) -> Chain:
    """The views and scalar factors above a value."""
    chain = Chain([], [], [], 1.0)
    while True:
        stem, factor = _stem(value)
        chain.stems.insert(0, stem)
        chain.scaled.insert(0, factor != 1.0)
        chain.factor *= factor
        node = stem.producer()
        if node is None or node.domain or node.op_type not in VIEWS or node.inputs[0] is None:
            return chain
        chain.views.insert(0, node)
        value = node.inputs[0]


def _perm(node: ir.Node, rank: int) -> list[int]:
    perm = node.attributes.get("perm")
    return list(perm.as_ints()) if perm is not None else list(range(rank))[::-1]


def _order(numbers: np.ndarray, views: list[ir.Node]) -> np.ndarray | None:
    """Numbered elements after views, None where a shape is not known."""
    for view in views:
        if view.op_type == "Transpose":
            numbers = numbers.transpose(_perm(view, numbers.ndim))
            continue
        shape = known_shape(view.outputs[0])
        if shape is None or math.prod(shape) != numbers.size:
            return None
        numbers = numbers.reshape(shape)
    return numbers


def _numbered(value: ir.Value) -> np.ndarray | None:
    shape = known_shape(value)
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape) if shape is not None else None


def same_order(one: Chain, other: Chain) -> bool:
    """Whether two chains view all elements of one root in the same row-major order."""
    if one.root is not other.root:
        return False
    common = 0
    while common < min(len(one.views), len(other.views)) and one.views[common] is other.views[common]:
        common += 1
    tails = (one.views[common:], other.views[common:])
    if all(view.op_type in KEEP_ORDER for tail in tails for view in tail):
        return True
    numbers = _numbered(one.stems[common])
    if numbers is None:
        return False
    first, second = (_order(numbers, tail) for tail in tails)
    return first is not None and second is not None and np.array_equal(first.ravel(), second.ravel())


def unfactored(graph: ir.Graph, chain: Chain, place: int, before: ir.Node) -> ir.Value:
    """The stem of a place without factors from above: itself, or its views again in front of a node."""
    if chain.clean(place):
        return chain.stems[place]
    value = chain.root
    for view in chain.views[:place]:
        value = _added(graph, before, view, [value, *view.inputs[1:]], view.outputs[0].shape)
    return value


def _added(
    graph: ir.Graph, before: ir.Node, like: ir.Node, inputs: list[ir.Value | None], shape: ir.Shape | None
) -> ir.Value:
    copy = ir.Node("", like.op_type, inputs, like.attributes.values(), name=f"{like.outputs[0].name}_plain")
    return _placed(graph, before, copy, shape)


def _placed(graph: ir.Graph, before: ir.Node, node: ir.Node, shape: ir.Shape | None) -> ir.Value:
    graph.insert_before(before, node)
    made = node.outputs[0]
    made.name, made.type, made.shape = node.name, ir.TensorType(ir.DataType.FLOAT), shape
    return made


def swapped(graph: ir.Graph, chain: Chain, name: str, before: ir.Node) -> ir.Value:
    """The last value of a chain, less factors, with its last two axes exchanged, by as few nodes as that takes.

    Args:
        name: of what is added. before: the node in front of which that is.
    """
    count = len(chain.views)
    last = chain.views[-1] if chain.views else None
    known = chain.stems[-1].shape
    if last is not None and last.op_type == "Transpose" and "perm" in last.attributes:
        perm = list(last.attributes["perm"].as_ints())
        perm[-2:] = perm[:-3:-1]
        value = unfactored(graph, chain, count - 1, before)
        return value if perm == sorted(perm) else _transposed(graph, before, value, perm, name)
    reshaped: int | None = None
    for place in range(count - 1, -1, -1):
        numbers = _numbered(chain.stems[place])
        order = _order(numbers, chain.views[place:]) if numbers is not None else None
        if numbers is None or order is None:
            break
        order = order.swapaxes(-1, -2)
        if np.array_equal(order, numbers):
            return unfactored(graph, chain, place, before)
        if reshaped is None and np.array_equal(order.ravel(), numbers.ravel()):
            reshaped = place
    if reshaped is not None and known is not None:
        shape = [*known[:-2], known[-1], known[-2]]
        size = add_constant(graph, f"{name}_shape", np.array(shape, np.int64))
        node = ir.node("Reshape", [unfactored(graph, chain, reshaped, before), size], name=name)
        return _placed(graph, before, node, ir.Shape(shape))
    value = unfactored(graph, chain, count, before)
    rank = len(known) if known is not None else 0
    return _transposed(graph, before, value, [*range(rank - 2), rank - 1, rank - 2], name)


def _transposed(graph: ir.Graph, before: ir.Node, value: ir.Value, perm: list[int], name: str) -> ir.Value:
    shape = ir.Shape([value.shape[axis] for axis in perm]) if value.shape is not None else None
    return _placed(graph, before, ir.node("Transpose", [value], {"perm": perm}, name=name), shape)
