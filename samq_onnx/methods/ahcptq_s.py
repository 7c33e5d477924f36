# SPDX-License-Identifier: Apache-2.0
"""AHCPTQ without learning: hybrid codes behind GELU and ReLU (HLUQ), and groups of channels (CAG).

A group of channels has one scale and one zero point. Where a norm gives the channels and linears alone read it, both
fold into the norm and the linears, exactly; elsewhere sums over groups would be no integer products, and one scale
stays. The paper takes the mean scale of a group, which cuts off half of its channels, and then learns it. Here a group
has the range of all its channels, and ranges are observed again behind the fold.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.repq_vit import Reparametrise
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import FlipBimodalKeys, HybridInputs, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.passes.lift.kinds import DECODER_KINDS, TOKEN_TO_IMAGE_KINDS
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.clusters import COUNTS, FEATURES, clustered

__all__ = ["AhcptqS", "GroupChannels", "codes_of", "grouped"]

WHERE = ("always", "better", "never")


def grouped(scale: np.ndarray, point: np.ndarray, bits: int, features: str = "log") -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each channel's group, float64 [channels] each.

    Args:
        scale, point: of each channel, float64 [channels]. bits: of the codes.
        features: as `samq_onnx.reconstruct.clusters.clustered`.
    """
    centre = scale, point
    for count in COUNTS:
        centre = clustered(*centre, count, features)
    top = 2**bits - 1
    lows, highs = -point * scale, (top - point) * scale
    made, zero = scale.copy(), point.copy()
    pairs = np.stack(centre, axis=1)
    for one in np.unique(pairs, axis=0):
        members = (pairs == one).all(axis=1)
        low, high = lows[members].min(), highs[members].max()
        made[members] = (high - low) / top
        zero[members] = np.rint(-low / made[members])
    return made, zero


class GroupChannels(Reparametrise):
    """CAG where norms and linears can hold it; says which inputs of a decoder's attention keep one scale."""

    name = "channel groups (CAG)"

    def __init__(self, features: str) -> None:
        self.features = features

    def settled(self, scale: np.ndarray, point: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
        return grouped(scale, point, bits, self.features)

    def apply(self, work: Work) -> Report:
        report = super().apply(work)
        for site in work.lifted.attentions:
            if site.kind in DECODER_KINDS:
                report.refuse(
                    site.name,
                    "what its linears read is no norm's output alone; groups of channels do not run in integers",
                )
        return report


def codes_of(ranges: Ranges, groups: bool, features: str, hybrid: str) -> list[Step]:
    """The steps that fold signs and groups of channels and choose all codes; parameters as `AhcptqS` has them."""
    steps: list[Step] = [FlipBimodalKeys(TOKEN_TO_IMAGE_KINDS)]
    if groups:
        steps.append(GroupChannels(features))
    steps.append(ranges)
    return [*steps, HybridInputs(always=hybrid == "always")] if hybrid != "never" else steps


@method("ahcptq-s", paper="AHCPTQ, ICCV 2025 (HLUQ and CAG, without learning)")
@dataclasses.dataclass(frozen=True)
class AhcptqS(Method):
    """PTQ4SAM-S, hybrid log and uniform codes behind GELU and ReLU, groups of channels behind an encoder's norms."""

    activation: str = parameter("omse", "ranges of activations", lambda: TENSOR_OBSERVERS)
    hybrid: str = parameter(
        "always",
        "hybrid codes behind GELU and ReLU: always, as in the paper, where they are better, or never",
        lambda: WHERE,
    )
    groups: bool = parameter(True, "groups of channels behind norms (CAG)")
    features: str = parameter("log", "what channels are grouped by: log, or plain as in the paper", lambda: FEATURES)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return codes_of(Ranges(self.activation, "mse", "log"), self.groups, self.features, self.hybrid)
