# SPDX-License-Identifier: Apache-2.0
"""Weights beside a model file, in ``MODEL.onnx.data``, where protobuf cannot hold them.

Another file that has this name already stays: other models may read it, and an older model of the same name does until
it is replaced. The new data then get a name that holds their hash, which no other data have.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

import onnx

from samq_onnx.digest import sha256_of

__all__ = ["data_name", "keep_others"]

DIGEST_LENGTH = 16


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
    renamed = data_name(f"{model.name}.{sha256_of(data)[:DIGEST_LENGTH]}")
    proto = onnx.load(model, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = renamed
    data.rename(data.with_name(renamed))
    onnx.save(proto, model)
