# SPDX-License-Identifier: Apache-2.0
"""Clean a graph before anything is recognised in it: constants folded, dead nodes gone, every node named.

Folding stops at constants of 8 MB, so that a cleaned model is not much larger than before: it reaches the relative
position tables of every SAM and transposed weights of small ones. Local functions are inlined. Inputs and outputs of
the graph stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from samq_onnx.passes.lift.attention import DOMAIN

__all__ = ["simplify"]

FOLD_LIMIT = 8_000_000  # bytes


def simplify(model: ir.Model) -> None:
    """Clean ``model``, in place; it computes the same function."""
    common.TopologicalSortPass()(model)  # ONNX Runtime reads nodes in any order, and its own tools write them so
    ours = any(function.domain == DOMAIN for function in model.functions.values())  # they must stay calls
    optimizer.optimize(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, inline=not ours)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
