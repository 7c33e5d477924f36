# SPDX-License-Identifier: Apache-2.0
"""Round the weights of a linear so that its output, on quantized inputs, stays near the float output.

With x the float and x^ the quantized input, three closed forms follow each other:

1. the weights that best map x^ - mean to the centred float output, W' = (C^ + r I)^-1 (C_x W + r W), where C^ is the
   covariance of x^, C_x the cross covariance of x^ and x, and r a ridge that keeps W' near W;
2. rounding one input channel after the other, the error of each made good by the channels that follow (GPTQ,
   Frantar et al. 2023, with the Cholesky factor of the inverse of C^);
3. the bias that makes the mean output right.

Statistics only: no gradient, no iteration over data.
"""

from __future__ import annotations

import contextlib

import numpy as np
from scipy import linalg

from samq_onnx.reconstruct.moments import InputMoments

__all__ = ["DAMPING", "RIDGE", "compensate"]

DAMPING = 0.01  # of the mean variance, added to the diagonal before the inverse
RIDGE = 0.1  # of the mean variance: how strongly W' is held to W
SMALLEST_VARIANCE = 1e-12  # of squared units of the moments
DOUBTS = 2.0 ** -np.arange(23, -4, -3.0)  # of sums of squares in float32, in as many directions as there are channels
BLOCK = 32  # input channels rounded before their joint correction is applied to the rest


def _round_in_order(weight: np.ndarray, scale: np.ndarray, bits: int, covariance: np.ndarray) -> np.ndarray:
    """GPTQ on ``weight`` [in, out] with per-output ``scale`` [out] (or one entry); returns dequantized weights."""
    width = len(covariance)
    order = np.argsort(-np.diag(covariance))
    factor = _inverse_factor(covariance[np.ix_(order, order)])
    remaining = weight[order]
    rounded = np.empty_like(remaining)
    top = 2 ** (bits - 1)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        errors = np.empty((end - start, weight.shape[1]))
        for row in range(start, end):
            current = remaining[row]
            rounded[row] = np.clip(np.rint(current / scale), -top, top - 1) * scale
            errors[row - start] = (current - rounded[row]) / factor[row, row]
            remaining[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - start])
        remaining[end:] -= factor[start:end, end:].T @ errors
    result = np.empty_like(rounded)
    result[order] = rounded
    return result


def _inverse_factor(matrix: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U = matrix^-1.

    With the order of rows and columns reversed, matrix is L L^T; reversed again, L is the upper triangular R of
    matrix = R R^T, and U is R^-1. That takes a quarter of the time of an inverse and its factor.
    """
    lower = linalg.cholesky(matrix[::-1, ::-1], lower=True, check_finite=False)
    inverse, failed = linalg.lapack.dtrtri(lower, lower=True, overwrite_c=True)
    if failed:
        raise linalg.LinAlgError("a triangular matrix that is singular")
    upper: np.ndarray = inverse[::-1, ::-1]
    return upper


def _damping(covariance: np.ndarray, least: float, squares: np.ndarray) -> np.ndarray:
    """What to add to the diagonal [in], half of which makes the matrix positive definite.

    Where channels hardly vary, their covariance is what rounding left of the difference of two large numbers, the mean
    ``squares`` [in] among them.
    """
    for doubt in DOUBTS:
        damping = np.maximum(least, doubt * len(squares) * squares)
        with contextlib.suppress(linalg.LinAlgError):
            linalg.cholesky(_with_diagonal(covariance, damping / 2), overwrite_a=True, check_finite=False)
            break
    return damping


def _with_diagonal(matrix: np.ndarray, added: np.ndarray) -> np.ndarray:
    """A copy with something added to its diagonal."""
    made = matrix.copy()
    made[np.diag_indices_from(made)] += added
    return made


def compensate(
    weight: np.ndarray,
    bias: np.ndarray | None,
    scale: np.ndarray,
    bits: int,
    moments: InputMoments,
    *,
    damping: float = DAMPING,
    ridge: float = RIDGE,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights on the grid of ``scale`` and the bias that go with them.

    Args:
        weight: float [in, out]. bias: float [out] or None (then the mean is left alone).
        scale: weight scale per output channel [out], or one entry. bits: width of the weight codes.
        moments: of the input. damping, ridge: shares of the mean variance, see `DAMPING` and `RIDGE`.

    Returns:
        weight [in, out], every entry a multiple of its scale, and the bias.
    """
    weight = weight.astype(np.float64)
    mean, mean_quantized = moments.mean_float, moments.mean_quantized
    covariance = moments.quantized / moments.rows
    cross = moments.cross / moments.rows
    squares = np.diag(covariance)
    if bias is not None:
        covariance = covariance - np.outer(mean_quantized, mean_quantized)
        cross = cross - np.outer(mean_quantized, mean)
    variance = max(float(np.mean(np.diag(covariance))), SMALLEST_VARIANCE)
    added = _damping(covariance, damping * variance, squares)
    held = np.maximum(ridge * variance, added)
    factor = linalg.cho_factor(_with_diagonal(covariance, held), overwrite_a=True, check_finite=False)
    target = linalg.cho_solve(factor, cross @ weight + held[:, None] * weight, overwrite_b=True, check_finite=False)
    rounded = _round_in_order(target, scale.astype(np.float64), bits, _with_diagonal(covariance, added))
    if bias is not None:
        bias = bias + moments.unit * (mean @ weight - mean_quantized @ rounded)
    return rounded, bias
