# SPDX-License-Identifier: Apache-2.0
"""Fold what is computed from shapes and does not depend on dimensions that are unknown; tell all values their shapes.

A graph with a free batch computes the shapes of its views from it, and takes them apart and together again by number.
One walk evaluates such integers, a known one as a number and a dimension as its name (`passes.lift.dims`):

- integers that are all known become constants;
- the target of a Reshape becomes a constant where one size at most is unknown, written 0 (as before) or -1 (what is
  left), so that views are told by constants, and a Reshape has the shape that follows from what it reads;
- ONNX's own inference gives all other nodes their shapes, node by node; what it does not follow, sums of sizes and
  shapes that are made of shapes, is told here (`passes.lift.sizes`); a size that nothing tells gets a name.

Values are as they were. Integers of more than 4096 elements and graphs inside of nodes are left alone, and weights are
not looked at.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from samq_onnx.ops import DOMAIN, TERMS
from samq_onnx.passes.graph import add_constant, array_of, input_of, is_constant
from samq_onnx.passes.lift.dims import Dim, Product, divided, product_of, times
from samq_onnx.passes.lift.sizes import concatenated, expanded, padded, tiled
from samq_onnx.passes.lift.views import sliced

__all__ = ["ATTENTION_OPS", "propagate"]

LARGEST = 4096  # elements of integers that are looked at
TELLING = 64  # elements of a constant that may be a shape
NAME = "samq_dim_"  # begin of names given to sizes
ATTENTION_OPS = tuple(f"Attention{terms}" for terms in TERMS)  # as lifting outlines them
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
Numbers = np.ndarray  # of objects, `Dim` or bool each


def propagate(model: ir.Model, replaced: Callable[[ir.Node], list[ir.Node]] = lambda node: [node]) -> bool:
    """Fold and infer in the outermost graph of ``model``, in place; nodes are in order.

    Args:
        replaced: puts nodes in the place of one, when all is known of what that one reads, and returns them.

    Returns:
        Whether something was folded.
    """
    return _Walk(model).run(replaced)


def _difference(one: Dim, two: Dim) -> Dim:
    if isinstance(one, int) and isinstance(two, int):
        return one - two
    return one if two == 0 else 0 if one == two and one is not None else None


def _sum(one: Dim, two: Dim) -> Dim:
    if isinstance(one, int) and isinstance(two, int):
        return one + two
    return one if two == 0 else two if one == 0 else None


def _quotient(one: Dim, two: Dim) -> Dim:
    if isinstance(one, int) and isinstance(two, int):
        return None if two == 0 else abs(one) // abs(two) * (1 if (one < 0) == (two < 0) else -1)
    return divided(one, two)


def _remainder(one: Dim, two: Dim) -> Dim:
    if isinstance(one, int) and isinstance(two, int):
        return None if two == 0 else one % two
    return 0 if divided(one, two) is not None else None


def _of_ints(function: Callable[[int, int], Any]) -> Callable[[Any, Any], Any]:
    return lambda one, two: function(one, two) if isinstance(one, int) and isinstance(two, int) else None


def _equal(one: Any, two: Any) -> Any:
    """A dimension is no negative number."""
    if isinstance(one, int) and isinstance(two, int):
        return one == two
    if one is not None and one == two:
        return True
    return (
        False if any(isinstance(value, int) and value < 0 for value in (one, two)) and None not in (one, two) else None
    )


PAIRWISE: dict[str, Callable[[Any, Any], Any]] = {
    "Add": _sum,
    "Sub": _difference,
    "Mul": times,
    "Div": _quotient,
    "Mod": _remainder,
    "Equal": _equal,
    "Less": _of_ints(operator.lt),
    "Greater": _of_ints(operator.gt),
    "Max": _of_ints(max),
    "Min": _of_ints(min),
}


def _axes(node: ir.Node) -> list[int] | None:
    """Axes as an input or as an attribute, None where there are none."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    held = array_of(input_of(node, 1))
    return None if held is None else held.reshape(-1).tolist()


