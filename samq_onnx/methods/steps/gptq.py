# SPDX-License-Identifier: Apache-2.0
"""Move weights onto their grid so that they absorb quantization error, in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError
from samq_onnx.methods.method import parameter
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.graph import constant, is_shared, replace_constant
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


class Gptq(Step):
    """GPTQ (Frantar et al. 2023) and bias correction, as `samq_onnx.reconstruct.gptq` says, of matrix products."""

    name = "GPTQ and bias correction"
    reads_plan = True

    def __init__(self, settings: GptqSettings) -> None:
        self.settings = settings

    def _products(self, work: Work) -> list[Linear]:
        return [linear for linear in work.linears if linear.node.op_type != "Conv" and not _is_shared(linear)]

    def _moments(self, work: Work, linear: Linear) -> InputMoments:
        codes = work.plan.linears[linear.name].input
        return InputMoments(linear.x.name or "", codes, width=linear.in_features)

    def wants(self, work: Work) -> list[Statistic]:
        return [self._moments(work, linear) for linear in self._products(work)]

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        for linear in work.linears:
            if linear.node.op_type != "Conv" and _is_shared(linear):
                report.refuse(linear.name, "its weight or bias is shared with another node")
        for linear in self._products(work):
            moments = work.found(self._moments(work, linear))
            weight = constant(linear.weight)
            bias = constant(linear.bias) if linear.bias is not None else None
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
            report.done.append(linear.name)
        return report


def _is_shared(linear: Linear) -> bool:
    return any(value is not None and is_shared(value) for value in (linear.weight, linear.bias))
