# SPDX-License-Identifier: Apache-2.0
"""Decide every number of the plan from statistics."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows, Statistic, TensorStats
from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.methods.step import Step, Work
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.weight import scales_for_bias, weight_scales
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import AttentionSite, Linear
from samq_onnx.passes.lift.kinds import DECODER_KINDS
from samq_onnx.passes.report import Report
from samq_onnx.plan import AttentionPlan, LinearPlan

__all__ = ["Ranges"]

EVERYWHERE = "uniform"  # post-softmax codes that every target knows


@dataclasses.dataclass(frozen=True)
class Ranges(Step):
    """Codes of all activations, weights and post-softmax maps.

    Attributes:
        activation, weight, probabilities: names of observers, as in `samq_onnx.observers`.
        decoder_keys: of another one for keys in a decoder, if they have one.
        convolution_outputs: outputs of convolutions have codes too, without which ONNX Runtime computes them in float.
        inputs: that statistics see, evenly spread; all if None.
    """

    activation: str
    weight: str
    probabilities: str
    decoder_keys: str | None = None
    convolution_outputs: bool = True
    inputs: int | None = None

    name = "ranges"

    def wants(self, work: Work) -> list[Statistic]:
        wanted: list[Statistic] = []
        for linear in work.linears:
            values = (linear.x, linear.output) if self._has_output(linear) else (linear.x,)
            wanted += [TensorStats(value.name or "", self.inputs) for value in values]
        for site in work.lifted.attentions:
            wanted += [TensorStats(name, self.inputs) for name in site.operand_names]
            wanted.append(_rows(site, self.inputs))
        return wanted

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        for linear in work.linears:
            work.plan.linears[linear.name] = self._linear(work, linear)
            report.done.append(linear.name)
        kind = self.probabilities
        if not work.takes(SITE_OBSERVERS[kind].kind):
            if work.lifted.attentions:
                report.refuse("all attention", f"the target does not take {kind} post-softmax codes: {EVERYWHERE} ones")
            kind = EVERYWHERE
        for site in work.lifted.attentions:
            work.plan.attentions[site.name] = self._attention(work, site, kind)
            report.done.append(site.name)
        return report

    def _uniform(self, work: Work, tensor: str, bits: int, observer: str | None = None) -> UniformCodes:
        return TENSOR_OBSERVERS[observer or self.activation](work.found(TensorStats(tensor, self.inputs)), bits)

    def _has_output(self, linear: Linear) -> bool:
        return self.convolution_outputs and linear.node.op_type == "Conv"

    def _linear(self, work: Work, linear: Linear) -> LinearPlan:
        assert linear.x.name and linear.output.name
        input_bits, weight_bits, output_bits = (
            work.scheme.bits(linear.name, role) for role in ("input", "weight", "output")
        )
        x = self._uniform(work, linear.x.name, input_bits)
        scales = weight_scales(constant(linear.weight), linear.out_axis, weight_bits, WEIGHT_OBSERVERS[self.weight])
        if linear.bias is not None:
            scales = np.maximum(scales, scales_for_bias(constant(linear.bias), x.scale))
        return LinearPlan(
            input=x,
            weight=WeightCodes(tuple(np.float32(scales).ravel().tolist()), weight_bits),
            output=self._uniform(work, linear.output.name, output_bits) if self._has_output(linear) else None,
        )

    def _attention(self, work: Work, site: AttentionSite, kind: str) -> AttentionPlan:
        observers = (None, self.decoder_keys if site.kind in DECODER_KINDS else None, None)
        q, k, v = (
            self._uniform(work, tensor, work.scheme.bits(site.name, role), observer)
            for tensor, role, observer in zip(site.operand_names, "qkv", observers, strict=True)
        )
        bits = work.scheme.bits(site.name, "probabilities")
        rows = work.found(_rows(site, self.inputs))
        observe = SITE_OBSERVERS[kind].observe
        return AttentionPlan(q, k, v, observe(rows, bits, TENSOR_OBSERVERS[self.activation]))


def _rows(site: AttentionSite, inputs: int | None) -> AttentionRows:
    return AttentionRows(
        site.operand_names, scale=site.scale, tables=site.held_tables, bias=site.held_bias, inputs=inputs
    )
