# SPDX-License-Identifier: Apache-2.0
"""Observers: how codes follow from statistics and a width. A file here, or of a method, registers its own."""

from __future__ import annotations

from samq_onnx.observers.registry import (
    SITE_OBSERVERS,
    TENSOR_OBSERVERS,
    WEIGHT_OBSERVERS,
    SiteObserver,
    TensorObserver,
    WeightObserver,
)

__all__ = [
    "SITE_OBSERVERS",
    "TENSOR_OBSERVERS",
    "WEIGHT_OBSERVERS",
    "SiteObserver",
    "TensorObserver",
    "WeightObserver",
]
