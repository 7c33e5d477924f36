# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from samq_onnx import ops
from samq_onnx.calibrate.blocks import SMALLEST, Block, cut
from samq_onnx.passes.lift import lift, simplify

RESIDUAL = """
    {r}_a = Relu({x})
    {r}_b = Mul({r}_a, weight)
    {r}_c = Add({r}_b, weight)
    {r}_d = Tanh({r}_c)
    {r}_e = Mul({r}_d, weight)
    {r} = Add({x}, {r}_e)
"""


def _model(body: str, inputs: str = "float[4] x") -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
        g ({inputs}) => (float[4] y) <float[4] weight = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text)))


def _three_residuals(extra: str = "y = Relu(r3)") -> ir.Model:
    return _model("".join(RESIDUAL.format(x=x, r=r) for x, r in (("x", "r1"), ("r1", "r2"), ("r2", "r3"))) + extra)


def _carried(blocks: list[Block]) -> list[str | None]:
    assert [block.carried_in for block in blocks[1:]] == [block.carried_out for block in blocks[:-1]]
    return [block.carried_out for block in blocks]


def test_cuts_fall_on_residual_sums() -> None:
    model = _three_residuals()
    blocks = cut(model, [["r1_a"], ["r2_d"], ["r3_e"], ["y"]])
    assert _carried(blocks) == ["r1", "r2", None]
    assert [block.groups for block in blocks] == [[0], [1], [2, 3]]
    assert [block.feed_inputs for block in blocks] == [["x"], [], []]
    assert all("weight" in block.model.graph.initializers for block in blocks)
    assert len(list(model.graph)) == 3 * SMALLEST + 1  # left as it was


def test_nothing_is_run_behind_the_last_tensor_wanted() -> None:
    blocks = cut(_three_residuals(), [["r1_a"]])
    assert [len(list(block.model.graph)) for block in blocks] == [1]


def test_tensors_of_a_group_come_out_of_one_block() -> None:
    blocks = cut(_three_residuals(), [["r1_d", "r2_b"], ["y"]])
    assert _carried(blocks) == ["r2", None]
    assert {value.name for value in blocks[0].model.graph.outputs} == {"r1_d", "r2_b", "r2"}


def test_a_group_may_begin_with_what_crosses_a_cut() -> None:
    blocks = cut(_three_residuals(), [["x", "r1"], ["r1", "r2"], ["r2", "r3_a", "r3"]])
    assert _carried(blocks) == ["r1", "r2", None]
    assert [block.groups for block in blocks] == [[0], [1], [2]]
    assert [sorted(v.name or "" for v in block.model.graph.outputs) for block in blocks] == [
        ["r1"],
        ["r2"],
        ["r3", "r3_a"],
    ]


def test_an_input_of_the_graph_can_be_wanted() -> None:
    blocks = cut(_three_residuals(), [["x"], ["x", "y"]])
    assert [block.groups for block in blocks] == [[0], [], [1]]
    assert [block.feed_inputs for block in blocks] == [["x"], [], ["x"]]
    (block,) = cut(_three_residuals(), [["x"]])
    assert block.groups == [0] and block.feed_inputs == ["x"]


def test_what_constants_make_does_not_cross() -> None:
    first = RESIDUAL.format(x="x", r="r1")
    second = RESIDUAL.format(x="r1", r="r2").replace("Tanh(r2_c)", "Add(r2_c, twice)")
    blocks = cut(_model(f"twice = Add(weight, weight) {first} {second} y = Relu(r2)"), [["r1_a"], ["r2_e"], ["y"]])
    assert _carried(blocks)[0] == "r1"
    assert "Add" in [node.op_type for node in blocks[1].model.graph if "weight" in (v.name for v in node.inputs if v)]


def test_two_activations_are_no_cut() -> None:
    side = "side = Neg(r1_a)" + RESIDUAL.format(x="r1", r="r2") + "y = Add(r2, side)"
    blocks = cut(_model(RESIDUAL.format(x="x", r="r1") + side), [["r1_a"], ["y"]])
    assert _carried(blocks) == [None]


def test_a_value_that_only_a_subgraph_reads_crosses() -> None:
    choose = """
        positive = ReduceSum<keepdims = 0>(r2)
        zero = Constant<value_float = 0.0>()
        above = Greater(positive, zero)
        y = If(above) <
            then_branch = then () => (float[4] one) { one = Add(r1_d, r2) },
            else_branch = other () => (float[4] two) { two = Identity(r2) }>
    """
    body = RESIDUAL.format(x="x", r="r1") + RESIDUAL.format(x="r1", r="r2") + choose
    assert _carried(cut(_model(body), [["r1_a"], ["y"]])) == [None]


def test_an_unknown_tensor() -> None:
    with pytest.raises(ValueError, match="no tensor nonsense"):
        cut(_three_residuals(), [["nonsense"]])


def test_sam_encoder_falls_apart_into_attention_and_mlp_halves(nano: Path) -> None:
    model = ir.load(nano / "encoder.onnx")
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    wanted = [[linear.x.name or ""] for linear in structure.linears]
    wanted += [[v.name or "" for v in site.node.inputs[:3] if v is not None] for site in structure.attentions]
    blocks = cut(model, wanted)
    assert sorted(group for block in blocks for group in block.groups) == list(range(len(wanted)))
    assert len(blocks) == 2 * len(structure.attentions) + 1
    sites = [sum(node.domain == ops.DOMAIN for node in block.model.graph) for block in blocks]
    assert sites[::2] == [1] * len(structure.attentions) + [0] and not any(sites[1::2])
    for block in blocks:
        onnx.checker.check_model(ir.to_proto(block.model))
    assert np.prod(blocks[1].model.graph.inputs[0].shape.numpy()) > 0  # the crossing tensor keeps its shape
