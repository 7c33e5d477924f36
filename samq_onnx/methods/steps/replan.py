# SPDX-License-Identifier: Apache-2.0
"""Other input codes for a linear that is planned already."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.codes import HybridCodes, UniformCodes
from samq_onnx.observers.weight import scales_for_bias
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Linear
from samq_onnx.plan import LinearPlan

__all__ = ["with_input"]


def with_input(linear: Linear, held: LinearPlan, codes: UniformCodes, hybrid: HybridCodes | None = None) -> LinearPlan:
    """The plan with these codes; smaller ones may need larger scales of the weight, for the bias."""
    scales = np.array(held.weight.scale)
    if linear.bias is not None:
        scales = np.maximum(scales, scales_for_bias(constant(linear.bias), codes.scale))
    weight = dataclasses.replace(held.weight, scale=tuple(np.float32(scales).ravel().tolist()))
    return dataclasses.replace(held, input=codes, weight=weight, hybrid=hybrid)
