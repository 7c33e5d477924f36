# SPDX-License-Identifier: Apache-2.0
"""Uniform codes of an activation: x = scale * (code - zero_point), one scale for the whole tensor."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from samq_onnx.codes.check import check_codes
from samq_onnx.codes.probabilities import PROBABILITY_CODES

__all__ = ["UniformCodes"]

SMALLEST_SCALE = 1e-8


@PROBABILITY_CODES.add("uniform")
@dataclasses.dataclass(frozen=True)
class UniformCodes:
    """Asymmetric codes in [0, 2^bits - 1], of any activation, post-softmax maps among them."""

    kind: ClassVar[str] = "uniform"
    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        check_codes(self.bits, self.scale)
        if not 0 <= self.zero_point < 2**self.bits:
            raise ValueError(f"zero point {self.zero_point} is no code of {self.bits} bits")

    @classmethod
    def of_range(cls, low: float, high: float, bits: int) -> UniformCodes:
        """The codes of a range, widened to hold zero.

        scale = (high - low) / (2^bits - 1), zero_point = -round(low / scale), clamped to the codes.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        top = 2**bits - 1
        scale = float(np.float32(max((high - low) / top, SMALLEST_SCALE)))
        return cls(scale, int(np.clip(-np.rint(low / scale), 0, top)), bits)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes of ``x``, as floats; rounds half to even."""
        codes: np.ndarray = np.clip(np.rint(x / self.scale) + self.zero_point, 0, 2**self.bits - 1)
        return codes

    def fake_quantize(self, x: np.ndarray) -> np.ndarray:
        """``x`` through its codes and back."""
        return (self.encode(x) - self.zero_point) * self.scale

    @property
    def operator(self) -> str:
        return "UniformAttention"

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.bits}

    @property
    def operand(self) -> float:
        return self.scale
