# SPDX-License-Identifier: Apache-2.0
"""Foci of attention, codes inside a graph, and the search that goes by them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import ClipAs, ClipByFocus, Ranges, Select
from samq_onnx.models import load_model
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.observers.focus import SHARES_KEPT, focus, focus_loss
from samq_onnx.observers.weight import scales_for_bias
from samq_onnx.passes.fold.edit import scale_outputs
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lower.fake import fake_quantize_inputs
from samq_onnx.pipeline import Preparation, begin
from tests.conftest import Feed, run_model

BITS = 4

# SAQ-SAM's metric, one map of two queries: IoU 1/3
A = np.array([[[0.6, 0.3, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]]])
CODED = np.array([[[0.4, 0.35, 0.2, 0.05], [0.7, 0.1, 0.1, 0.1]]])


def test_the_worked_numbers_of_the_metric() -> None:
    exact, coded = focus(np.log(A)), focus(np.log(CODED))
    np.testing.assert_array_equal(exact[0], [[True, False, False, False], [True, True, True, True]])
    np.testing.assert_array_equal(coded[0], [[True, True, False, False], [True, False, False, False]])
    assert 1 - focus_loss(exact, coded) == pytest.approx(1 / 3, abs=1e-6)


def test_the_focus_is_a_share_of_the_rows_largest() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 5, 9)).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = powers / powers.sum(axis=-1, keepdims=True)
    np.testing.assert_array_equal(focus(logits), probabilities > 0.5 * probabilities.max(axis=-1, keepdims=True))


def test_candidates_are_those_of_the_paper() -> None:
    assert len(SHARES_KEPT) == 29 and list(SHARES_KEPT) == sorted(SHARES_KEPT)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_input_of_one_node_goes_through_codes(bits: int) -> None:
    x, w = (ir.val(name, ir.DataType.FLOAT, [4, 4]) for name in "xw")
    first, second = ir.node("MatMul", [x, x], name="first"), ir.node("MatMul", [x, w], name="second")
    graph = ir.Graph([x, w], [first.outputs[0], second.outputs[0]], nodes=[first, second], opset_imports={"": 21})
    for node in graph:
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(graph, ir_version=10)
    codes = UniformCodes.of_range(-1.0, 2.0, bits)
    feed = {name: np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32) for name in "xw"}
    fake_quantize_inputs(model, {("first", 1): codes})
    made = run_model(model, feed)
    np.testing.assert_allclose(made[0], feed["x"] @ codes.fake_quantize(feed["x"]), atol=1e-5)
    np.testing.assert_allclose(made[1], feed["x"] @ feed["w"], atol=1e-6)


def planned(nano: Path, feeds: list[Feed]) -> tuple[Work, dict[str, float]]:
    """A decoder whose first cross-attention has a channel of q a hundred times as large, and of k as small; the plan of
    `Ranges`, and then of `ClipByFocus`. Scales of k that ranges gave."""
    model = load_model(nano / "decoder.onnx")
    prepared = Preparation(model, BITS)
    for site in prepared.lifted.attentions:
        assert site.q is not None and site.k is not None
        factor = np.ones(site.q.channels.shape)
        factor[0, 0] = 100.0
        scale_outputs(site.q.linear, site.q.channels, factor)
        scale_outputs(site.k.linear, site.k.channels, 1 / factor)
    work = begin(prepared, identify(model, "decoder"), feeds, Scheme(Widths(BITS, BITS), strict=True), target="samq")
    work.run([Select(), Ranges("omse", "mse", "uniform")], work)
    before = {site: plan.q.scale for site, plan in work.plan.attentions.items()}
    work.run([ClipByFocus()], work)
    return work, before


def test_outliers_are_clipped_where_attention_does_not_mind(nano: Path, decoder_feed: Feed) -> None:
    work, before = planned(nano, [decoder_feed])
    report = work.reports[-1]
    assert len(report.done) == 7 and not report.refused
    after = {site: plan.q.scale for site, plan in work.plan.attentions.items()}
    assert np.median([after[site] / before[site] for site in before]) < 0.5
    for site in work.lifted.attentions:
        for projection in (site.q, site.k):
            assert projection is not None and projection.linear.bias is not None
            plan = work.plan.linears[projection.linear.name]
            least = scales_for_bias(constant(projection.linear.bias), plan.input.scale)
            assert (np.array(plan.weight.scale) >= 0.999 * least).all()
            assert plan.input.bits == BITS


def test_an_encoder_is_left_alone(nano: Path, encoder_feed: Feed) -> None:
    model = load_model(nano / "encoder.onnx")
    prepared = Preparation(model, BITS)
    scheme = Scheme(Widths(BITS, BITS), strict=True)
    work = begin(prepared, identify(model, "encoder"), [encoder_feed], scheme, target="samq")
    work.run([Select(), Ranges("minmax", "minmax", "uniform")], work)
    before = dict(work.plan.attentions), dict(work.plan.linears)
    work.run([ClipByFocus()], work)
    assert (work.plan.attentions, work.plan.linears) == before
    assert not work.reports[-1].done and not work.reports[-1].refused


def test_other_observers_clip_the_same_tensors(nano: Path, decoder_feed: Feed) -> None:
    model = load_model(nano / "decoder.onnx")
    work = begin(
        Preparation(model, BITS), identify(model, "x"), [decoder_feed], Scheme(Widths(BITS, BITS)), target="samq"
    )
    work.run([Select(), Ranges("omse", "mse", "log")], work)
    before = copy.deepcopy(work.plan)
    work.run([ClipAs("minmax")], work)
    clipped = set(work.reports[-1].done)
    assert clipped == {site.name for site in work.lifted.attentions}
    for site in work.lifted.attentions:
        q, k, v = (work.found(TensorStats(name)) for name in site.operand_names)
        made = work.plan.attentions[site.name]
        assert (made.q, made.k) == tuple(TENSOR_OBSERVERS["minmax"](one, BITS) for one in (q, k))
        assert made.v == before.attentions[site.name].v == TENSOR_OBSERVERS["omse"](v, BITS)
        for projection in (site.q, site.k):
            assert projection is not None
            x = work.found(TensorStats(projection.linear.x.name or ""))
            assert work.plan.linears[projection.linear.name].input == TENSOR_OBSERVERS["minmax"](x, BITS)
