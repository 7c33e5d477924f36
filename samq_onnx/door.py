# SPDX-License-Identifier: Apache-2.0
"""The door that every model file of a user comes through: what is behind it is a valid model.

A model is parsed; its tensors are complete; its functions end and stay of a bounded size; ONNX's checker has nothing
against it; and ONNX Runtime loads it, with its types and shapes inferred. The last two are native code, which a hostile
model may crash or keep busy: they run in a process of their own, on the model with zeros for its large weights, so that
it costs little. bfloat16, which ONNX Runtime does not compute on a CPU, is float32 there.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from onnx import TensorProto

from samq_onnx.bfloat16 import has_bfloat16, without_bfloat16
from samq_onnx.errors import UserError
from samq_onnx.external import external_tensors, region, scopes, tensors
from samq_onnx.isolate import isolated
from samq_onnx.probe import MODEL, ZEROS, fault
from samq_onnx.scratch import Scratch

__all__ = ["admit"]

LARGEST_EXPANSION = 100_000  # nodes of a model whose functions are inlined
LARGEST_TENSOR = 1 << 40  # elements
SMALL = 1024  # bytes of a tensor whose values count, such as a shape
DEEPEST_CALL = 100  # functions that call one another
SECONDS = 60  # to load a model without its weights

FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.INT64: "int64_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}  # of all other types: int32_data
KNOWN_TYPES = frozenset(map(int, ir.DataType))
IN_PAIRS = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)

Function: TypeAlias = tuple[str, str, str]  # domain, name, overload


def admit(path: Path) -> onnx.ModelProto:
    """Read a model file; its external data stay where they are.

    Raises:
        UserError: no such file, or no valid model, or ONNX Runtime cannot load it.
    """
    model = _parsed(path)
    _check_tensors(model, path)
    _check_functions(model, path)
    for scope in scopes(model.graph):
        if any(attribute.ref_attr_name for node in scope.node for attribute in node.attribute):
            raise UserError(f"{path}: refers to an attribute of a function outside of functions; export it again")
    reason = _probe(*_light(model, path), str(path))
    if reason is not None:
        raise UserError(f"{path}: {reason}; export it again")
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of an .onnx model")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # protobuf raises its own kinds
        raise UserError(f"{path}: not an ONNX model ({type(error).__name__}); export it again") from error
    if not model.graph.node or not model.graph.output:
        raise UserError(f"{path}: not an ONNX model (it holds no graph); export it again")
    return model


def _bytes(tensor: TensorProto) -> int | None:
    """Size of the data that a tensor of this shape and type has, None where there is no such tensor or size."""
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > LARGEST_TENSOR:
        return None
    if tensor.data_type not in KNOWN_TYPES or tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    return -(-math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)


def _is_complete(tensor: TensorProto) -> bool:
    """Whether a tensor holds as much as its shape and type ask for."""
    size, count = _bytes(tensor), math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING and min(tensor.dims, default=0) >= 0:
        return len(tensor.string_data) == count and not tensor.raw_data
    if size is None:
        return False
    raw = len(tensor.raw_data)  # a copy, of large weights too
    if raw:
        return raw == size
    field = FIELDS.get(tensor.data_type, "int32_data")
    packed = field == "int32_data" and ir.DataType(tensor.data_type).bitwidth < 8
    entries = size if packed else count * (2 if tensor.data_type in IN_PAIRS else 1)
    return len(getattr(tensor, field)) == entries


def _check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors that do not hold what their shape and type ask for."""
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            size = _bytes(tensor)
            complete = size is not None and region(tensor, path, size) is not None
        else:
            complete = _is_complete(tensor)
        if not complete:
            shape = "x".join(map(str, tensor.dims)) or "scalar"
            raise UserError(
                f"{path}: tensor {tensor.name!r} ({shape}, type {tensor.data_type}) does not hold what its shape and "
                "type ask for; export it again"
            )


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, and those that grow out of bounds where they are inlined."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[Function, int] = {}
    open_calls: set[Function] = set()

    def size(scope: onnx.GraphProto | onnx.FunctionProto) -> int:
        total = len(scope.node)
        for node in scope.node:
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                total += called(key)
            for attribute in node.attribute:
                total += sum(map(size, [attribute.g] if attribute.HasField("g") else attribute.graphs))
        return total

    def called(key: Function) -> int:
        if key in open_calls or len(open_calls) > DEEPEST_CALL:
            raise UserError(f"{path}: its function {key[1]} calls itself, or through too many others; export it again")
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size(functions[key])
            open_calls.remove(key)
        return sizes[key]

    total = size(model.graph) + sum(called(key) for key in functions if key not in sizes)
    if max([total, *sizes.values()]) > LARGEST_EXPANSION:
        raise UserError(f"{path}: its functions make {total} nodes; {LARGEST_EXPANSION} are taken; export it without")


def _light(model: onnx.ModelProto, path: Path) -> tuple[bytes, int]:
    """The model with zeros of a file for its large weights, and how long that file has to be."""
    light = onnx.ModelProto()
    light.MergeFrom(onnx.ModelProto(**{f.name: v for f, v in model.ListFields() if f.name != "graph"}))
    light.graph.MergeFrom(
        onnx.GraphProto(**{f.name: v for f, v in model.graph.ListFields() if f.name != "initializer"})
    )
    longest = 0
    for tensor in model.graph.initializer:
        size = _bytes(tensor)
        if size is None or size <= SMALL:
            light.graph.initializer.append(tensor)
            continue
        made = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        made.data_location = TensorProto.EXTERNAL
        for key, value in {"location": ZEROS, "offset": 0, "length": size}.items():
            made.external_data.add(key=key, value=str(value))
        longest = max(longest, size)
    for tensor in external_tensors(light):
        if tensor.external_data[0].value != ZEROS:
            tensor.raw_data = region(tensor, path, _bytes(tensor)).read()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    if has_bfloat16(light):
        without_bfloat16(light)
        longest *= 2
    return light.SerializeToString(), longest


@functools.lru_cache(maxsize=8)
def _probe(light: bytes, zeros: int, name: str) -> str | None:
    """What is wrong with a model, if anything is."""
    with Scratch() as folder:  # here, as the process may not survive
        (folder / MODEL).write_bytes(light)
        with (folder / ZEROS).open("wb") as file:
            file.truncate(zeros)
        return isolated(name, fault, str(folder), seconds=SECONDS)
