# SPDX-License-Identifier: Apache-2.0
"""Is a model still float, or has something quantized it?"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import onnx_ir as ir

from samq_onnx.errors import UserError
from samq_onnx.ops import DOMAIN

__all__ = ["RECIPE", "check_float"]

RECIPE = "samq_onnx.recipe"  # metadata of a quantized model
QUANTIZED = re.compile("^Q[A-Z]|Quantize|Dequantize|Integer|NBits|Bnb4|FpQ4")  # operators of ONNX and its runtime


def check_float(model: ir.Model, source: Path) -> None:
    """Refuse a model that something has quantized before.

    Raises:
        UserError: it has operators of integer arithmetic; names them and the program that wrote them.
    """
    nodes = [*model.graph.all_nodes(), *(node for one in model.functions.values() for node in one.all_nodes())]
    found = Counter(node.op_type for node in nodes if node.domain == DOMAIN or QUANTIZED.search(node.op_type))
    if RECIPE in model.metadata_props or found:
        by = "samq_onnx" if RECIPE in model.metadata_props else model.producer_name or "a program without a name"
        shown = ", ".join(f"{count} {name}" for name, count in found.most_common(4))
        raise UserError(f"{source}: is already quantized, by {by} ({shown}); give the float model it was made from")
