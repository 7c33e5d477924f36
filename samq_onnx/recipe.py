# SPDX-License-Identifier: Apache-2.0
"""Recipes: what a method does, by name. A recipe holds choices, the plan holds the numbers that follow from them."""

from __future__ import annotations

import dataclasses

from samq_onnx.errors import UserError

__all__ = ["BITS", "DEFAULT_METHOD", "METHODS", "Recipe", "recipe"]

BITS = {"w8a8": (8, 8), "w6a6": (6, 6), "w4a4": (4, 4)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The choices of a quantization method.

    Attributes:
        method: its name.
        weight_bits, activation_bits: widths of the codes.
        observer: how activation ranges follow from statistics, a key of `samq_onnx.calibrate.OBSERVERS`.
        weight_range: ``minmax`` or ``mse``, per output channel.
        probabilities: codes of post-softmax maps: ``uniform``; ``log``, AGQ (PTQ4SAM section 3.3); or ``row``, relative
            to the largest of their row, per site log or uniform, whichever leaves less error in A V.
        sign: fold bimodal keys (BIG, PTQ4SAM section 3.2), where they are not centred.
        key_centring: move the mean of the keys out of the range to be quantized; exact.
        compensate: round weights one input channel after the other, each rounding error made good by the
            channels that follow, and correct biases (GPTQ, Frantar et al. 2023), instead of to the nearest code.
        decoder_observer: observer of a SAM decoder, whose rare foreground and few tokens lie at the ends of the
            ranges that an error over all values would cut; the same one as elsewhere if empty.
        decoder_activation_bits: at least this many in a SAM decoder, where few bits lose the prompt and save no time:
            it is a few percent of the work.
        learned_bits: weights of at most so many bits are taught, by gradients, what the float model gives; needs
            torch. Wider ones lose less than they would then fit the calibration images alone.
        decoder_learned_bits: the same of a SAM decoder, which sees many prompts of each calibration image.
    """

    method: str
    weight_bits: int
    activation_bits: int
    observer: str
    weight_range: str
    probabilities: str
    sign: bool
    key_centring: bool = True
    compensate: bool = False
    decoder_observer: str = ""
    decoder_activation_bits: int = 0
    learned_bits: int = 0
    decoder_learned_bits: int = 0

    @property
    def learn(self) -> bool:
        """Whether the model is to be learned."""
        return self.weight_bits <= self.learned_bits

    def for_decoder(self) -> Recipe:
        """What to do with a SAM decoder."""
        return dataclasses.replace(
            self,
            observer=self.decoder_observer or self.observer,
            activation_bits=max(self.activation_bits, self.decoder_activation_bits),
            learned_bits=self.decoder_learned_bits,
        )


METHODS: dict[str, dict[str, object]] = {
    "minmax": {"observer": "minmax", "weight_range": "minmax", "probabilities": "uniform", "sign": False},
    "percentile": {"observer": "percentile", "weight_range": "minmax", "probabilities": "uniform", "sign": False},
    "omse": {"observer": "omse", "weight_range": "mse", "probabilities": "uniform", "sign": False},
    "ptq4sam-s": {
        "observer": "omse",
        "weight_range": "mse",
        "probabilities": "log",
        "sign": True,
        "key_centring": False,
    },
    "samq": {
        "observer": "omse",
        "weight_range": "mse",
        "probabilities": "row",
        "sign": True,
        "compensate": True,
        "decoder_observer": "l4",
        "decoder_activation_bits": 8,
        "learned_bits": 4,
        "decoder_learned_bits": 6,
    },
}
DEFAULT_METHOD = "samq"


def recipe(method: str = DEFAULT_METHOD, bits: str = "w8a8") -> Recipe:
    """The recipe of a method at a width.

    Raises:
        UserError: unknown method or width.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if bits not in BITS:
        raise UserError(f"unknown width {bits!r}; choose one of {', '.join(BITS)}")
    weight_bits, activation_bits = BITS[bits]
    return Recipe(method=method, weight_bits=weight_bits, activation_bits=activation_bits, **METHODS[method])  # type: ignore[arg-type]
