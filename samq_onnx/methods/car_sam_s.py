# SPDX-License-Identifier: Apache-2.0
"""CAR-SAM without learning: PTQ4SAM-S, and a decoder's projections changed in closed form."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part, Role
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import AttentionRepairSettings, FlipBimodalKeys, Ranges, RepairAttention
from samq_onnx.passes.lift.kinds import TOKEN_TO_IMAGE_KINDS

__all__ = ["CarSamS"]

REPAIR = AttentionRepairSettings()


@method("car-sam-s", paper="CAR-SAM, CVPR 2026 (MAC alone, without JCAR's learning)")
@dataclasses.dataclass(frozen=True)
class CarSamS(Method):
    """PTQ4SAM-S, and projections of decoder attention that make good what quantization does to their partners."""

    values: bool = parameter(
        False, "also the projections of values, as in the paper; few tokens read an image, too few rows to learn from"
    )
    repair: AttentionRepairSettings = REPAIR

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        ranges = Ranges("omse", "mse", "log")
        steps: list[Step] = [FlipBimodalKeys(TOKEN_TO_IMAGE_KINDS), ranges]
        operands = "qkv" if self.values else "qk"
        for operand in "" if part.role is Role.ENCODER else operands:  # ranges come anew after each
            steps += [RepairAttention(operand, self.repair), ranges]
        return steps
