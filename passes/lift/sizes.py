# SPDX-License-Identifier: Apache-2.0
"""Shapes of what is concatenated, padded, expanded and repeated, where some sizes are names.

ONNX's own inference adds no names up, and gives up on shapes that are computed from shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from samq_onnx.passes.lift.dims import Dim, sum_of, times

__all__ = ["concatenated", "expanded", "padded", "tiled"]


def concatenated(shapes: Sequence[Sequence[Dim] | None], axis: int) -> list[Dim] | None:
    """Of inputs with these shapes behind one another; None where the number of axes is not known."""
    known = [shape for shape in shapes if shape is not None]
    if not known or any(len(shape) != len(known[0]) for shape in known) or not known[0]:
        return None
    axis %= len(known[0])
    made = [_agreed([shape[place] for shape in known]) for place in range(len(known[0]))]
    made[axis] = sum_of(shape[axis] for shape in known) if len(known) == len(shapes) else None
    return made


def _agreed(sizes: Sequence[Dim]) -> Dim:
    """One size, of which several may know something: a number rather than a name."""
    numbers = [size for size in sizes if isinstance(size, int)]
    return numbers[0] if numbers else next((size for size in sizes if size is not None), None)


def expanded(shape: Sequence[Dim], target: Sequence[Dim]) -> list[Dim]:
    """Of an array of ``shape`` that is broadcast to ``target``, and ``target`` to it."""
    rank = max(len(shape), len(target))
    pairs = zip(_with_ones(shape, rank), _with_ones(target, rank), strict=True)
    return [_broadcast(one, two) for one, two in pairs]


def _with_ones(shape: Sequence[Dim], rank: int) -> list[Dim]:
    return [*[1] * (rank - len(shape)), *shape]


def _broadcast(one: Dim, two: Dim) -> Dim:
    if one == 1 or one == two:
        return two
    if two == 1:
        return one
    return next((size for size in (one, two) if isinstance(size, int)), None)


def padded(shape: Sequence[Dim], amounts: Sequence[int]) -> list[Dim] | None:
    """Of an array of ``shape`` with so much in front of and behind each axis."""
    rank = len(shape)
    if len(amounts) != 2 * rank or min(amounts, default=0) < 0:
        return None
    return [sum_of((size, before, after)) for size, before, after in zip(shape, amounts, amounts[rank:], strict=False)]


def tiled(shape: Sequence[Dim], repeats: Sequence[Dim]) -> list[Dim] | None:
    """Of an array of ``shape`` that is repeated along each axis."""
    if len(shape) != len(repeats):
        return None
    return [times(size, count) for size, count in zip(shape, repeats, strict=True)]
