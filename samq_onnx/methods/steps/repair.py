# SPDX-License-Identifier: Apache-2.0
"""Repair the output channels of quantized linears by a factor and an offset each, at no cost at run time."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.codes import WeightCodes
from samq_onnx.methods.method import parameter
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.sequence import INPUTS, in_sequence, products
from samq_onnx.observers.weight import scales_for_bias
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.lift import Linear
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.moments import InputMoments
from samq_onnx.reconstruct.repair import repair

__all__ = ["RepairOutputs", "RepairSettings", "fold_repair"]


@dataclasses.dataclass(frozen=True)
class RepairSettings:
    """Parameters of `RepairOutputs`."""

    inputs: int = parameter(INPUTS, "images that are seen", most=1e6)


class RepairOutputs(Step):
    """Bring every output channel of the matrix products nearest to the float one, as `samq_onnx.reconstruct.repair` says.

    Each is seen with the input that its quantized predecessors give, these repaired already. It may follow any steps
    that fill the plan and move weights.
    """

    name = "affine repair"
    reads_plan = True

    def __init__(self, settings: RepairSettings) -> None:
        self.settings = settings

    def apply(self, work: Work) -> Report:
        report = Report(self.name)

        def settle(linear: Linear, moments: InputMoments) -> None:
            fold_repair(work, linear, moments, report)
            report.done.append(linear.name)

        in_sequence(work, products(work, report), self.settings.inputs, settle, self.name)
        return report


def fold_repair(work: Work, linear: Linear, moments: InputMoments, report: Report) -> None:
    """Fold the repair of a linear into its bias and the scales of its weight codes; the codes stay what they are."""
    plan = work.plan.linears[linear.name]
    codes = plan.weight
    held = codes.encode(constant(linear.weight), linear.out_axis)
    weight, rounded = work.exact_constant(linear.weight), codes.decode(held, linear.out_axis)
    if not linear.out_axis:
        weight, rounded = weight.T, rounded.T
    found = repair(weight, rounded, moments, centred=linear.bias is not None)
    scale, factor = np.array(codes.scale), found.factor
    if scale.size != linear.out_features:
        report.refuse(linear.name, "its channels share a scale, offsets alone")
        factor = np.ones(linear.out_features)
    elif found.left:
        report.refuse(linear.name, f"{found.left} of its channels keep their scale, their signal is lost")
    if linear.bias is not None:
        bias = work.exact_constant(linear.bias)
        too_fine = scale * factor < scales_for_bias(found.bias(factor, bias), plan.input.scale)
        factor = np.where(too_fine, 1.0, factor)
        replace_constant(linear.bias, found.bias(factor, bias))
    if scale.size == linear.out_features:
        scale = scale * factor
    repaired = WeightCodes(tuple(np.float32(scale).tolist()), codes.bits)
    work.plan.linears[linear.name] = dataclasses.replace(plan, weight=repaired)
    replace_constant(linear.weight, repaired.decode(held, linear.out_axis))