class _Walk:
    """One walk through a graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._opset = model.graph, model.opset_imports.get("", 0)
        self._imports = model.opset_imports
        self._numbers: dict[ir.Value, Numbers] = {}
        self._products: dict[str, Product] = {}
        self._named = 0
        self._folded = False

    def run(self, replaced: Callable[[ir.Node], list[ir.Node]]) -> bool:
        for node in list(self._graph):
            for one in replaced(node):
                self._visit(one)
        return self._folded

    def _visit(self, node: ir.Node) -> None:
        self._infer(node)
        if node.domain == "" and node.op_type == "Reshape":
            self._reshape(node)
        elif (dims := self._told(node)) is not None:
            self._set(node.outputs[0], _agreed(dims, self._dims(node.outputs[0])))
        found = self._evaluated(node)
        if found is not None and found.size <= LARGEST:
            self._numbers[node.outputs[0]] = found
            self._fold(node.outputs[0], found)
        for output in node.outputs:
            self._name(output)

    # shapes

    def _dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The shape of a value; a name stands for a size that may be told by others."""
        if value is None or value.shape is None:
            return None
        found: list[Dim] = []
        for dim in value.shape:
            if isinstance(dim, int):
                found.append(dim)
            else:
                found.append(self._products.get(dim.value, Product(1, (dim.value,))) if dim.value else None)
        return found

    def _set(self, value: ir.Value, dims: Sequence[Dim]) -> None:
        names = [str(dim) if isinstance(dim, Product) else dim for dim in dims]
        self._products.update({str(dim): dim for dim in dims if isinstance(dim, Product)})
        value.shape = ir.Shape(names)

    def _name(self, value: ir.Value) -> None:
        """Give each size that is not known a name, so that it is known to be the same further down."""
        if value.shape is None or all(isinstance(dim, int) or dim.value for dim in value.shape):
            return
        names: list[int | str] = []
        for dim in value.shape:
            known = dim if isinstance(dim, int) else dim.value
            if known is None:
                self._named += 1
                known = f"{NAME}{self._named}"
            names.append(known)
        value.shape = ir.Shape(names)

    def _infer(self, node: ir.Node) -> None:
        """Types and shapes by ONNX, and of what the file says what ONNX does not tell: numbers, no names."""
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
        if any(one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for one in node.attributes.values()):
            return
        types = {value.name: _type(value) for value in node.inputs if value is not None}
        if node.domain not in self._imports or any(proto is None for proto in types.values()):
            return
        data = {
            value.name: ir.serde.serialize_tensor(value.const_value)
            for value in node.inputs
            if value is not None and is_constant(value) and value.const_value and value.const_value.size <= TELLING
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self._imports[node.domain], node.domain)
            proto = ir.serde.serialize_node(node)
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)  # type: ignore[arg-type]
        except Exception:  # an operator that ONNX does not know, or one that it cannot infer
            return
        for value in node.outputs:
            if value.name in found:
                inferred = ir.serde.deserialize_type_proto_for_shape(found[value.name])
                value.type = ir.serde.deserialize_type_proto_for_type(found[value.name]) or value.type
                value.shape = _merged(value.shape, inferred)

    def _told(self, node: ir.Node) -> list[Dim] | None:
        """The shape of an output that ONNX infers in part only."""
        if node.domain == DOMAIN and node.op_type in ATTENTION_OPS:
            q, v = self._dims(node.inputs[0]), self._dims(node.inputs[2])
            return [*q[:-1], v[-1]] if q and v else None
        if node.domain:
            return None
        if node.op_type == "Concat":
            shapes = [self._dims(value) for value in node.inputs]
            return concatenated(shapes, node.attributes["axis"].as_int())
        if node.op_type == "ConstantOfShape":
            return _sizes(self._known(node.inputs[0]))
        if node.op_type == "Range":
            start, limit, step = map(self._known, node.inputs)
            counts = start is not None and step is not None and start.item() == 0 and step.item() == 1
            return _sizes(limit.reshape(1)) if counts and limit is not None else None
        if node.op_type == "Pad" and len(node.inputs) > 1:
            before, amounts = self._dims(node.inputs[0]), array_of(node.inputs[1])
            if before is None or amounts is None or input_of(node, 3) is not None:
                return None
            return padded(before, amounts.reshape(-1).tolist())
        if node.op_type == "Resize" and input_of(node, 3) is not None and "axes" not in node.attributes:
            kept = node.attributes.get("keep_aspect_ratio_policy")
            return _sizes(self._known(node.inputs[3])) if kept is None or kept.as_string() == "stretch" else None
        if node.op_type in ("Expand", "Tile") and len(node.inputs) == 2:
            before, given = self._dims(node.inputs[0]), _sizes(self._known(node.inputs[1]))
            if before is not None and given is not None:
                return expanded(before, given) if node.op_type == "Expand" else tiled(before, given)
        return None

    def _reshape(self, node: ir.Node) -> None:
        """The shape that follows from what is reshaped, and the target as a constant."""
        before, target = self._dims(input_of(node, 0)), self._known(input_of(node, 1))
        if before is None or target is None or target.ndim != 1:
            return
        allowed = node.attributes.get_int("allowzero", 0)
        copies = [axis for axis, size in enumerate(target) if size == 0 and not allowed]
        if any(axis >= len(before) for axis in copies):
            return
        sizes: list[Dim] = [before[axis] if size == 0 else size for axis, size in enumerate(target)]
        open_axes = [axis for axis, size in enumerate(sizes) if size is None or size == -1]
        if len(open_axes) == 1:
            known = product_of(size for axis, size in enumerate(sizes) if axis != open_axes[0])
            sizes[open_axes[0]] = divided(product_of(before), known)
        elif open_axes:
            sizes = [None if size == -1 else size for size in sizes]
        output = node.outputs[0]
        self._set(output, _agreed(sizes, self._dims(output)))
        written: list[int] = []
        for axis, size in enumerate(sizes):
            same = axis < len(before) and before[axis] is not None and before[axis] == size
            written.append(size if isinstance(size, int) else 0 if same or axis in copies else -1)
        held = array_of(node.inputs[1])
        zero_sides = any(size == 0 for size in sizes)
        if held is None and written.count(-1) <= 1 and not zero_sides:
            name = f"{output.name}_target"
            node.replace_input_with(1, add_constant(self._graph, name, np.array(written, np.int64)))
            node.attributes.pop("allowzero", None)
            self._folded = True

    # integers

    def _known(self, value: ir.Value | None) -> Numbers | None:
        """The integers of a value, as far as they are known."""
        if value is None:
            return None
        if value in self._numbers:
            return self._numbers[value]
        if (
            value.const_value is None
            or value.const_value.size > LARGEST
            or value.dtype not in (*INTEGERS, ir.DataType.BOOL)
        ):
            return None
        held = array_of(value)
        if held is None:
            return None
        found = np.empty(held.shape, object)
        found.flat[:] = held.reshape(-1).tolist()
        return found

    def _evaluated(self, node: ir.Node) -> Numbers | None:
        if node.domain or len(node.outputs) != 1:
            return None
        if node.op_type == "Shape":
            dims = self._dims(node.inputs[0])
            if dims is None:
                return None
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
            return _vector(dims[start:end])
        if node.op_type == "Size":
            dims = self._dims(node.inputs[0])
            return None if dims is None else _scalar(product_of(dims))
        if node.outputs[0].dtype not in (*INTEGERS, ir.DataType.BOOL):
            return None
        try:
            if node.op_type in PAIRWISE and len(node.inputs) == 2:
                one, two = (self._known(value) for value in node.inputs)
                return None if one is None or two is None else _pairwise(PAIRWISE[node.op_type], one, two)
            return EVALUATED[node.op_type](self, node) if node.op_type in EVALUATED else None
        except (ValueError, IndexError, TypeError, OverflowError):  # a node that no run would compute
            return None

    def _first(self, node: ir.Node) -> Numbers:
        found = self._known(input_of(node, 0))
        if found is None:
            raise ValueError
        return found

    def _constants(self, node: ir.Node, index: int) -> list[int]:
        held = array_of(input_of(node, index))
        if held is None:
            raise ValueError
        found: list[int] = held.reshape(-1).tolist()
        return found

    def _gather(self, node: ir.Node) -> Numbers:
        numbers, places = self._first(node), array_of(node.inputs[1])
        if places is None or places.size > LARGEST:
            raise ValueError
        return _array(np.take(numbers, places, axis=node.attributes.get_int("axis", 0)))

    def _concat(self, node: ir.Node) -> Numbers:
        parts = [self._known(value) for value in node.inputs]
        if all(part is None for part in parts):
            raise ValueError
        sizes = [dims and dims[0] for value in node.inputs if (dims := self._dims(value)) is not None]
        if len(sizes) != len(parts) or not all(isinstance(size, int) and size <= LARGEST for size in sizes):
            raise ValueError
        filled = [_vector([None] * size) if part is None else part for part, size in zip(parts, sizes, strict=True)]  # type: ignore[operator]
        return np.concatenate(filled, axis=node.attributes.get_int("axis", 0))

    def _unsqueeze(self, node: ir.Node) -> Numbers:
        axes = _axes(node)
        if axes is None:
            raise ValueError
        return np.expand_dims(self._first(node), tuple(axes))

    def _squeeze(self, node: ir.Node) -> Numbers:
        axes = _axes(node)
        if axes is None and input_of(node, 1) is not None:
            raise ValueError
        return _array(np.squeeze(self._first(node), None if axes is None else tuple(axes)))

    def _slice(self, node: ir.Node) -> Numbers:
        numbers = self._first(node)
        starts, ends = self._constants(node, 1), self._constants(node, 2)
        axes = self._constants(node, 3) if input_of(node, 3) is not None else list(range(len(starts)))
        steps = self._constants(node, 4) if input_of(node, 4) is not None else [1] * len(starts)
        return sliced(numbers, starts, ends, axes, steps)

    def _reshaped(self, node: ir.Node) -> Numbers:
        target = self._constants(node, 1)
        numbers = self._first(node)
        return numbers.reshape([numbers.shape[axis] if size == 0 else size for axis, size in enumerate(target)])

    def _transpose(self, node: ir.Node) -> Numbers:
        perm = node.attributes.get("perm")
        return np.transpose(self._first(node), None if perm is None else list(perm.as_ints()))

    def _cast(self, node: ir.Node) -> Numbers:
        numbers = self._first(node)
        if node.outputs[0].dtype is ir.DataType.BOOL or any(isinstance(one, bool) for one in numbers.flat):
            raise ValueError
        return numbers

    def _constant_of_shape(self, node: ir.Node) -> Numbers:
        shape = self._constants(node, 0)
        if math.prod(shape) > LARGEST:
            raise ValueError
        held = node.attributes.get("value")
        return np.full(shape, held.as_tensor().numpy().item() if held is not None else 0, object)

    def _range(self, node: ir.Node) -> Numbers:
        start, limit, step = (self._constants(node, index)[0] for index in range(3))
        if len(range(start, limit, step)) > LARGEST:
            raise ValueError
        return _vector(list(range(start, limit, step)))

    def _where(self, node: ir.Node) -> Numbers:
        chosen, one, two = (self._known(value) for value in node.inputs)
        if chosen is None or one is None or two is None:
            raise ValueError
        chosen, one, two = np.broadcast_arrays(chosen, one, two)
        return _array(np.frompyfunc(lambda c, a, b: None if c is None else a if c else b, 3, 1)(chosen, one, two))

    def _one_hot(self, node: ir.Node) -> Numbers:
        """Of one place: zeros and a size, as repeats are made."""
        places, (depth,), values = self._first(node), self._constants(node, 1), self._known(node.inputs[2])
        if values is None or places.size != 1 or not 0 < depth <= LARGEST or node.attributes.get_int("axis", -1) != -1:
            raise ValueError
        made = np.full(depth, values[0], object)
        made[places.item()] = values[1]
        return made.reshape(*places.shape, depth)

    def _reduce_prod(self, node: ir.Node) -> Numbers:
        numbers, axes = self._first(node), _axes(node)
        if numbers.ndim != 1 or axes not in (None, [0], [-1]) or (axes is None and input_of(node, 1) is not None):
            raise ValueError
        total = product_of(numbers.tolist())
        return _vector([total]) if node.attributes.get_int("keepdims", 1) else _scalar(total)

    def _fold(self, value: ir.Value, numbers: Numbers) -> None:
        if (
            value.dtype is None
            or not all(isinstance(one, (bool, int)) for one in numbers.flat)
            or value.is_graph_output()
        ):
            return
        if not value.uses():
            return
        limits = np.iinfo(value.dtype.numpy()) if value.dtype in INTEGERS else None
        if limits is not None and not all(limits.min <= one <= limits.max for one in numbers.flat):
            return
        held = add_constant(self._graph, f"{value.name}_known", numbers.astype(value.dtype.numpy()))
        ir.convenience.replace_all_uses_with(value, held)
        self._folded = True


