# SPDX-License-Identifier: Apache-2.0
"""A factor and an offset for each output channel of a quantized linear, which bring it nearest to the float one.

With y the float output, y^ the quantized one and means over rows, a = cov(y^, y) / var(y^) and b = mean(y) - a mean(y^)
minimise the mean of (a y^ + b - y)^2 (bias correction, Nagel et al. 2019, section 4.2, has a = 1; SandwichQuant and
QwT-v2 repair both). The factor goes into the scale of the channel's weight codes, the offset into the bias: codes stay,
and the model computes no more than before.

Both follow from the second moments of the linear's input; no output is looked at. A channel without bias has no offset,
and its moments are not centred.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.reconstruct.moments import InputMoments

__all__ = ["LARGEST_FACTOR", "SMALLEST_FACTOR", "Repair", "repair"]

SMALLEST_FACTOR, LARGEST_FACTOR = 0.5, 2.0  # a channel that wants another one has lost its signal: it stays
DOUBT = 1e-4  # share of a channel's mean square below which its variance is what rounding left of it


@dataclasses.dataclass(frozen=True)
class Repair:
    """What repairs the output channels of a linear.

    Attributes:
        factor: of the weight scales, float64 [out], 1 where a channel is left alone.
        left: how many were.
    """

    factor: np.ndarray
    left: int
    _mean: np.ndarray
    _mean_given: np.ndarray

    def bias(self, factor: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The bias, float64 [out], that goes with factors [out], for the ``bias`` of the float linear."""
        made: np.ndarray = bias + self._mean - factor * self._mean_given
        return made


def repair(weight: np.ndarray, rounded: np.ndarray, moments: InputMoments, *, centred: bool) -> Repair:
    """The repair of a linear.

    Args:
        weight: float [in, out]. rounded: what the weight codes stand for, [in, out].
        moments: of the input. centred: there is a bias, for the offset.
    """
    weight, rounded = weight.astype(np.float64), rounded.astype(np.float64)
    mean, mean_given = moments.mean_float @ weight, moments.mean_quantized @ rounded
    square = np.einsum("io,io->o", rounded, moments.quantized @ rounded) / moments.rows
    product = np.einsum("io,io->o", rounded, moments.cross @ weight) / moments.rows
    variance, covariance = square, product
    if centred:
        variance, covariance = square - mean_given**2, product - mean_given * mean
    known = (variance > DOUBT * square) & (variance > 0)
    factor = np.divide(covariance, variance, out=np.ones_like(variance), where=known)
    fits = known & (factor >= SMALLEST_FACTOR) & (factor <= LARGEST_FACTOR)
    return Repair(np.where(fits, factor, 1.0), int((~fits).sum()), moments.unit * mean, moments.unit * mean_given)
