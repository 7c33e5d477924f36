# SPDX-License-Identifier: Apache-2.0
"""What loses least with learning."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part, Role
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, FirstOf, FlipBimodalKeys, Gptq, GptqSettings, Ranges, Reconstruct
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS

__all__ = ["Samq"]

GPTQ = GptqSettings()


@method("samq", paper="this package; key centring, row codes, GPTQ (Frantar et al. 2023), reconstruction by gradients")
@dataclasses.dataclass(frozen=True)
class Samq(Method):
    """Centred keys, post-softmax codes relative to their row, weights by GPTQ and bias correction or reconstructed."""

    activation: str = parameter("omse", "ranges of activations in an encoder", lambda: TENSOR_OBSERVERS)
    decoder_activation: str = parameter(
        "l4",
        "ranges in a decoder, whose rare foreground lies at the ends that least error cuts",
        lambda: TENSOR_OBSERVERS,
    )
    decoder_bits: int = parameter(8, "activations of a decoder have at least so many bits; few lose the prompt", most=8)
    probabilities: str = parameter("row", "post-softmax codes", lambda: SITE_OBSERVERS)
    compensate: bool = parameter(True, "round an encoder's weights by GPTQ, and correct its biases")
    gptq: GptqSettings = GPTQ
    encoder_learned_bits: int = parameter(
        4, "weights of an encoder of at most so many bits are learned by gradients", most=8
    )
    decoder_learned_bits: int = parameter(
        6, "weights of a decoder of at most so many bits are learned by gradients", most=8
    )

    def widths(self, part: Part, widths: Widths) -> Widths:
        if part.role is not Role.DECODER:
            return widths
        return dataclasses.replace(widths, activation=max(widths.activation, self.decoder_bits))

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        decoder = part.role is Role.DECODER
        ranges = Ranges(self.decoder_activation if decoder else self.activation, "mse", self.probabilities)
        learned_bits = self.decoder_learned_bits if decoder else self.encoder_learned_bits
        # a decoder's error lies in few tokens and a rare foreground, which mean errors over all rows do not see
        weights: list[Step] = [Gptq(self.gptq)] if self.compensate and not decoder else []
        if scheme.widths.weight <= learned_bits:
            weights.insert(0, Reconstruct())
        return [CentreKeys(), FlipBimodalKeys(), ranges, FirstOf(*weights)]
