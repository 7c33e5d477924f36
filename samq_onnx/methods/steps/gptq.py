# SPDX-License-Identifier: Apache-2.0
"""Move weights onto their grid so that they absorb quantization error, in closed form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from samq_onnx.calibrate.stream import Collector, run
from samq_onnx.errors import UserError
from samq_onnx.families import Role
from samq_onnx.methods.method import parameter
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.repair import fold_repair
from samq_onnx.methods.steps.sequence import INPUTS, in_sequence, products
from samq_onnx.passes.graph import replace_constant
from samq_onnx.passes.lift import Linear
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.gptq import DAMPING, RIDGE, compensate
from samq_onnx.reconstruct.moments import ROWS_PER_FEED, InputMoments

__all__ = ["Gptq", "GptqSettings"]

ROWS = 8192  # of an encoder's linear in all, more than twice the widest input of ViT-B
FEWEST = 4  # images that they are of, if there are so many


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

    Otherwise moments are of the float model's tensors, and are let go of as soon as their linears are done: those of
    all linears together would take many times the memory of the model.
    """

    name = "GPTQ and bias correction"
    reads_plan = True

    def __init__(self, settings: GptqSettings) -> None:
        self.settings = settings

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
            waiting: dict[str, _Waiting] = {}
            for linear in linears:
                one = _Waiting(work, linear, settle)
                waiting.setdefault(one.key, one).linears.append(linear)
            run(work.model, work.observed, list(waiting.values()), label=f"{work.label}: {self.name}", done=_finish)
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


class _Waiting:
    """Linears that read one tensor through the same codes, until its moments are complete."""

    def __init__(self, work: Work, linear: Linear, settle: Callable[[Linear, InputMoments], None]) -> None:
        codes = work.plan.linears[linear.name].input
        self.inputs, rows = _sample(work, linear)
        self.moments: InputMoments | None = InputMoments(
            linear.x.name or "", codes, width=linear.in_features, rows_per_feed=rows
        )
        self.key, self.tensors = self.moments.key, self.moments.tensors
        self.linears: list[Linear] = []
        self._settle = settle

    def update(self, *arrays: np.ndarray) -> None:
        assert self.moments is not None
        self.moments.update(*arrays)

    def finish(self) -> None:
        assert self.moments is not None
        for linear in self.linears:
            self._settle(linear, self.moments)
        self.moments = None


def _finish(collector: Collector) -> None:
    assert isinstance(collector, _Waiting)
    collector.finish()


def _sample(work: Work, linear: Linear) -> tuple[int | None, int]:
    """Of how many inputs moments are taken, None for all, and how many rows of each."""
    sizes = linear.x.shape[:-1] if linear.x.shape is not None else ("unknown",)
    if work.part.role is Role.DECODER or not all(isinstance(size, int) for size in sizes):
        return None, ROWS_PER_FEED
    rows = math.prod(size for size in sizes if isinstance(size, int))
    inputs = min(len(work.observed), max(FEWEST, math.ceil(ROWS / max(1, rows))))
    return inputs, math.ceil(ROWS / inputs)
