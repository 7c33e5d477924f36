# SPDX-License-Identifier: Apache-2.0
"""Constants that are added to the scores of an attention, as one bias for the entries of the flattened batch.

    TinyViT, Swin: [heads, M, N];   masks of shifted windows: [windows, 1, M, N];   both: [windows, heads, M, N]

The bias is kept as [G, M, N] with the smallest G whose repetition gives all entries. A constant that is 0 is none.
Adding the same number to all keys of a query changes nothing, so each row is moved to end at 0.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import known_shape

__all__ = ["LARGEST_REACH", "Constant", "Refusal", "bias_of"]

LARGEST_REACH = 256.0  # from the lowest to the highest number: codes of 16 bits are then 1/256 apart


class Refusal(Exception):
    """Why a softmax is no attention that can be outlined."""


@dataclasses.dataclass
class Constant:
    """A summand of scores.

    Attributes:
        array: as added. factor: that multiplies it on the way to the softmax. shape: of the sum, if known.
    """

    array: np.ndarray
    factor: float
    shape: tuple[int, ...] | None


def bias_of(constants: list[Constant], scores: ir.Value, reshaped: bool) -> np.ndarray | None:
    """The sum of constants for scores [..., M, N], float32 [G, M, N], or None where there is nothing to add.

    Args:
        reshaped: whether there are reshapes on the way.

    Raises:
        Refusal: it is not finite, reaches too far, or cannot be laid out because shapes are not known.
    """
    constants = [one for one in constants if one.array.any()]
    if not constants:
        return None
    total = sum(_laid_out(one, scores, reshaped) for one in constants)
    assert isinstance(total, np.ndarray)
    if not np.isfinite(total).all():
        raise Refusal("a mask that is not finite is added to the scores")
    total = total - total.max(axis=-1, keepdims=True)
    if -total.min() > LARGEST_REACH:
        raise Refusal(f"a constant mask that reaches further than {LARGEST_REACH:g} is added to the scores")
    return _period(total.astype(np.float32)) if total.any() else None


def _laid_out(constant: Constant, scores: ir.Value, reshaped: bool) -> np.ndarray:
    """A constant as float64 [B, M, N], or less entries of which B are repetitions."""
    array = constant.array.astype(np.float64) * constant.factor
    shape = known_shape(scores)
    if constant.shape is not None and shape is not None:
        if math.prod(constant.shape) != math.prod(shape):
            raise Refusal("a constant is added to scores of another size")
        return np.broadcast_to(array, constant.shape).reshape(-1, *shape[-2:])
    sides = list(scores.shape) if scores.shape is not None else []
    known = [side if isinstance(side, int) else None for side in sides]
    leading = known[:-2]
    free = next((place for place in range(len(leading) - 1, -1, -1) if leading[place] is None), -1)
    outer = array.shape[: max(0, array.ndim - (len(known) - free - 1))]
    if reshaped or len(known) < 3 or None in known[-2:] or any(side != 1 for side in outer):
        raise Refusal("a constant is added to scores of unknown shape")
    inner = [side for side in known[free + 1 :] if side is not None]  # all of them
    return np.broadcast_to(array.reshape(array.shape[len(outer) :]), inner).reshape(-1, *known[-2:])


def _period(bias: np.ndarray) -> np.ndarray:
    """The shortest block of entries whose repetition gives all."""
    count = len(bias)
    for length in range(1, count):
        if count % length == 0 and (bias.reshape(-1, length, *bias.shape[1:]) == bias[:length]).all():
            return np.ascontiguousarray(bias[:length])
    return np.ascontiguousarray(bias)
