# SPDX-License-Identifier: Apache-2.0
"""Two streams: each stage sees its tensors as the float model and as the quantized one before it make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from samq_onnx.calibrate.two_streams import by_depth, quantized_copy, run_two_streams
from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.errors import UserError
from samq_onnx.models import load_model
from samq_onnx.passes.graph import constant, held_constants, replace_constant
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.plan import LinearPlan, QuantPlan
from tests.conftest import run_model

WIDTH, ROWS, DEPTH = 16, 64, 4

CHAIN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[ROWS, WIDTH] x) => (float[ROWS, WIDTH] y) <WEIGHTS> { BODY y = Identity(LAST) }"""


def chain(depth: int = DEPTH) -> ir.Model:
    """y = s[depth - 1], s[n] = h[n] W[n] + b[n], h[n + 1] = LeakyRelu(s[n]); h[0] is x with its channels mixed.

    A block holds two linears.
    """
    weights, body = [f"float[{WIDTH}, {WIDTH}] mixing"], "h0 = MatMul(x, mixing)"
    for n in range(depth):
        weights += [f"float[{WIDTH}, {WIDTH}] w{n}", f"float[{WIDTH}] b{n}"]
        body += f"""
            p{n} = MatMul(h{n}, w{n})
            s{n} = Add(p{n}, b{n})
            h{n + 1} = LeakyRelu <alpha = 0.5> (s{n})"""
    text = CHAIN.replace("WEIGHTS", ", ".join(weights)).replace("BODY", body).replace("LAST", f"s{depth - 1}")
    model = parser.parse_model(text.replace("ROWS", str(ROWS)).replace("WIDTH", str(WIDTH)))
    random = np.random.default_rng(0)
    for name in ("mixing", *(f"{kind}{n}" for n in range(depth) for kind in "wb")):
        shape = (WIDTH,) if name.startswith("b") else (WIDTH, WIDTH)
        values = random.standard_normal(shape).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def planned(model: ir.Model, bits: int = 4) -> tuple[Lifted, QuantPlan]:
    """A chain lifted, and a plan for all its linears."""
    simplify(model)
    lifted = lift(model)
    plan = QuantPlan(weight_bits=bits)
    for linear in lifted.linears:
        scale = np.abs(constant(linear.weight)).max(axis=0) / (2 ** (bits - 1) - 1)
        codes = WeightCodes(tuple(np.float32(scale).tolist()), bits)
        plan.linears[linear.name] = LinearPlan(UniformCodes.of_range(-1.0, 4.0, bits), codes)
    return lifted, plan


def feeds(count: int = 2) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((ROWS, WIDTH)).astype(np.float32)} for _ in range(count)]


class See:
    """A stage that keeps what it sees, and sets the bias of a linear to zero when it is its turn."""

    settled = False

    def __init__(self, lifted: Lifted, index: int, *tensors: str) -> None:
        self.tensors, self._bias = tensors, lifted.linears[index].bias
        self.exact: list[np.ndarray] = []
        self.quantized: list[np.ndarray] = []

    def update(self, exact: Sequence[np.ndarray], quantized: Sequence[np.ndarray]) -> None:
        self.exact.append(exact[0])
        self.quantized.append(quantized[0])

    def decide(self) -> None:
        assert self._bias is not None
        replace_constant(self._bias, np.zeros(WIDTH))


def _tapped(model: ir.Model, name: str) -> ir.Model:
    copy = model.clone()
    copy.graph.outputs[:] = [value for node in copy.graph for value in node.outputs if value.name == name]
    return copy


