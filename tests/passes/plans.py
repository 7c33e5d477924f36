# SPDX-License-Identifier: Apache-2.0
"""Plans from the extremes of a few feeds, and the models that targets make of them: all that a test of passes needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from samq_onnx import ops
from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.models import load_model
from samq_onnx.passes.aside import defaults_aside, outputs_aside
from samq_onnx.passes.fold import fold_attention_scale
from samq_onnx.passes.graph import constant, tap
from samq_onnx.passes.lift import Lifted, Linear, lift, simplify
from samq_onnx.passes.lower import raise_opset
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.passes.report import Report
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from tests.conftest import Feed, run_model


@dataclasses.dataclass
class Lowered:
    """A lowered model with what was found in it, its plan and what the passes said."""

    model: ir.Model
    lifted: Lifted
    plan: QuantPlan
    reports: list[Report]

    @property
    def refused(self) -> list[str]:
        return [line for report in self.reports for line in report.refused]


def _chosen(lifted: Lifted) -> list[Linear]:
    """Linears behind attention, and those that make its operands; all where there is none."""
    sites = lifted.attentions
    behind = {site.node for site in sites}
    for node in lifted.model.graph:
        if any(before in behind for before in node.predecessors()):
            behind.add(node)
    behind |= {projection.linear.node for site in sites for projection in (site.q, site.k, site.v) if projection}
    floats = [linear for linear in lifted.linears if linear.weight.dtype == ir.DataType.FLOAT]
    return [linear for linear in floats if linear.node in behind or not sites]


def _softmaxes(model: ir.Model, lifted: Lifted) -> dict[str, str]:
    """Site -> the name of its probabilities in a copy of the model that was not lifted."""
    nodes, found = {node.name: node for node in model.graph}, {}
    for site in lifted.attentions:
        node = nodes[site.name]
        while node.op_type != "Softmax":
            node = node.inputs[0].producer()
        found[site.name] = node.outputs[0].name
    return found


def extremes(model: ir.Model, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, tuple[float, float]]:
    """Smallest and largest number of values over all feeds."""
    if not names:
        return {}
    probe = model.clone()
    inside = sorted(set(names) - {value.name for value in probe.graph.inputs})
    probe.graph.outputs.clear()
    tap(probe, inside)
    runs = [dict(zip(inside, run_model(probe, feed), strict=True)) | dict(feed) for feed in feeds]
    return {name: (min(r[name].min() for r in runs), max(r[name].max() for r in runs)) for name in names}


def minmax_plan(original: ir.Model, lifted: Lifted, feeds: Sequence[Feed], weight_bits: int, bits: int) -> QuantPlan:
    """A plan of extremes, its post-softmax codes uniform; ``original`` is the model before it was lifted."""
    chosen, softmaxes = _chosen(lifted), _softmaxes(original, lifted)
    operands = {site.name: [str(value.name) for value in site.node.inputs[:3]] for site in lifted.attentions}
    names = [name for linear in chosen for name in (linear.x.name, linear.output.name)]
    seen = extremes(lifted.model, [*names, *(name for three in operands.values() for name in three)], feeds)
    largest = extremes(original, list(softmaxes.values()), feeds)
    codes = {name: UniformCodes.of_range(*map(float, ends), bits) for name, ends in seen.items()}
    plan = QuantPlan()
    for linear in chosen:
        weight = np.moveaxis(constant(linear.weight), linear.out_axis, 0).reshape(linear.out_features, -1)
        scales = np.maximum(np.abs(weight).max(axis=1) / (2 ** (weight_bits - 1) - 0.5), 1e-8)
        ends = map(float, seen[linear.output.name])
        output = UniformCodes.of_range(*ends, 8) if linear.node.op_type == "Conv" else None
        plan.linears[linear.name] = LinearPlan(codes[linear.x.name], WeightCodes(tuple(scales), weight_bits), output)
    for site, three in operands.items():
        probabilities = UniformCodes.of_range(0.0, float(largest[softmaxes[site]][1]), bits)
        plan.attentions[site] = AttentionPlan(*(codes[name] for name in three), probabilities)
    return plan


def planned(
    source: ir.Model | Path, feeds: Sequence[Feed], weight_bits: int = 8, bits: int = 8
) -> tuple[Lifted, QuantPlan]:
    """A lifted model with its attention scale folded, and a plan for it."""
    model = load_model(source) if isinstance(source, Path) else source
    with defaults_aside(model):
        raise_opset(model, weight_bits)
    simplify(model)
    original = model.clone()
    lifted = lift(model)
    ops.add_functions(model)
    fold_attention_scale(lifted)
    return lifted, minmax_plan(original, lifted, feeds, weight_bits, bits)


def quantized(source: ir.Model | Path, feeds: Sequence[Feed], target: str = "samq", bits: int = 8) -> Lowered:
    """A model as a target lowers it."""
    model = load_model(source) if isinstance(source, Path) else source
    with outputs_aside(model):
        lifted, plan = planned(model, feeds, bits, bits)
        reports = TARGETS[target].lower(lifted, plan)
    TARGETS[target].check(model)
    return Lowered(model, lifted, plan, reports)
