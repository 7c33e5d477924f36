# SPDX-License-Identifier: Apache-2.0
"""Batches of small matrix products that stay on the calling thread.

OpenBLAS shares a product of more than 2^18 multiplications with its other threads and waits for them. In a batch of
small products that waiting can take hundreds of times as long as the work, most of all while the cores are busy
otherwise or ONNX Runtime's own threads still hold them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["small_products"]

ON_ONE_THREAD = 250_000  # multiplications


def small_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [batch, rows, inner] @ right [batch, inner, columns], float32, a few of ``inner`` at a time."""
    step = max(1, ON_ONE_THREAD // (left.shape[1] * right.shape[2]))
    total = left[..., :step] @ right[:, :step]
    for start in range(step, left.shape[2], step):
        total += left[..., start : start + step] @ right[:, start : start + step]
    return total
