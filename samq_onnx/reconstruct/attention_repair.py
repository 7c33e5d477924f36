# SPDX-License-Identifier: Apache-2.0
"""Change a projection of an attention, in closed form, so that it makes good what quantization did to its partner.

With x~ = (x, 1) a row of a projection's input and its constant, W~ its weight and bias, and ^ for what went through
codes, head by head (CAR-SAM, CVPR 2026, "MAC"):

    q:   D = argmin || Q K^T - X~ (W~ + D) K^^T ||^2 + r ||D||^2
    k:   the same with the parts of q and k changed
    v:   D = argmin || A V - A^ V^ - A^ X~ D ||^2 + r ||D||^2

The first has the normal equation G D B + r D = G W~ E, with G = X~^T X~, B = K^^T K^ and E = (K - K^)^T K^. Divided by
G it is the Sylvester equation of the paper. Both G and B are symmetric: in the bases of their eigenvectors, which also
hold where G has no inverse, each entry of D stands alone,

    D_ij = (G W~ E)_ij / (g_i b_j + r).

Softmax does not see what is added to all logits of a query, so keys count as they differ from their mean.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

__all__ = ["RIDGE", "logit_change", "value_change"]

RIDGE = 0.01  # of the mean of what it is added to


def logit_change(
    inputs: np.ndarray, partner: np.ndarray, error: np.ndarray, weight: np.ndarray, ridge: float = RIDGE
) -> np.ndarray:
    """D of q or k, float64 [in, d].

    Args:
        inputs: G, float64 [in, in]. partner: B [d, d]. error: E [d, d].
        weight: W~ [in, d]. ridge: r, as a share of the mean g_i times the mean b_j.
    """
    g, left = linalg.eigh(inputs)
    b, right = linalg.eigh(partner)
    g, b = np.maximum(g, 0), np.maximum(b, 0)
    added = ridge * g.mean() * b.mean()
    if not added > 0:
        return np.zeros_like(weight)
    turned = g[:, None] * (left.T @ weight @ error @ right) / (np.outer(g, b) + added)
    change: np.ndarray = left @ turned @ right.T
    return change


def value_change(inputs: np.ndarray, target: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """D of v, float64 [in, d].

    Args:
        inputs: (A^ X~)^T A^ X~, float64 [in, in]. target: (A^ X~)^T (A V - A^ V^), float64 [in, d].
        ridge: r, as a share of the mean of the diagonal of ``inputs``.
    """
    added = ridge * float(np.trace(inputs)) / len(inputs)
    if not added > 0:
        return np.zeros_like(target)
    change: np.ndarray = linalg.solve(inputs + added * np.eye(len(inputs)), target, assume_a="pos")
    return change
