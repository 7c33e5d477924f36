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
FEWEST_ROWS = 8  # of one product, so that what it reads of ``right`` is used more than once


def small_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [batch, rows, inner] @ right [batch, inner, columns], float32, some rows and some of ``inner`` at a time."""
    batch, rows, inner = left.shape
    columns = right.shape[2]
    row_step = min(rows, max(FEWEST_ROWS, ON_ONE_THREAD // (inner * columns)))
    step = max(1, ON_ONE_THREAD // (row_step * columns))
    total = np.zeros((batch, rows, columns), np.float32)
    for row in range(0, rows, row_step):
        part = slice(row, row + row_step)
        for start in range(0, inner, step):
            total[:, part] += left[:, part, start : start + step] @ right[:, start : start + step]
    return total
