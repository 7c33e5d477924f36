# SPDX-License-Identifier: Apache-2.0
"""Codes of a weight: w = scale * code, symmetric, a scale for each output channel or one for all."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.codes.check import check_codes

__all__ = ["WeightCodes"]


@dataclasses.dataclass(frozen=True)
class WeightCodes:
    """Symmetric codes in [-2^(bits-1), 2^(bits-1) - 1].

    ``scale`` has one entry for the whole tensor or one for each output channel.
    """

    scale: tuple[float, ...]
    bits: int

    def __post_init__(self) -> None:
        check_codes(self.bits, *self.scale)

    def _along(self, rank: int, out_axis: int) -> np.ndarray:
        """Scales in float64, as they meet a weight of this rank."""
        scale = np.asarray(self.scale, np.float64)
        if scale.size > 1:
            shape = [1] * rank
            shape[out_axis] = -1
            scale = scale.reshape(shape)
        return scale

    def encode(self, weight: np.ndarray, out_axis: int) -> np.ndarray:
        """Codes of a float weight, int8, same shape; rounds half to even, then clamps."""
        top = 2 ** (self.bits - 1)
        codes: np.ndarray = np.clip(np.rint(weight / self._along(weight.ndim, out_axis)), -top, top - 1)
        return codes.astype(np.int8)

    def decode(self, codes: np.ndarray, out_axis: int) -> np.ndarray:
        """The float32 weight that codes stand for."""
        weight: np.ndarray = codes * self._along(codes.ndim, out_axis)
        return weight.astype(np.float32)
