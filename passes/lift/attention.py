# SPDX-License-Identifier: Apache-2.0
"""Outline every attention of a graph into one node of the samq domain.

    softmax(s (q kT) + R_h(q) + R_w(q)) v      ->      Attention(q, k, v) or AttentionRelPos(q, k, v, T_h, T_w)
    softmax(s (q kT) + B) v                    ->      AttentionBias(q, k, v, B)

The pattern is anchored at Softmax over the last axis. Above it: reshapes, scalar factors anywhere (on q, on k, on
the scores), and a sum of one matrix product of two activations with at most two decomposed relative position terms,
each the Einsum of the query with a constant table, unsqueezed over the key column or the key row, or with constants:
learned biases, masks of shifted windows. Operands are known by what they view (`passes.lift.chain`). Below it: one
matrix product with v, whose left factor is the only reader of the probabilities, but for a replacement of what is not
a number, which a softmax of finite scores does not give.

Refuses, with the reason: masks that are activations, biases beside relative position, biases of more than a reach of
`LARGEST_REACH`, probabilities with a second reader, tables in an unknown layout, types other than float32.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import add_constant, array_of, input_of, is_constant, known_shape, only_reader, scalar_of
from samq_onnx.passes.lift.bias import Constant, Refusal, bias_of
from samq_onnx.passes.lift.chain import Chain, chain_of, factor_of, passes_through, same_order, swapped, unfactored

__all__ = ["DOMAIN", "Match", "match_attention", "outline"]

DOMAIN = "samq"
EQUATION = re.compile("([A-Za-z]{4}),([A-Za-z]{3})->([A-Za-z]{4})")  # of relative position


@dataclasses.dataclass
class Match:
    """An attention as found.

    Attributes:
        scores: the product of q and k; its operands may be scaled.
        q, columns: chains of the query [..., M, d] and of the transposed key [..., d, N]. v: [..., N, dv].
        product: the last node.
        tables: of relative position, with a factor to multiply each by.
        bias: float32 [G, M, N] or None; entry b of the flattened batch gets bias[b % G].
    """

    scores: ir.Node
    q: Chain
    columns: Chain
    v: ir.Value
    product: ir.Node
    scale: float
    tables: tuple[tuple[ir.Value, float], tuple[ir.Value, float]] | None
    bias: np.ndarray | None


@dataclasses.dataclass
class _Terms:
    content: list[tuple[ir.Node, float]] = dataclasses.field(default_factory=list)
    position: list[tuple[ir.Value, float]] = dataclasses.field(default_factory=list)
    constants: list[Constant] = dataclasses.field(default_factory=list)
    reshaped: bool = False


def _collect(value: ir.Value, factor: float, terms: _Terms) -> None:
    node = value.producer()
    if node is None or node.domain:
        raise Refusal("an input of the graph is added to the scores")
    if (found := factor_of(node)) is not None:
        _collect(found[0], factor * found[1], terms)
    elif (node.op_type == "Reshape" or passes_through(node)) and node.inputs[0] is not None:
        terms.reshaped |= node.op_type == "Reshape"
        _collect(node.inputs[0], factor, terms)
    elif node.op_type == "Add":
        for part in node.inputs:
            held = array_of(part)
            if held is not None:
                terms.constants.append(Constant(held, factor, known_shape(node.outputs[0])))
            elif part is not None:
                _collect(part, factor, terms)
    elif node.op_type == "MatMul":
        terms.content.append((node, factor))
    elif node.op_type in ("Unsqueeze", "Einsum"):
        terms.position.append((value, factor))
    else:
        raise Refusal(f"the scores have a term made by {node.op_type}, such as a mask")


def _table(term: ir.Value, factor: float, query: Chain) -> tuple[int, tuple[ir.Value, float]]:
    """Which query axis (1 row, 2 column) a relative position term belongs to, its table, and a factor of that."""
    unsqueeze = term.producer()
    flat = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    einsum = flat.producer() if flat is not None else None
    if unsqueeze is None or einsum is None or einsum.domain or einsum.op_type != "Einsum" or len(einsum.inputs) != 2:
        raise Refusal("the scores have a term that is no decomposed relative position")
    rows, table = einsum.inputs
    axes = array_of(input_of(unsqueeze, 1))
    if rows is None or table is None or not is_constant(table, rank=3) or axes is None or axes.size != 1:
        raise Refusal("a relative position table is not constant")
    chain = chain_of(rows)
    if not same_order(chain, query):
        raise Refusal("relative position is not computed from the query")
    equation = EQUATION.fullmatch(einsum.attributes["equation"].as_string().replace(" ", ""))
    if equation is None or table.dtype != ir.DataType.FLOAT:
        raise Refusal("a relative position table has an unknown layout")
    query_axes, table_axes, result = equation.groups()
    place = {4: 1, 3: 2}.get(int(axes.item()) % 5)
    if (
        place is None
        or len({*query_axes, table_axes[1]}) != 5
        or table_axes[0] != query_axes[place]
        or table_axes[2] != query_axes[3]
        or result != query_axes[:3] + table_axes[1]
    ):
        raise Refusal("a relative position table has an unknown layout")
    return place, (table, factor * chain.factor)


def _unguarded(probabilities: ir.Value) -> ir.Value:
    """What replaces NaN by 0 in the probabilities, as exporters write it for rows that a mask hides, or themselves."""
    users = {node for node, _ in probabilities.uses()}
    asks = next((node for node in users if node.op_type == "IsNaN" and not node.domain), None)
    chooses = next((node for node in users if node.op_type == "Where" and not node.domain), None)
    if asks is None or chooses is None or len(users) != 2 or probabilities.is_graph_output():
        return probabilities
    condition, zero, kept = chooses.inputs
    alone = only_reader(asks.outputs[0])
    if condition is not asks.outputs[0] or alone is None or scalar_of(zero) != 0 or kept is not probabilities:
        return probabilities
    return chooses.outputs[0]


def _match(softmax: ir.Node) -> Match:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    top = softmax.inputs[0]
    assert top is not None
    if axis != -1 and (top.shape is None or axis != len(top.shape) - 1):
        raise Refusal("its softmax is not over the last axis")
    probabilities = _unguarded(softmax.outputs[0])
    while True:
        found = only_reader(probabilities)
        if found is None:
            raise Refusal("its probabilities are read more than once, or in a subgraph")
        product, index = found
        if not passes_through(product):
            break
        probabilities = product.outputs[0]
    v = product.inputs[1] if product.op_type == "MatMul" and not product.domain else None
    if v is None or index != 0 or is_constant(v):
        raise Refusal("its probabilities do not multiply an activation")
    terms = _Terms()
    _collect(top, 1.0, terms)
    if len(terms.content) != 1 or len(terms.position) not in (0, 2):
        raise Refusal("its scores are not one product with two relative position terms or none")
    scores, scale = terms.content[0]
    left, right = scores.inputs
    if left is None or right is None or is_constant(left) or is_constant(right):
        raise Refusal("its scores are not a product of two activations")
    q, columns = chain_of(left), chain_of(right)
    tables = None
    if terms.position:
        by_axis = dict(_table(value, factor, q) for value, factor in terms.position)
        if set(by_axis) != {1, 2}:
            raise Refusal("its relative position terms do not cover rows and columns")
        tables = (by_axis[1], by_axis[2])
    scale *= q.factor * columns.factor
    if not np.finfo(np.float32).tiny <= abs(scale) <= np.finfo(np.float32).max:
        raise Refusal("its scale is beyond what float32 holds")
    _check_types(scores, v)
    _check_shapes(scores, v, top, terms.reshaped)
    bias = bias_of(terms.constants, top, terms.reshaped)
    if bias is not None and tables is not None:
        raise Refusal("a constant is added to scores with relative position")
    return Match(scores, q, columns, v, product, scale, tables, bias)


def _check_types(scores: ir.Node, v: ir.Value) -> None:
    operands = (*scores.inputs, v)
    others = {value.dtype.name.lower() for value in operands if value is not None and value.dtype is not None}
    if others := others - {"float"}:
        raise Refusal(f"it computes in {', '.join(sorted(others))}")


def _check_shapes(scores: ir.Node, v: ir.Value, top: ir.Value, reshaped: bool) -> None:
    """Refuse operands that broadcast, and scores that reshaping leaves in another shape, where shapes are known."""
    known = [value.shape for value in (*scores.inputs, v) if value is not None and value.shape is not None]
    leading = [list(shape)[:-2] for shape in known]
    for one in leading[1:]:
        pairs = [(a, b) for a, b in zip(one, leading[0], strict=False) if isinstance(a, int) and isinstance(b, int)]
        if len(one) != len(leading[0]) or any(a != b for a, b in pairs):
            raise Refusal("its operands broadcast")
    if any(len(shape) < 3 for shape in known):
        raise Refusal("its operands have no batch")
    if not known:
        raise Refusal("the number of axes of its operands is not known")
    before, after = scores.outputs[0].shape, top.shape
    if reshaped and (before is None or after is None or before != after):
        raise Refusal("its scores are reshaped on their way")


def match_attention(softmax: ir.Node) -> Match | str:
    """The attention around a Softmax node, or why it is left alone."""
    try:
        return _match(softmax)
    except Refusal as refusal:
        return str(refusal)


def outline(graph: ir.Graph, match: Match, kind: str) -> ir.Node:
    """Put one node in the place of a matched attention; nodes that only it needed become dead."""
    name = match.product.outputs[0].name
    q = unfactored(graph, match.q, len(match.q.views), match.product)
    k = swapped(graph, match.columns, f"{name}_keys", match.product)
    further = [_scaled(graph, *table) for table in match.tables or ()]
    if match.bias is not None:
        further.append(add_constant(graph, f"{name}_bias", match.bias))
    output = match.product.outputs[0]
    node = ir.node(
        "AttentionRelPos" if match.tables else "AttentionBias" if match.bias is not None else "Attention",
        [q, k, match.v, *further],
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


def _scaled(graph: ir.Graph, table: ir.Value, factor: float) -> ir.Value:
    """A table times a factor."""
    held = array_of(table)
    if factor == 1.0 or held is None:
        return table
    return add_constant(graph, f"{table.name}_scaled", (held * factor).astype(np.float32))
