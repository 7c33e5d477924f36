# SPDX-License-Identifier: Apache-2.0
"""PTQ4SAM without learning.

The released code has no configuration of it. Its paper says that it stands on OMSE, so activations have ranges of least
error here; earlier versions of the code took the mean extremes of the images, and least error for a decoder's keys
alone, which ``activation=avg_minmax`` does. The code folds signs where a decoder's tokens read the image, and nowhere
else.
"""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import FlipBimodalKeys, Ranges
from samq_onnx.observers import SITE_OBSERVERS
from samq_onnx.passes.lift.kinds import TOKEN_TO_IMAGE_KINDS

__all__ = ["BIG_HELP", "BIG_KINDS", "Ptq4SamS"]

BIG_KINDS = {"decoder": TOKEN_TO_IMAGE_KINDS, "everywhere": None, "never": frozenset[str]()}
BIG_HELP = "where signs are folded: where a decoder's tokens read the image, everywhere, or never"


@method("ptq4sam-s", paper="Lv et al. 2024, PTQ4SAM, sections 3.2 and 3.3 (BIG, AGQ)")
@dataclasses.dataclass(frozen=True)
class Ptq4SamS(Method):
    """Bimodal keys folded by sign (BIG), log post-softmax codes of adaptive base (AGQ), ranges of least error."""

    big: str = parameter("decoder", BIG_HELP, lambda: BIG_KINDS)
    probabilities: str = parameter("log", "post-softmax codes", lambda: SITE_OBSERVERS)
    activation: str = parameter(
        "omse",
        "ranges of activations: of least error, or mean extremes, with least error for a decoder's keys",
        lambda: ("omse", "avg_minmax"),
    )

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        ranges = Ranges(self.activation, "mse", self.probabilities, decoder_keys="omse")
        return [FlipBimodalKeys(BIG_KINDS[self.big]), ranges]
