# SPDX-License-Identifier: Apache-2.0
"""External data: the files beside a model that hold its weights.

A file is named by a path below the model's folder. It may be a link, as in the caches of model hubs, or have several
names: whoever wrote the folder chose what it shows. Names that are absolute or climb out of the folder were chosen by
whoever wrote the model, and are refused, as is all that is no regular file.

What is written here lies in ``MODEL.onnx.data``. Another file that has this name already stays: other models may read
it, and an older model of the same name does until it is replaced. The new data then get a name that holds their hash,
which no other data have.
"""

from __future__ import annotations

import dataclasses
import filecmp
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from samq_onnx.digest import sha256_of
from samq_onnx.errors import UserError

if TYPE_CHECKING:  # loading it would slow down those who only open sessions
    import onnx

__all__ = [
    "Region",
    "data_name",
    "external_tensors",
    "keep_others",
    "linked_weights",
    "region",
    "scopes",
    "tensors",
    "unused_data",
    "weight_files",
]

DIGEST_LENGTH = 16  # of the hash in a name


@dataclasses.dataclass(frozen=True)
class Region:
    """Bytes ``offset`` to ``offset + length`` of a file; ``path`` is the file itself, links resolved."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


Scope: TypeAlias = "onnx.GraphProto | onnx.FunctionProto"


def scopes(*roots: Scope) -> Iterator[Scope]:
    """Graphs and functions, and the graphs inside their nodes."""
    pending = list(roots)
    while pending:
        scope = pending.pop()
        yield scope
        for node in scope.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else attribute.graphs


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model."""
    for scope in scopes(model.graph, *model.functions):
        if hasattr(scope, "initializer"):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors of the model that are kept in other files."""
    return (tensor for tensor in tensors(model) if tensor.data_location == tensor.EXTERNAL)


def region(tensor: onnx.TensorProto, model: Path, length: int | None = None) -> Region:
    """Where the data of an external tensor lie.

    Args:
        model: file that the tensor is of. length: bytes that the tensor needs, None for those it names.

    Raises:
        UserError: there is no such file, or not one to be read, or it does not hold these bytes.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"{model}: weights {tensor.name}"
    if not location or PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
        raise UserError(f"{where} lie in {location!r}, which is no path below the model's folder; export it again")
    path = model.parent / location
    try:
        status = os.stat(path)  # opens nothing, as a pipe would wait
    except FileNotFoundError as error:
        raise UserError(f"{model}: its weights file {path} is missing; keep both files in one folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: its weights file {location!r} cannot be read ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{model}: its weights file {path} is no regular file; copy or export it again")
    offset, named = (_number(entries.get(key), where, key) for key in ("offset", "length"))
    needed = length if length is not None else named or 0
    if named is not None and named != needed:
        raise UserError(f"{where} take {needed} bytes, but {named} are given; export it again")
    if (offset or 0) + needed > status.st_size:
        raise UserError(f"{model}: its weights file {path} is cut short; copy or export it again")
    return Region(Path(os.path.realpath(path)), offset or 0, needed)


def _number(text: str | None, where: str, key: str) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UserError(f"{where} have the {key} {text[:40]!r}; export the model again")
    return int(text)


def weight_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The external data files of a model, links resolved.

    Raises:
        UserError: as `region`.
    """
    return sorted({region(tensor, path).path for tensor in external_tensors(model)})


def linked_weights(path: Path) -> dict[str, mmap.mmap]:
    """The external data files of a model file that links lead out of its folder, by the names that the model has.

    Raises:
        UserError: as `region`.
    """
    import onnx

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except Exception:  # not a model, as others will say
        return {}
    found = {}
    for tensor in external_tensors(model):
        place = region(tensor, path).path
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        if not place.is_relative_to(path.resolve().parent) and location not in found and place.stat().st_size:
            with place.open("rb") as file:
                found[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return found


def data_name(model: str) -> str:
    """Name of the external data file of a model file."""
    return f"{model}.data"


def keep_others(model: Path, folder: Path) -> None:
    """Rename the data of a model that is about to be moved to ``folder``, if other data have their name there.

    Args:
        model: a file that was just written; its data lie beside it, if it has some.
    """
    data = model.with_name(data_name(model.name))
    there = folder / data.name
    if not data.is_file() or not there.exists() or filecmp.cmp(data, there, shallow=False):
        return
    import onnx

    renamed = data_name(f"{model.name}.{sha256_of(data)[:DIGEST_LENGTH]}")
    proto = onnx.load(model, load_external_data=False)
    for tensor in external_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = renamed
    data.rename(data.with_name(renamed))
    onnx.save(proto, model)


def unused_data(model: Path) -> list[Path]:
    """Data files of older models of this name, which the model file does not read."""
    import onnx

    read = weight_files(onnx.load(model, load_external_data=False), model)
    found = [
        path for path in model.parent.iterdir() if path.name.startswith(f"{model.name}.") and path.suffix == ".data"
    ]
    return sorted(path for path in found if Path(os.path.realpath(path)) not in read)
