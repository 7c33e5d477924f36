# SPDX-License-Identifier: Apache-2.0
"""Powers of errors, fast."""

from __future__ import annotations

import numpy as np

__all__ = ["power"]

TINY = np.float32(1e-30)


def power(error: np.ndarray, norm: float) -> np.ndarray:
    """|error|^norm of float32, in place; several times faster than ``np.power``."""
    np.abs(error, out=error)
    np.maximum(error, TINY, out=error)
    np.log(error, out=error)
    error *= np.float32(norm)
    np.exp(error, out=error)
    return error
