# SPDX-License-Identifier: Apache-2.0
"""Codes of an activation with a scale and a zero point for each channel, equal within a group (CAG, AHCPTQ).

No target has them: a product over channels of several scales is no integer product. They are the reference for what is
folded into norms, and for how much is lost where it cannot be.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["ChannelGroupCodes"]


@dataclasses.dataclass(frozen=True)
class ChannelGroupCodes:
    """Asymmetric codes in [0, 2^bits - 1] along the last axis; zero points may lie outside of them."""

    scale: tuple[float, ...]
    zero_point: tuple[float, ...]
    bits: int

    def fake_quantize(self, x: np.ndarray) -> np.ndarray:
        """``x`` [..., channels] through its codes and back."""
        scale, zero = np.array(self.scale), np.array(self.zero_point)
        made: np.ndarray = (np.clip(np.rint(x / scale) + zero, 0, 2**self.bits - 1) - zero) * scale
        return made
