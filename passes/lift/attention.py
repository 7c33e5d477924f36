# SPDX-License-Identifier: Apache-2.0
"""Outline every attention of a graph into one node of the samq domain.

    softmax(s (q kT) + R_h(q) + R_w(q)) v      ->      Attention(q, k, v) or AttentionRelPos(q, k, v, T_h, T_w)

The pattern is anchored at Softmax over the last axis. Above it: reshapes, scalar factors anywhere (on q, on k, on
the scores), and a sum of one matrix product of two activations with at most two decomposed relative position terms,
each the Einsum of the unscaled query with a constant table, unsqueezed over the key column or the key row. Below it:
one matrix product with v, whose left factor is the only reader of the probabilities.

Refuses, with the reason: masks and other additive terms, probabilities with a second reader, products whose right
factor is not a transposed activation, tables in an unknown layout, types other than float32.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import array_of, input_of, is_constant, only_reader, scalar_of

__all__ = ["DOMAIN", "Match", "match_attention", "outline"]

DOMAIN = "samq"
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
EQUATION = re.compile("([A-Za-z]{4}),([A-Za-z]{3})->([A-Za-z]{4})")  # of relative position


class _Refusal(Exception):
    """Why a softmax is no attention that can be outlined."""


@dataclasses.dataclass
class Match:
    """An attention as found: ``product`` is the last node, ``transpose`` the node that made k's transpose."""

    q: ir.Value
    k: ir.Value
    transpose: ir.Node
    v: ir.Value
    product: ir.Node
    scale: float
    tables: tuple[ir.Value, ir.Value] | None

    @property
    def key_perm(self) -> list[int]:
        """The permutation that takes ``k`` to [..., N, d]: that of ``transpose`` without its last swap."""
        perm = list(self.transpose.attributes["perm"].as_ints())
        return [*perm[:-2], perm[-1], perm[-2]]