def test_a_stage_sees_what_was_decided_before_and_the_float_model_as_it_was() -> None:
    lifted, plan = planned(chain())
    before, model = lifted.model.clone(), lifted.model
    stages = [See(lifted, index, linear.x.name or "") for index, linear in enumerate(lifted.linears) if index]
    given = feeds()
    run_two_streams(model, plan, stages, given, given, exact={}, label="x")
    for number, stage in enumerate(stages):
        settled = before.clone()
        for index in range(number):
            settled.graph.initializers[f"b{index}"].const_value = ir.tensor(np.zeros(WIDTH, np.float32))
        quantized = quantized_copy(_tapped(settled, stage.tensors[0]), plan, {})
        assert len(stage.exact) == len(given)
        for feed, exact, seen in zip(given, stage.exact, stage.quantized, strict=True):
            np.testing.assert_allclose(exact, run_model(_tapped(before, stage.tensors[0]), feed)[0], rtol=1e-5)
            np.testing.assert_allclose(seen, run_model(quantized, feed)[0], rtol=1e-5)
    assert np.abs(stages[-1].exact[0] - stages[-1].quantized[0]).max() > 0.1


def test_constants_of_the_float_stream_may_be_those_of_before() -> None:
    lifted, plan = planned(chain(1))
    exact = held_constants(lifted.model.graph)
    expected = run_model(lifted.model, feeds()[0])[0]
    weight = lifted.linears[1].weight
    replace_constant(weight, constant(weight) * 2)
    stage = See(lifted, 1, lifted.model.graph.outputs[0].name or "")
    run_two_streams(lifted.model, plan, [stage], feeds(), feeds(), exact=exact, label="x")
    np.testing.assert_array_equal(stage.exact[0], expected)
    assert np.abs(stage.quantized[0] - expected).max() > 0.1


def test_each_stream_has_its_own_inputs() -> None:
    lifted, plan = planned(chain(1))
    stage = See(lifted, 1, "x")
    one, two = feeds(1), [{"x": np.zeros((ROWS, WIDTH), np.float32)}]
    run_two_streams(lifted.model, plan, [stage], one, two, exact={}, label="x")
    np.testing.assert_array_equal(stage.exact[0], one[0]["x"])
    np.testing.assert_array_equal(stage.quantized[0], two[0]["x"])


def test_what_is_not_finite_is_named_and_no_input_is_refused() -> None:
    lifted, plan = planned(chain(1))
    stage = See(lifted, 1, lifted.linears[0].output.name or "")
    bad = [*feeds(1), {"x": np.full((ROWS, WIDTH), np.inf, np.float32)}]
    with pytest.raises(UserError, match="is not finite on calibration input 2"):
        run_two_streams(lifted.model, plan, [stage], bad, bad, exact={}, label="x")
    with pytest.raises(UserError, match="no calibration inputs"):
        run_two_streams(lifted.model, plan, [stage], [], [], exact={}, label="x")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_linears_of_a_group_do_not_depend_on_each_other_nor_on_later_groups(tiny_sam: Path, part: str) -> None:
    model = load_model(tiny_sam / f"{part}.onnx")
    simplify(model)
    lifted = lift(model)
    groups = by_depth(model.graph, [linear.node for linear in lifted.linears])
    assert [node for group in groups for node in group if node.op_type == "MatMul"]
    assert sum(map(len, groups)) == len(lifted.linears)
    settled: set[ir.Node] = set()
    for group in groups:
        for node in group:
            before, pending = set(), [node]
            while pending:
                for one in pending.pop().predecessors():
                    if one not in before:
                        before.add(one)
                        pending.append(one)
            assert {linear.node for linear in lifted.linears} & before <= settled
        settled |= set(group)
    assert (len(groups) < len(lifted.linears)) == (part == "decoder")  # whose q, k and v do not depend on each other


def test_a_settled_stage_sees_nothing_and_decides_all_the_same() -> None:
    lifted, plan = planned(chain(2))
    stages = [See(lifted, index, linear.x.name or "") for index, linear in enumerate(lifted.linears) if index]
    stages[0].settled = True
    run_two_streams(lifted.model, plan, stages, feeds(), feeds(), exact={}, label="x")
    assert not stages[0].exact and len(stages[1].exact) == 2
    assert not constant(lifted.linears[1].bias).any()
