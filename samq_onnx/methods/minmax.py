# SPDX-License-Identifier: Apache-2.0
"""The plainest baseline."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Ranges

__all__ = ["MinMax"]


@method("minmax", paper="Krishnamoorthi 2018, Quantizing deep convolutional networks, section 2")
@dataclasses.dataclass(frozen=True)
class MinMax(Method):
    """Ranges that clip nothing."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="minmax", weight="minmax", probabilities="uniform")]
