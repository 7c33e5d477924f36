# SPDX-License-Identifier: Apache-2.0
"""Post-softmax codes choose the operator, with and without relative position."""

from __future__ import annotations

from pathlib import Path

import pytest

from samq_onnx import ops
from samq_onnx.codes import LogCodes, RowCodes, UniformCodes
from samq_onnx.models import load_model
from samq_onnx.passes.lift import lift, simplify
from samq_onnx.passes.lower.attention import lower_attention
from samq_onnx.passes.lower.build import Builder
from samq_onnx.plan import AttentionPlan, QuantPlan

KINDS = {
    "QAttention": LogCodes(0.9, 2, 8),
    "UniformAttention": UniformCodes(1 / 255, 0, 8),
    "LogRowAttention": RowCodes(4, 8),
    "UniformRowAttention": RowCodes(0, 8),
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", KINDS)
def test_codes_choose_the_operator(name: str, part: str, nano: Path) -> None:
    model = load_model(nano / f"{part}.onnx")
    simplify(model)
    structure = lift(model)
    plan = QuantPlan()
    operand = UniformCodes(0.1, 128, 8)
    for site in structure.attentions:
        plan.attentions[site.name] = AttentionPlan(operand, operand, operand, KINDS[name])
    lower_attention(structure, Builder(model.graph), plan)
    made = [node for node in model.graph if node.domain == ops.DOMAIN]
    assert len(made) == len(structure.attentions)
    tau = getattr(KINDS[name], "tau", 0)
    for node in made:
        assert node.op_type == name + ("RelPos" if part == "encoder" else "")
        assert ("tau" in node.attributes) == (tau > 0)
        if tau:
            assert node.attributes["tau"].as_int() == tau
        assert len(node.inputs) == 9 + ("Row" not in name) + 4 * (part == "encoder")
