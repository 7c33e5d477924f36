# SPDX-License-Identifier: Apache-2.0
"""Clean a graph before anything is recognised in it: constants folded, dead nodes gone, every node named.

Folding stops at constants of 8 MB, so that a cleaned model is not much larger than before: it reaches the relative
position tables of every SAM and transposed weights of small ones. Integers that are computed from shapes are folded as
far as the shapes are known (`passes.lift.propagate`). Local functions are inlined. Inputs and outputs of the graph stay
as they are.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from samq_onnx.errors import UserError, shortened
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.aside import defaults_aside, outputs_aside
from samq_onnx.passes.graph import add_constant
from samq_onnx.passes.lift.propagate import propagate

__all__ = ["simplify"]

FOLD_LIMIT = 8_000_000  # bytes
ROUNDS = 4  # what one folds, the other may need


def simplify(model: ir.Model) -> None:
    """Clean ``model``, in place; it computes the same function.

    Raises:
        UserError: a graph that onnxscript cannot clean.
    """
    with defaults_aside(model), outputs_aside(model):
        for value in model.graph.outputs:
            if value.producer() is not None:
                value.shape = None  # what is declared may be wrong, and is no reason to fold
        try:
            for _ in range(ROUNDS):
                _optimize(model)
                if not propagate(model):
                    break
            common.RemoveUnusedNodesPass()(model)
            common.NameFixPass()(model)
        except Exception as error:  # onnxscript and onnx_ir raise their own kinds
            raise UserError(
                f"the graph cannot be simplified ({shortened(error.__cause__ or error)}); export the model again"
            ) from error
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"


def _optimize(model: ir.Model) -> None:
    common.TopologicalSortPass()(model)  # ONNX Runtime reads nodes in any order, and its own tools write them so
    common.InlinePass(lambda function: function.domain != DOMAIN)(model)  # calls of our own domain stay
    optimizer.optimize(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, inline=False)
    _register_constants(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _register_constants(graph: ir.Graph) -> None:
    """Make constants that nodes read initializers, where they are none: of two that it made under one name, the
    optimizer registers one, or removes the one that is read with the one that is not."""
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.producer() is not None or value.is_graph_input():
                continue
            if graph.initializers.get(value.name or "") is not value:
                node.replace_input_with(
                    index, add_constant(graph, value.name or node.op_type, value.const_value.numpy())
                )