@dataclasses.dataclass
class _Terms:
    content: list[tuple[ir.Node, float]] = dataclasses.field(default_factory=list)
    position: list[tuple[ir.Value, float]] = dataclasses.field(default_factory=list)
    reshaped: bool = False


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """For x * c, c * x or x / c: x and the factor."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        x, constant = node.inputs[index], scalar_of(node.inputs[1 - index])
        if constant is not None and x is not None and not is_constant(x) and math.isfinite(constant) and constant != 0:
            return x, constant if node.op_type == "Mul" else 1.0 / constant
    return None


def _passes_through(node: ir.Node) -> bool:
    """Whether the node gives its input again, in whatever float type."""
    if node.domain or node.inputs[0] is None:
        return False
    if node.op_type == "Cast":
        return node.inputs[0].dtype in (None, *FLOATS) and node.attributes["to"].as_int() in FLOATS
    training = input_of(node, 2)
    held = array_of(training)
    drops = training is not None and (held is None or bool(held.any()))
    return node.op_type == "Identity" or (node.op_type == "Dropout" and not drops)


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """``value`` without scalar factors, and their product."""
    total = 1.0
    while (node := value.producer()) is not None:
        if (found := _factor(node)) is not None:
            value, total = found[0], total * found[1]
        elif _passes_through(node) and node.inputs[0] is not None:
            value = node.inputs[0]
        else:
            break
    return value, total


def _collect(value: ir.Value, factor: float, terms: _Terms) -> None:
    node = value.producer()
    if node is None or node.domain:
        raise _Refusal("an input of the graph is added to the scores")
    if (found := _factor(node)) is not None:
        _collect(found[0], factor * found[1], terms)
    elif (node.op_type == "Reshape" or _passes_through(node)) and node.inputs[0] is not None:
        terms.reshaped |= node.op_type == "Reshape"
        _collect(node.inputs[0], factor, terms)
    elif node.op_type == "Add":
        for part in node.inputs:
            if part is None or is_constant(part):
                raise _Refusal("a constant mask is added to the scores")
            _collect(part, factor, terms)
    elif node.op_type == "MatMul":
        terms.content.append((node, factor))
    elif node.op_type in ("Unsqueeze", "Einsum"):
        terms.position.append((value, factor))
    else:
        raise _Refusal(f"the scores have a term made by {node.op_type}, such as a mask")


def _table(term: ir.Value, factor: float, query: ir.Value) -> tuple[int, ir.Value]:
    """Which query axis (1 row, 2 column) a relative position term belongs to, and its table."""
    unsqueeze = term.producer()
    flat = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    einsum = flat.producer() if flat is not None else None
    if unsqueeze is None or einsum is None or einsum.domain or einsum.op_type != "Einsum" or len(einsum.inputs) != 2:
        raise _Refusal("the scores have a term that is no decomposed relative position")
    if factor != 1.0:
        raise _Refusal("a relative position is scaled")
    rows, table = einsum.inputs
    axes = array_of(input_of(unsqueeze, 1))
    reshape = rows.producer() if rows is not None else None
    if table is None or not is_constant(table, rank=3) or axes is None or axes.size != 1 or reshape is None:
        raise _Refusal("a relative position table is not constant")
    if reshape.op_type != "Reshape" or reshape.domain or reshape.inputs[0] is not query:
        raise _Refusal("relative position is not computed from the unscaled query")
    equation = EQUATION.fullmatch(einsum.attributes["equation"].as_string().replace(" ", ""))
    if equation is None or table.dtype != ir.DataType.FLOAT:
        raise _Refusal("a relative position table has an unknown layout")
    query_axes, table_axes, result = equation.groups()
    place = {4: 1, 3: 2}.get(int(axes.item()) % 5)
    if (
        place is None
        or len({*query_axes, table_axes[1]}) != 5
        or table_axes[0] != query_axes[place]
        or table_axes[2] != query_axes[3]
        or result != query_axes[:3] + table_axes[1]
    ):
        raise _Refusal("a relative position table has an unknown layout")
    return place, table


def _match(softmax: ir.Node) -> Match:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    shape = softmax.inputs[0].shape if softmax.inputs[0] is not None else None
    if axis != -1 and (shape is None or axis != len(shape) - 1):
        raise _Refusal("its softmax is not over the last axis")
    probabilities = softmax.outputs[0]
    while True:
        found = only_reader(probabilities)
        if found is None:
            raise _Refusal("its probabilities are read more than once, or in a subgraph")
        product, index = found
        if not _passes_through(product):
            break
        probabilities = product.outputs[0]
    v = product.inputs[1] if product.op_type == "MatMul" and not product.domain else None
    if v is None or index != 0 or is_constant(v):
        raise _Refusal("its probabilities do not multiply an activation")
    terms = _Terms()
    assert softmax.inputs[0] is not None
    _collect(softmax.inputs[0], 1.0, terms)
    if len(terms.content) != 1 or len(terms.position) not in (0, 2):
        raise _Refusal("its scores are not one product with two relative position terms or none")
    scores, scale = terms.content[0]
    left, right = scores.inputs
    if left is None or right is None or is_constant(left) or is_constant(right):
        raise _Refusal("its scores are not a product of two activations")
    q, q_scale = _unscaled(left)
    k, k_scale = _unscaled(right)
    transpose = k.producer()
    if transpose is None or transpose.domain or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        raise _Refusal("its keys are not transposed in front of the product")
    if "perm" not in transpose.attributes:
        raise _Refusal("its keys are not transposed by a list of axes")
    source, source_scale = _unscaled(transpose.inputs[0])
    tables = None
    if terms.position:
        by_axis = dict(_table(value, factor, q) for value, factor in terms.position)
        if set(by_axis) != {1, 2}:
            raise _Refusal("its relative position terms do not cover rows and columns")
        tables = (by_axis[1], by_axis[2])
    scale *= q_scale * k_scale * source_scale
    if not np.finfo(np.float32).tiny <= abs(scale) <= np.finfo(np.float32).max:
        raise _Refusal("its scale is beyond what float32 holds")
    match = Match(q, source, transpose, v, product, scale, tables)
    _check_types(match)
    _check_shapes(match, softmax, scores if terms.reshaped else None)
    return match


def _check_types(match: Match) -> None:
    operands = (match.q, match.k, match.v)
    if others := {value.dtype.name.lower() for value in operands if value.dtype not in (None, ir.DataType.FLOAT)}:
        raise _Refusal(f"it computes in {', '.join(others)}")


def _check_shapes(match: Match, softmax: ir.Node, reshaped: ir.Node | None) -> None:
    """Refuse operands that broadcast, and scores that reshaping leaves in another shape, where shapes are known."""
    key = match.k.shape
    shapes = [
        match.q.shape,
        ir.Shape([key[axis] for axis in match.key_perm]) if key is not None else None,
        match.v.shape,
    ]
    known = [shape for shape in shapes if shape is not None]
    leading = [list(shape)[:-2] for shape in known]
    for one in leading[1:]:
        pairs = [(a, b) for a, b in zip(one, leading[0], strict=False) if isinstance(a, int) and isinstance(b, int)]
        if len(one) != len(leading[0]) or any(a != b for a, b in pairs):
            raise _Refusal("its operands broadcast")
    if any(len(shape) < 3 for shape in known):
        raise _Refusal("its operands have no batch")
    if reshaped is not None:
        before, after = reshaped.outputs[0].shape, softmax.inputs[0].shape if softmax.inputs[0] is not None else None
        if before is None or after is None or before != after:
            raise _Refusal("its scores are reshaped on their way")


def match_attention(softmax: ir.Node) -> Match | str:
    """The attention around a Softmax node, or why it is left alone."""
    try:
        return _match(softmax)
    except _Refusal as refusal:
        return str(refusal)


def outline(graph: ir.Graph, match: Match, kind: str) -> ir.Node:
    """Put one node in the place of a matched attention; nodes that only it needed become dead."""
    perm, k = match.key_perm, match.k
    if perm != sorted(perm):
        keys = ir.node("Transpose", [k], {"perm": perm})
        graph.insert_before(match.product, keys)
        k = keys.outputs[0]
        k.name, k.type = f"{match.product.outputs[0].name}_keys", ir.TensorType(ir.DataType.FLOAT)
        if match.k.shape is not None:
            k.shape = ir.Shape([match.k.shape[axis] for axis in perm])
    output = match.product.outputs[0]
    node = ir.node(
        "AttentionRelPos" if match.tables else "Attention",
        [match.q, k, match.v, *(match.tables or ())],
        {"scale": float(np.float32(match.scale)), "kind": kind},
        domain=DOMAIN,
        name=match.product.name,
    )
    graph.insert_before(match.product, node)
    made = node.outputs[0]
    name, shape, dtype = output.name, output.shape, output.type
    ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
    graph.remove(match.product, safe=True)
    made.name, made.shape, made.type = name, shape, dtype
    return node
