# SPDX-License-Identifier: Apache-2.0
"""What attention looks at, and how much of that codes move (SAQ-SAM, perceptual-consistency clipping).

A query focuses on the keys whose probability is more than a share of its largest one. As softmax keeps ratios, that
is read off the logits: l > max l + log(share).
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["SHARE", "SHARES_KEPT", "focus", "focus_loss"]

SHARE = 0.5
SHARES_KEPT = (
    0.85, 0.87, 0.88, 0.89, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.960, 0.965, 0.970, 0.975, 0.980, 0.983, 0.985, 0.987,
    0.989, 0.99, 0.993, 0.995, 0.997, 0.999, 0.9993, 0.9995, 0.9997, 0.9999, 0.99999,
)  # fmt: skip
"""Of a tensor's values, up to either end: the candidates of a search, the narrowest range first."""
LEAST = 1e-6  # entries that two foci have together


def focus(logits: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Whether a query [..., M, N] focuses on a key, bool."""
    found: np.ndarray = logits > logits.max(axis=-1, keepdims=True) + math.log(share)
    return found


def focus_loss(exact: np.ndarray, coded: np.ndarray) -> float:
    """1 - IoU of two foci, bool [..., M, N] both, over the queries and keys of each map; the mean of all maps."""
    shared = (exact & coded).sum(axis=(-2, -1))
    either = (exact | coded).sum(axis=(-2, -1))
    return float(np.mean(1 - shared / (either + LEAST)))
