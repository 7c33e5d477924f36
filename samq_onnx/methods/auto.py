# SPDX-License-Identifier: Apache-2.0
"""The default method: what measures best, of all that is exact or has a closed form."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part, Role
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.qdrop import recipe_of
from samq_onnx.methods.scheme import Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import (
    BalanceOperands,
    BestCodes,
    BestOf,
    CentreKeys,
    FlipBimodalKeys,
    Gptq,
    GptqSettings,
    KeepBetter,
    LearnUnits,
    Ranges,
    Reconstruct,
    RotateStream,
    Spare,
)

__all__ = ["Auto"]

GPTQ = GptqSettings()
CENTRED, SIGNS = CentreKeys(), FlipBimodalKeys()
OBSERVERS = ("l4", "omse", "minmax")  # of a decoder, whose rare foreground lies at the ends that least error cuts
NARROW_OBSERVERS = ("omse", "percentile", "l4")  # below 8 bits, where errors are everywhere
TRIAL_IMAGES = 8  # that alternatives for an encoder are tried on
LARGE = 1024  # pixels, a side of images of which fewer are enough
LARGE_RANGE_IMAGES, LARGE_TRIAL_IMAGES = 8, 1  # then
TRIAL_PROMPTS = 16  # that alternatives for a decoder are tried on
SITE_PROMPTS = 6  # that its sites are tried on
NARROW = 6  # bits, up to which an encoder's loss is worth learning; a decoder also learns to live with its encoder's
UNITS = recipe_of("block", 20_000, 0.5, 1)
LEARN = KeepBetter({"learned by units": [LearnUnits(UNITS)]})  # as a whole, few images are learned by heart
LEARN_MASKS = KeepBetter({"learned as a whole": [Reconstruct()]})  # errors of a decoder's units are those of background


@method("auto", paper="this package; rotation after QuaRot (Ashkboos et al. 2024), GPTQ (Frantar et al. 2023)")
@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """Exact folds and ranges that measure best, row-relative post-softmax codes, GPTQ, and few sites left in float.

    Where the user gives minutes, and torch is there, it also learns, an encoder by units and a decoder as a whole, and
    keeps what is better on images that nothing was learned from.
    """

    decoder_bits: int = parameter(
        8, "a decoder has at least so many bits; few lose the prompt, and it is a few percent of a model", most=8
    )
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
        return Widths(max(widths.weight, self.decoder_bits), max(widths.activation, self.decoder_bits))

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return self._decoder(scheme) if part.role is Role.DECODER else self._encoder(part, scheme)

    def _encoder(self, part: Part, scheme: Scheme) -> list[Step]:
        large = part.image is not None and part.image.size >= LARGE
        images, tried = (LARGE_RANGE_IMAGES, LARGE_TRIAL_IMAGES) if large else (None, TRIAL_IMAGES)
        ranges = Ranges("omse", "mse", "row", convolution_outputs=not scheme.strict, inputs=images)
        folds: dict[str, list[Step]] = {
            "as it is": [],
            "balanced operands": [BalanceOperands()],
            "rotated": [RotateStream()],
            "rotated, balanced operands": [RotateStream(), BalanceOperands()],
        }
        spare = [] if scheme.strict else [Spare(self.encoder_float, inputs=tried, least=0.08, convolutions=True)]
        learn = [LEARN] if min(dataclasses.astuple(scheme.widths)) <= NARROW else []
        return [CENTRED, SIGNS, BestOf("folds", folds, [ranges], inputs=tried), ranges, *spare, Gptq(self.gptq), *learn]

    def _decoder(self, scheme: Scheme) -> list[Step]:
        narrow = scheme.widths.activation < 8
        observers, tried = (NARROW_OBSERVERS, TRIAL_PROMPTS) if narrow else (OBSERVERS, SITE_PROMPTS)
        ways = {name: Ranges(name, "mse", "row", convolution_outputs=not scheme.strict) for name in observers}
        folds: dict[str, list[Step]] = {"as it is": [], "balanced operands": [BalanceOperands()]}
        spare = [] if scheme.strict else [Spare(self.decoder_float, inputs=SITE_PROMPTS)]
        best = BestOf("folds", folds, [ways[observers[0]]], inputs=TRIAL_PROMPTS)
        return [SIGNS, best, BestCodes(ways, inputs=tried), *spare, LEARN_MASKS]
