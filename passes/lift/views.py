# SPDX-License-Identifier: Apache-2.0
"""What views make of an array: run on numbers, whatever exporter wrote them, and whether all sizes are known or not.

Sizes that are names (`passes.lift.dims`) are given numbers, the same everywhere, so that a reshape whose target is
computed from shapes in a run can be followed by the shape that it is known to have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import array_of, input_of
from samq_onnx.passes.lift.dims import Dim, Product, parsed

__all__ = ["VIEW_OPS", "Sizes", "dims_of", "pools", "sliced", "viewed"]

VIEW_OPS = frozenset({"Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "Identity"})


class Sizes:
    """Numbers for names of sizes.

    Args:
        given: name -> number. other: the number of all other names.
    """

    def __init__(self, given: dict[str, int], other: int) -> None:
        self._given, self._other = given, other

    def of(self, dim: Dim) -> int:
        """The number that stands for a size."""
        if isinstance(dim, Product):
            return dim.number * math.prod(self._given.get(name, self._other) for name in dim.names)
        return self._other if dim is None else dim

    def shape(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        """The numbers of several."""
        return tuple(map(self.of, dims))


def dims_of(value: ir.Value | None) -> list[Dim] | None:
    """The shape of a value, None where the number of axes is not known."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None if dim.value is None else parsed(dim.value) for dim in value.shape]


def pools(node: ir.Node) -> bool:
    """Whether the node takes the largest of neighbouring places, channel by channel: it keeps what channel a value is
    of, and codes of one scale a channel are pooled as floats are, since quantization keeps their order."""
    return node.op_type == "MaxPool" and not node.domain and len(node.outputs) == 1


def sliced(
    array: np.ndarray, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> np.ndarray:
    """ONNX's Slice."""
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = array.shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)  # where positions are cut off
        first, last = (min(max(at + size if at < 0 else at, low), high) for at in (start, end))
        array = np.take(array, range(first, last, step), axis=axis)
    return array


def viewed(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    """What a view of `VIEW_OPS`, or pooling, makes of an array as its first input, None where that depends on
    activations, as it does where what is pooled is not the same everywhere.

    Args:
        output: of the view, which may have several. sizes: for names in its shape.

    Raises:
        ValueError, IndexError: no array of that shape can be viewed so.
    """
    return VIEWED[view.op_type](view, output, array, sizes)


def _reshape(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    target = array_of(input_of(view, 1))
    if target is not None:
        copies = not view.attributes.get_int("allowzero", 0)
        return array.reshape([array.shape[axis] if size == 0 and copies else size for axis, size in enumerate(target)])
    dims = dims_of(output)
    return None if dims is None else array.reshape(sizes.shape(dims))


def _squeeze(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    axes = array_of(input_of(view, 1))
    return None if axes is None else np.squeeze(array, tuple(axes.reshape(-1).tolist()))


def _unsqueeze(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    axes = array_of(input_of(view, 1))
    return None if axes is None else np.expand_dims(array, tuple(axes.reshape(-1).tolist()))


def _transpose(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray:
    perm = view.attributes.get("perm")
    return array.transpose(None if perm is None else list(perm.as_ints()))


def _slice(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    held = [array_of(value) for value in view.inputs[1:]]
    if any(one is None for one, value in zip(held, view.inputs[1:], strict=True) if value is not None):
        return None
    starts, ends, *rest = (None if one is None else one.reshape(-1).tolist() for one in held)
    axes, steps = [*rest, None, None][:2]
    assert starts is not None and ends is not None
    return sliced(array, starts, ends, axes or range(len(starts)), steps or [1] * len(starts))


def _split(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    axis, given, count = view.attributes.get_int("axis", 0), input_of(view, 1), len(view.outputs)
    parts = array_of(given)
    if given is not None and parts is None:
        return None
    size = array.shape[axis]
    ends = np.cumsum(parts) if parts is not None else np.minimum(np.arange(1, count + 1) * -(-size // count), size)
    if ends[-1] != size:
        raise ValueError("parts do not add up")
    return np.split(array, ends[:-1], axis)[view.outputs.index(output)]


def _gather(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    places = array_of(view.inputs[1])
    return None if places is None else np.asarray(np.take(array, places, axis=view.attributes.get_int("axis", 0)))


def _identity(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray:
    return array


def _max_pool(view: ir.Node, output: ir.Value, array: np.ndarray, sizes: Sizes) -> np.ndarray | None:
    dims = dims_of(output)
    if dims is None or array.ndim < 3 or not array.size:
        return None
    one = array[(slice(None), slice(None), *[slice(1)] * (array.ndim - 2))]
    return np.broadcast_to(one, (*array.shape[:2], *sizes.shape(dims[2:]))) if (array == one).all() else None


VIEWED: dict[str, Callable[[ir.Node, ir.Value, np.ndarray, Sizes], np.ndarray | None]] = {
    "Gather": _gather,
    "Identity": _identity,
    "MaxPool": _max_pool,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
