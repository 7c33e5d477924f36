# SPDX-License-Identifier: Apache-2.0
"""The whole export: read, build, trace, tidy, write, compare."""

from __future__ import annotations

import hashlib
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import map_state_dict
from samq_onnx.export.families import build, check_type, family_of, found_type
from samq_onnx.export.hugging_face import read_folder
from samq_onnx.export.parity import check
from samq_onnx.export.part import Part
from samq_onnx.export.tidy import tidy
from samq_onnx.export.trace import trace
from samq_onnx.export.write import write
from samq_onnx.files import atomic_folder
from samq_onnx.models import model_bytes
from samq_onnx.pair import PAIR, pair_hash
from samq_onnx.scratch import Scratch

__all__ = ["export"]


def export(
    checkpoint: str | os.PathLike[str],
    model_type: str | None,
    out_dir: str | os.PathLike[str],
    batched: bool = False,
) -> dict[str, Any]:
    """Write ``encoder.onnx`` and ``decoder.onnx`` to a folder, all files or none, and print what happens.

    Args:
        checkpoint: state dict, as ``.safetensors`` or saved by ``torch.save``; or a folder of transformers.
        model_type: a key of `samq_onnx.export.families.BUILDERS`; None: what the tensors tell, or the folder.
        out_dir: made if it does not exist.
        batched: also write ``decoder_batched.onnx``, which takes many prompts at once.

    Returns:
        A report that JSON can hold: model_type, checkpoint, image_size, parameters, seconds, and by file its path,
        bytes (external data included), opset, ir_version, nodes_traced, nodes, max_abs and max_rel.

    Raises:
        UserError: a checkpoint that cannot be read or is not of the type, a package that is missing, an output folder
            that cannot be written to, or a file that does not compute what PyTorch computes.
    """
    started = time.perf_counter()
    if model_type is not None:
        check_type(model_type)
    model_type, model, image_size, parts = _read(Path(checkpoint), model_type, batched)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    files: dict[str, Any] = {}
    pair = pair_hash({"tensors": _tensors_sha256(model), "model_type": model_type, "version": version("samq_onnx")})
    with atomic_folder(out_dir) as folder:
        for part in parts:
            name = f"{part.name}.onnx"
            files[part.name] = {"path": str(Path(out_dir) / name), **_export_part(part, folder / name, pair)}
    return {
        "model_type": model_type,
        "checkpoint": str(checkpoint),
        "image_size": image_size,
        "parameters": parameters,
        "seconds": time.perf_counter() - started,
        "files": files,
    }


def _read(checkpoint: Path, model_type: str | None, batched: bool) -> tuple[str, nn.Module, int, list[Part]]:
    """Model type, model, side of its image, and files."""
    if checkpoint.is_dir():
        if model_type is not None:
            raise UserError(f"{checkpoint}: a folder says itself what it is; leave out --model-type {model_type}")
        if batched:
            raise UserError(f"{checkpoint}: models of transformers have no batched decoder; leave out --batched")
        print(f"reading {checkpoint} ...", flush=True)
        found = read_folder(checkpoint)
        print(f"it is {found.model_type}", flush=True)
        return found.model_type, found.model, found.image_size, found.parts()
    print(f"reading {checkpoint} as {model_type or 'what it is'} ...", flush=True)
    state = map_state_dict(checkpoint)
    if model_type is None:
        model_type = found_type(state, str(checkpoint))
        print(f"it is {model_type}", flush=True)
    model, family = build(model_type, state, str(checkpoint)), family_of(model_type)
    return model_type, model, family.image_size(model), family.parts(model, batched)


def _tensors_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def _export_part(part: Part, path: Path, pair: str) -> dict[str, Any]:
    """Write one part to ``path`` and compare it with PyTorch."""
    print(f"{part.name}: tracing ...", flush=True)
    with Scratch(path.parent.parent) as folder:
        traced = folder / path.name
        trace(part, traced)
        model = onnx.load(traced)
    before = len(model.graph.node)
    model = tidy(model, part)
    onnx.helper.set_model_props(model, {PAIR: pair})
    write(model, path)
    size = model_bytes(path)
    print(f"{part.name}: {before} nodes traced, {len(model.graph.node)} after folding; {size / 1e6:.1f} MB", flush=True)
    facts = {
        "bytes": size,
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "nodes_traced": before,
        "nodes": len(model.graph.node),
    }
    del model
    print(f"{part.name}: comparing with PyTorch ...", flush=True)
    difference = check(path, part)
    print(f"{part.name}: max difference {difference.absolute:.1e}, relative {difference.relative:.1e}", flush=True)
    difference.check(part.name)
    return {**facts, "max_abs": difference.absolute, "max_rel": difference.relative}
