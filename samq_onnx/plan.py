# SPDX-License-Identifier: Apache-2.0
"""The quantization plan: every number that lowering needs, and nothing that it has to guess.

A plan is made from statistics and read by `samq_onnx.passes.lower`; reports hold it as JSON. Methods of the literature
differ in how they fill a plan; targets differ in how they lower one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from samq_onnx.recipe import Recipe

__all__ = ["AttentionPlan", "LinearPlan", "LogCodes", "QuantPlan", "RowCodes", "Uniform", "Weight"]


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Per-tensor asymmetric activation codes: x = scale * (code - zero_point), code in [0, 2^bits - 1]."""

    scale: float
    zero_point: int
    bits: int


@dataclasses.dataclass(frozen=True)
class LogCodes:
    """Post-softmax codes of PTQ4SAM eq. 8: a = scale * 2^(-code / tau), code in [0, 2^bits - 1]."""

    scale: float
    tau: int
    bits: int


@dataclasses.dataclass(frozen=True)
class RowCodes:
    """Post-softmax codes relative to the largest of their row, their weights divided by the sum of the row.

    tau above 0: log codes that weigh 2^(-code / tau), the last one 0; tau = 0: uniform codes.
    """

    tau: int
    bits: int


@dataclasses.dataclass(frozen=True)
class Weight:
    """Symmetric weight codes: w = scale * code, code in [-2^(bits-1), 2^(bits-1) - 1].

    ``scale`` has one entry for the whole tensor or one for each output channel.
    """

    scale: tuple[float, ...]
    bits: int


@dataclasses.dataclass(frozen=True)
class LinearPlan:
    """A linear layer: its input codes and weight codes, and the output codes of a convolution.

    ONNX Runtime runs a convolution in integers only if its output is quantized too.
    """

    input: Uniform
    weight: Weight
    output: Uniform | None = None


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """An attention site: codes of its operands, and of the post-softmax map."""

    q: Uniform
    k: Uniform
    v: Uniform
    probabilities: LogCodes | Uniform | RowCodes


@dataclasses.dataclass
class QuantPlan:
    """All decisions for one model, by node name of the lifted and folded graph."""

    recipe: Recipe
    linears: dict[str, LinearPlan] = dataclasses.field(default_factory=dict)
    attentions: dict[str, AttentionPlan] = dataclasses.field(default_factory=dict)
    kept_float: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return dataclasses.asdict(self)