EVALUATED: dict[str, Callable[[_Walk, ir.Node], Numbers]] = {
    "Cast": _Walk._cast,
    "Concat": _Walk._concat,
    "ConstantOfShape": _Walk._constant_of_shape,
    "Gather": _Walk._gather,
    "Identity": _Walk._first,
    "OneHot": _Walk._one_hot,
    "Range": _Walk._range,
    "ReduceProd": _Walk._reduce_prod,
    "Reshape": _Walk._reshaped,
    "Slice": _Walk._slice,
    "Squeeze": _Walk._squeeze,
    "Transpose": _Walk._transpose,
    "Unsqueeze": _Walk._unsqueeze,
    "Where": _Walk._where,
}


def _sizes(numbers: Numbers | None) -> list[Dim] | None:
    """Integers that are a shape."""
    if numbers is None or numbers.ndim != 1 or any(isinstance(one, bool) for one in numbers):
        return None
    return [None if isinstance(one, int) and one < 0 else one for one in numbers]


def _vector(dims: Sequence[Any]) -> Numbers:
    found = np.empty(len(dims), object)
    found[:] = dims
    return found


def _scalar(dim: Dim) -> Numbers:
    found = np.empty((), object)
    found[()] = dim
    return found


def _array(made: Any) -> Numbers:
    """What numpy made of objects: of a scalar it makes the object itself."""
    return made if isinstance(made, np.ndarray) else _scalar(made)


def _pairwise(function: Callable[[Any, Any], Any], one: Numbers, two: Numbers) -> Numbers:
    return _array(np.frompyfunc(function, 2, 1)(one, two))


def _type(value: ir.Value) -> onnx.TypeProto | None:
    if value.type is None:
        return None
    proto = ir.serde.serialize_type(value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _merged(given: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """What is inferred, and numbers of what is given where nothing is."""
    if inferred is None or given is None or len(given) != len(inferred):
        return inferred if inferred is not None else given
    pairs = zip(inferred, given, strict=True)
    return ir.Shape([one if isinstance(one, int) or not isinstance(two, int) else two for one, two in pairs])


def _agreed(dims: Sequence[Dim], others: Sequence[Dim] | None) -> list[Dim]:
    """What is known of either; of two names the first."""
    if others is None or len(others) != len(dims):
        return list(dims)
    return [
        other if not isinstance(dim, int) and isinstance(other, int) else dim
        for dim, other in zip(dims, others, strict=True)
    ]
