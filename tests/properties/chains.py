# SPDX-License-Identifier: Apache-2.0
"""Random chains of views, and of what stands between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st

__all__ = ["ROW_VIEWS", "VIEWS", "Chain"]

LARGEST = 4096  # elements of a value
DEEPEST = 5  # axes
VIEWS = ("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Pad", "Flatten", "Gather")
ROW_VIEWS = ("Reshape", "Transpose", "Slice", "Pad")


class Chain:
    """Nodes, each of which reads the one before, on an input ``x``.

    Args:
        draw: hypothesis's; decides what is added.
        keep_rows: views leave the last axis as it is.
    """

    def __init__(
        self, draw: st.DrawFn, shape: Sequence[int], dtype: int = onnx.TensorProto.FLOAT, *, keep_rows: bool = False
    ) -> None:
        self._draw, self._keep_rows = draw, keep_rows
        self._from_the_end = draw(st.booleans())  # axes of slices
        self.dtype, self.shape = dtype, tuple(shape)
        self._input = onnx.helper.make_tensor_value_info("x", dtype, shape)
        self.nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._values: list[onnx.ValueInfoProto] = []

    def add(
        self,
        kind: str,
        *constants: object,
        shape: Sequence[int] | None = None,
        dtype: int | None = None,
        domain: str = "",
        **attributes: object,
    ) -> None:
        """A node with constants as its further inputs; shape and type of what it makes, where they are other ones."""
        number = len(self.nodes)
        names = [f"c{number}_{place}" for place in range(len(constants))]
        self._constants += [
            onnx.numpy_helper.from_array(np.asarray(constant), name)
            for name, constant in zip(names, constants, strict=True)
        ]
        source = self.nodes[-1].output[0] if self.nodes else "x"
        node = onnx.helper.make_node(kind, [source, *names], [f"v{number}"], f"n{number}", domain=domain, **attributes)
        self.nodes.append(node)
        self.shape = self.shape if shape is None else tuple(shape)
        self.dtype = self.dtype if dtype is None else dtype
        self._values.append(onnx.helper.make_tensor_value_info(f"v{number}", self.dtype, self.shape))

    def quantize(self, scale: float, zero_point: int, top: int) -> None:
        """Codes of what was float; up to ``top``, below 255 by a Clip."""
        self.add("QuantizeLinear", np.float32(scale), np.uint8(zero_point), dtype=onnx.TensorProto.UINT8)
        if top < 255:
            self.add("Clip", np.uint8(0), np.uint8(top))

    def views(self, kinds: Sequence[str], most: int, least: int = 0) -> None:
        """So many views of these kinds."""
        for _ in range(self._draw(st.integers(least, most))):
            getattr(self, f"_{self._draw(st.sampled_from(kinds)).lower()}")()

    def _free(self) -> int:
        """How many axes views may touch."""
        return len(self.shape) - self._keep_rows

    def _ints(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def _reshape(self) -> None:
        kept = self.shape[self._free() :]
        rank = self._ints(1, DEEPEST - len(kept))
        dims = [1] * rank
        left = math.prod(self.shape[: self._free()])
        for prime in (2, 3, 5, 7):
            while left % prime == 0:
                left //= prime
                dims[self._ints(0, rank - 1)] *= prime
        dims[self._ints(0, rank - 1)] *= left
        given = [*dims, *kept]
        if self._draw(st.booleans()):
            given[self._ints(0, rank - 1)] = -1
        self.add("Reshape", np.array(given, np.int64), shape=[*dims, *kept])

    def _transpose(self) -> None:
        free = self._free()
        perm = [*self._draw(st.permutations(range(free))), *range(free, len(self.shape))]
        self.add("Transpose", shape=[self.shape[axis] for axis in perm], perm=perm)

    def _slice(self) -> None:
        if not self._free():
            return
        axes = self._draw(st.lists(st.integers(0, self._free() - 1), min_size=1, max_size=2, unique=True))
        shape, starts, ends, steps = list(self.shape), [], [], []
        for axis in axes:
            size = self.shape[axis]
            first = self._ints(0, size - 1)
            step = self._draw(st.sampled_from([1, 1, 1, 2, -1, -2]))
            last = self._ints(first, size - 1) if step > 0 else self._ints(0, first)
            shape[axis] = abs(last - first) // abs(step) + 1
            end = last + (1 if step > 0 else -1)
            if end < 0:
                end = -size - 1  # from the front, -1 is the last
            elif end >= size and self._draw(st.booleans()):
                end = 2**63 - 1
            starts.append(first - size if self._draw(st.booleans()) else first)
            ends.append(end)
            steps.append(step)
        named = [axis - len(shape) if self._from_the_end else axis for axis in axes]
        arrays = [np.array(values, np.int64) for values in (starts, ends, named, steps)]
        self.add("Slice", *arrays, shape=shape)

    def _squeeze(self) -> None:
        ones = [axis for axis, size in enumerate(self.shape) if size == 1]
        if len(self.shape) > 1 and ones:
            axis = self._draw(st.sampled_from(ones))
            shape = [size for place, size in enumerate(self.shape) if place != axis]
            self.add("Squeeze", np.array([axis], np.int64), shape=shape)

    def _unsqueeze(self) -> None:
        if len(self.shape) < DEEPEST:
            axis = self._ints(0, len(self.shape))
            self.add("Unsqueeze", np.array([axis], np.int64), shape=[*self.shape[:axis], 1, *self.shape[axis:]])

    def _pad(self) -> None:
        free, rank = self._free(), len(self.shape)
        pads = [self._ints(0, 2) if axis % rank < free else 0 for axis in range(2 * rank)]
        shape = [size + pads[axis] + pads[rank + axis] for axis, size in enumerate(self.shape)]
        if math.prod(shape) > LARGEST:
            return
        if self.dtype == onnx.TensorProto.UINT8:
            fill: np.generic = np.uint8(self._ints(0, 15))
        else:
            fill = np.float32(self._draw(st.sampled_from([0.0, 0.0, 0.0, 0.7])))
        self.add("Pad", np.array(pads, np.int64), fill, shape=shape)

    def _flatten(self) -> None:
        axis = self._ints(0, len(self.shape))
        shape = [math.prod(self.shape[:axis]), math.prod(self.shape[axis:])]
        self.add("Flatten", shape=shape, axis=axis)

    def _gather(self) -> None:
        axis = self._ints(0, len(self.shape) - 1)
        size = self.shape[axis]
        indices = self._draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=size))
        self.add(
            "Gather",
            np.array(indices, np.int64),
            shape=[*self.shape[:axis], len(indices), *self.shape[axis + 1 :]],
            axis=axis,
        )

    def model(self) -> ir.Model:
        """The chain, whose last value is the output ``y``; shapes are those that ONNX infers, where it can."""
        if not self.nodes:
            self.add("Identity")
        self.nodes[-1].output[0] = self._values[-1].name = "y"
        *between, y = self._values
        graph = onnx.helper.make_graph(self.nodes, "chain", [self._input], [y], self._constants, value_info=between)
        opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("samq", 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
