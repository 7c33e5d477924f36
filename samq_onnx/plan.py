# SPDX-License-Identifier: Apache-2.0
"""The quantization plan: every number of the quantized model. With the float model alone it gives that model again.

Methods fill a plan, targets lower it (`samq_onnx.passes.lower`); `samq_onnx.plan_file` writes and reads it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.codes import HybridCodes, ProbabilityCodes, UniformCodes, WeightCodes

__all__ = ["AttentionPlan", "LinearPlan", "QuantPlan"]


@dataclasses.dataclass(frozen=True)
class LinearPlan:
    """A linear layer: its input codes and weight codes, and the output codes of a convolution.

    ONNX Runtime runs a convolution in integers only if its output is quantized too. Where there are ``hybrid`` codes,
    ``input`` is their grid, of which the input takes the codes in their table.
    """

    input: UniformCodes
    weight: WeightCodes
    output: UniformCodes | None = None
    hybrid: HybridCodes | None = None


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """An attention site: codes of its operands, and of the post-softmax map."""

    q: UniformCodes
    k: UniformCodes
    v: UniformCodes
    probabilities: ProbabilityCodes


@dataclasses.dataclass
class QuantPlan:
    """All decisions for one model, by node name of the prepared graph (`samq_onnx.pipeline.prepare`).

    Attributes:
        target: name of the target that it was made for.
        weight_bits: the least bits that any weight may have, which decide the opset.
        constants: name of an initializer of the prepared graph -> what it holds instead, where a step moved it.
        kept_float: name of a linear -> why it is not quantized.
        metadata: what the quantized model says of itself, all strings.
    """

    target: str = "samq"
    weight_bits: int = 8
    linears: dict[str, LinearPlan] = dataclasses.field(default_factory=dict)
    attentions: dict[str, AttentionPlan] = dataclasses.field(default_factory=dict)
    kept_float: dict[str, str] = dataclasses.field(default_factory=dict)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
