# SPDX-License-Identifier: Apache-2.0
"""The default method: what measures best, of all that is exact or has a closed form."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part, Role
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import (
    BalanceOperands,
    BestOf,
    CentreKeys,
    FlipBimodalKeys,
    Gptq,
    GptqSettings,
    Ranges,
    RotateStream,
    Spare,
)

__all__ = ["Auto"]

GPTQ = GptqSettings()
KEYS = [CentreKeys(), FlipBimodalKeys()]


@method("auto", paper="this package; rotation after QuaRot (Ashkboos et al. 2024), GPTQ (Frantar et al. 2023)")
@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """Exact folds and ranges that measure best, row-relative post-softmax codes, GPTQ, and few sites left in float."""

    decoder_bits: int = parameter(8, "activations of a decoder have at least so many bits; few lose the prompt", most=8)
    encoder_float: float = parameter(
        0.08, "share of an encoder's products that may stay in float, in convolutions, whose outputs need codes", most=1
    )
    decoder_float: float = parameter(
        0.35, "share of a decoder's products that may stay in float, where that saves most accuracy", most=1
    )
    gptq: GptqSettings = GPTQ

    def widths(self, part: Part, widths: Widths) -> Widths:
        if part.role is not Role.DECODER:
            return widths
        return dataclasses.replace(widths, activation=max(widths.activation, self.decoder_bits))

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return self._decoder(scheme) if part.role is Role.DECODER else self._encoder(scheme)

    def _encoder(self, scheme: Scheme) -> list[Step]:
        ranges = Ranges("omse", "mse", "row", convolution_outputs=not scheme.strict)
        folds: dict[str, list[Step]] = {
            "as it is": [],
            "balanced operands": [BalanceOperands()],
            "rotated": [RotateStream()],
            "rotated, balanced operands": [RotateStream(), BalanceOperands()],
        }
        spare = [] if scheme.strict else [Spare(self.encoder_float, inputs=2, convolutions=True)]
        return [*KEYS, BestOf("folds", folds, [ranges]), ranges, *spare, Gptq(self.gptq)]

    def _decoder(self, scheme: Scheme) -> list[Step]:
        def ranges(activation: str) -> Ranges:
            return Ranges(activation, "mse", "row", convolution_outputs=not scheme.strict)

        folds: dict[str, list[Step]] = {"as it is": [], "balanced operands": [BalanceOperands()]}
        observers: dict[str, list[Step]] = {name: [ranges(name)] for name in ("l4", "omse", "minmax")}
        spare = [] if scheme.strict else [Spare(self.decoder_float, inputs=8)]
        return [*KEYS, BestOf("folds", folds, [ranges("l4")]), BestOf("ranges", observers, []), *spare]
