# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of a file: their names, types and shapes, and arrays made to fit them.

Inputs are fed as the file wants them: each in its own type, and batches of a fixed size filled by repetition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.errors import UserError

__all__ = [
    "NUMBERS",
    "Port",
    "described",
    "fit",
    "graph_inputs",
    "graph_outputs",
    "is_features",
    "random_input",
    "session_inputs",
    "session_outputs",
]

NUMBERS = frozenset(
    {"float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
)
OTHER_NAMES = {"float": "float32", "double": "float64"}  # of types, where they are not numpy's


class Port(NamedTuple):
    """An input or output.

    Attributes:
        name: of the value.
        dtype: numpy's name of its type, or ONNX Runtime's of one that numpy has not.
        shape: an int for each fixed side, a name or None for each other; None if not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        sides = "of unknown shape" if self.shape is None else f"[{', '.join(str(side or '?') for side in self.shape)}]"
        return f"{self.name} {self.dtype} {sides}"

    def side(self, axis: int) -> int | None:
        """A side of the shape if it is there and fixed."""
        side = self.shape[axis] if self.shape is not None and -len(self.shape) <= axis < len(self.shape) else None
        return side if isinstance(side, int) else None


def described(ports: Iterable[Port]) -> str:
    """Ports in words."""
    return ", ".join(map(str, ports)) or "nothing"


def graph_inputs(model: ir.Model) -> tuple[Port, ...]:
    """Inputs of a graph that have no value of their own."""
    return tuple(_graph_port(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def graph_outputs(model: ir.Model) -> tuple[Port, ...]:
    """Outputs of a graph."""
    return tuple(map(_graph_port, model.graph.outputs))


def _graph_port(value: ir.Value) -> Port:
    shape = None if value.shape is None else tuple(s if isinstance(s, int) else s.value for s in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return Port(value.name or "", OTHER_NAMES.get(dtype, dtype), shape)


def session_inputs(session: ort.InferenceSession) -> tuple[Port, ...]:
    """Inputs of an open session."""
    return tuple(map(_session_port, session.get_inputs()))


def session_outputs(session: ort.InferenceSession) -> tuple[Port, ...]:
    """Outputs of an open session."""
    return tuple(map(_session_port, session.get_outputs()))


def _session_port(value: ort.NodeArg) -> Port:
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return Port(value.name, OTHER_NAMES.get(dtype, dtype), tuple(value.shape) or None)


def is_features(port: Port) -> bool:
    """Whether it is a map of numbers, or several."""
    return port.dtype.startswith("float") and port.shape is not None and len(port.shape) in (4, 5)


def fit(port: Port, array: np.ndarray) -> np.ndarray:
    """An array in the type and the batch that an input has.

    Raises:
        UserError: its type cannot hold the numbers, or its shape is another.
    """
    if port.dtype not in NUMBERS and port.dtype != "bool":
        raise UserError(f"input {port.name} is of type {port.dtype}; numbers are wanted")
    dtype = np.dtype(port.dtype)
    if array.dtype != dtype:
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype) if dtype.kind == "f" else None
        array = np.rint(array) if dtype.kind in "iu" else array
        if limits is not None and array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            raise UserError(f"{port.name}: numbers beyond {limits.max:g} do not fit into {dtype}; give smaller ones")
        array = array.astype(dtype)
    batch = port.side(0)
    if port.shape is not None and len(port.shape) != array.ndim:
        raise UserError(f"{port.name}: the model takes {port}, got {list(array.shape)}")
    if batch is not None and len(array) == 1 < batch:
        array = np.repeat(array, batch, axis=0)
    if any(port.side(axis) not in (None, side) for axis, side in enumerate(array.shape)):
        raise UserError(f"{port.name}: the model takes {port}, got {list(array.shape)}")
    return array


def random_input(port: Port, random: np.random.Generator) -> np.ndarray:
    """Random numbers of an input's type and shape, of which free sides become 1.

    Raises:
        UserError: it has no shape, or a type that has no numbers.
    """
    if port.shape is None or port.dtype not in NUMBERS | {"bool"}:
        raise UserError(f"input {port} has no shape or no number type; export the model with typed inputs")
    shape = [side if isinstance(side, int) else 1 for side in port.shape]
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)  # 0 and 1 are valid indices almost everywhere
