# SPDX-License-Identifier: Apache-2.0
"""Move weights onto their grid so that they absorb quantization error, in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError
from samq_onnx.methods.method import parameter
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.repair import fold_repair
from samq_onnx.methods.steps.sequence import INPUTS, in_sequence, products
from samq_onnx.passes.graph import replace_constant
from samq_onnx.passes.lift import Linear
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.gptq import DAMPING, RIDGE, compensate
from samq_onnx.reconstruct.moments import InputMoments

__all__ = ["Gptq", "GptqSettings"]


@dataclasses.dataclass(frozen=True)
class GptqSettings:
    """Parameters of `Gptq`."""

    damping: float = parameter(
        DAMPING, "added to the diagonal of the inputs' covariance, as a share of its mean", most=1e6
    )
    ridge: float = parameter(
        RIDGE, "how strongly weights are held to the float ones, as a share of the mean variance", most=1e6
    )
    sequential: bool = parameter(False, "inputs come from the quantized layers before, not from the float ones")
    repair: bool = parameter(False, "a factor and an offset for each output channel follow")
    inputs: int = parameter(INPUTS, "images that the sequential form sees", most=1e6)


class Gptq(Step):
    """GPTQ (Frantar et al. 2023) and bias correction, as `samq_onnx.reconstruct.gptq` says, of matrix products.

    In sequence, the quantized input of a linear comes from quantized predecessors, and the float one from the float
    model: the least squares of ERQ (Zhong et al. 2024, section 4) and GPTAQ (Li et al. 2025), which make good what the
    layers before lost too.
    """

    name = "GPTQ and bias correction"
    reads_plan = True

    def __init__(self, settings: GptqSettings) -> None:
        self.settings = settings

    def _moments(self, work: Work, linear: Linear) -> InputMoments:
        codes = work.plan.linears[linear.name].input
        return InputMoments(linear.x.name or "", codes, width=linear.in_features)

    def wants(self, work: Work) -> list[Statistic]:
        if self.settings.sequential:
            return []
        return [self._moments(work, linear) for linear in products(work, None)]

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        linears = products(work, report)

        def settle(linear: Linear, moments: InputMoments) -> None:
            self._compensate(work, linear, moments)
            if self.settings.repair:
                fold_repair(work, linear, moments, report)
            report.done.append(linear.name)

        if self.settings.sequential:
            in_sequence(work, linears, self.settings.inputs, settle, self.name)
        else:
            for linear in linears:
                settle(linear, work.found(self._moments(work, linear)))
        return report

    def _compensate(self, work: Work, linear: Linear, moments: InputMoments) -> None:
        weight = work.exact_constant(linear.weight)
        bias = work.exact_constant(linear.bias) if linear.bias is not None else None
        codes = work.plan.linears[linear.name].weight
        try:
            rounded, corrected = compensate(
                weight if linear.out_axis else weight.T,
                bias,
                np.array(codes.scale),
                codes.bits,
                moments,
                damping=self.settings.damping,
                ridge=self.settings.ridge,
            )
        except np.linalg.LinAlgError as error:
            raise UserError(
                f"the moments of {moments.tensors[0]} are of no inputs; collect statistics again"
            ) from error
        replace_constant(linear.weight, rounded if linear.out_axis else rounded.T)
        if linear.bias is not None and corrected is not None:
            replace_constant(linear.bias, corrected)
