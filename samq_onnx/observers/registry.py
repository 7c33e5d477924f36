# SPDX-License-Identifier: Apache-2.0
"""The observers there are, by name: of tensors, of weights, and of whole attention sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows, TensorStats
from samq_onnx.codes import ProbabilityCodes, UniformCodes
from samq_onnx.registry import Registry

__all__ = [
    "SITE_OBSERVERS",
    "TENSOR_OBSERVERS",
    "WEIGHT_OBSERVERS",
    "SiteObserver",
    "TensorObserver",
    "WeightObserver",
]

TensorObserver: TypeAlias = Callable[[TensorStats, int], UniformCodes]
"""Statistics of an activation and a number of bits -> its codes."""

WeightObserver: TypeAlias = Callable[[np.ndarray, int], np.ndarray]
"""Rows of a weight, float32 [out, in], and a number of bits -> scales of symmetric codes, float64 [out]."""


@dataclasses.dataclass(frozen=True)
class SiteObserver:
    """How the post-softmax codes of an attention follow from its rows.

    Attributes:
        kind: of the codes that it gives, as in `samq_onnx.codes.PROBABILITY_CODES`.
        observe: (rows, bits, observer of activations) -> codes.
    """

    kind: str
    observe: Callable[[AttentionRows, int, TensorObserver], ProbabilityCodes]


TENSOR_OBSERVERS: Registry[TensorObserver] = Registry("observer", "samq_onnx.observers", "samq_onnx.methods")
WEIGHT_OBSERVERS: Registry[WeightObserver] = Registry("weight range", "samq_onnx.observers", "samq_onnx.methods")
SITE_OBSERVERS: Registry[SiteObserver] = Registry("post-softmax codes", "samq_onnx.observers", "samq_onnx.methods")
