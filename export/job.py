# SPDX-License-Identifier: Apache-2.0
"""The whole export: read, build, trace, tidy, write, compare."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import map_state_dict
from samq_onnx.export.families import BUILDERS, build
from samq_onnx.export.parity import Difference, check_decoder, check_encoder
from samq_onnx.export.parts import PROMPTS, Part, batched_decoder_part, decoder_part, encoder_part
from samq_onnx.export.sam import Sam
from samq_onnx.export.tidy import tidy
from samq_onnx.export.trace import trace
from samq_onnx.export.write import write
from samq_onnx.files import atomic_path

__all__ = ["export"]


def export(
    checkpoint: str | os.PathLike[str],
    model_type: str,
    out_dir: str | os.PathLike[str],
    batched: bool = False,
) -> dict[str, Any]:
    """Write ``encoder.onnx`` and ``decoder.onnx`` to a folder, all files or none, and print what happens.

    Args:
        checkpoint: state dict, as ``.safetensors`` or saved by ``torch.save``.
        model_type: a key of `samq_onnx.export.families.BUILDERS`.
        out_dir: made if it does not exist.
        batched: also write ``decoder_batched.onnx``, which takes many prompts at once.

    Returns:
        A report that JSON can hold: model_type, checkpoint, image_size, parameters, seconds, and by file its path,
        bytes (external data included), opset, ir_version, nodes_traced, nodes, max_abs and max_rel.

    Raises:
        UserError: a checkpoint that cannot be read or is not of the type, an output folder that cannot be written
            to, or a file that does not compute what PyTorch computes.
    """
    started = time.perf_counter()
    if model_type not in BUILDERS:
        raise UserError(f"{model_type}: no such model type; choose one of {', '.join(BUILDERS)}")
    print(f"reading {checkpoint} as {model_type} ...", flush=True)
    sam = build(model_type, map_state_dict(checkpoint), str(checkpoint))
    parameters = sum(parameter.numel() for parameter in sam.parameters())
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for part, check in _parts(sam, batched):
            target = Path(out_dir) / f"{part.name}.onnx"
            scratch = stack.enter_context(atomic_path(target))
            files[part.name] = {"path": str(target), **_export_part(part, scratch, check)}
    return {
        "model_type": model_type,
        "checkpoint": str(checkpoint),
        "image_size": sam.image_encoder.img_size,
        "parameters": parameters,
        "seconds": time.perf_counter() - started,
        "files": files,
    }


def _parts(sam: Sam, batched: bool) -> list[tuple[Part, Callable[[Path], Difference]]]:
    parts: list[tuple[Part, Callable[[Path], Difference]]] = [
        (encoder_part(sam), lambda path: check_encoder(path, sam)),
        (decoder_part(sam), lambda path: check_decoder(path, sam, 1)),
    ]
    if batched:
        parts.append((batched_decoder_part(sam), lambda path: check_decoder(path, sam, PROMPTS)))
    return parts


def _export_part(part: Part, path: Path, check: Callable[[Path], Difference]) -> dict[str, Any]:
    """Write one part to ``path`` (alone in its folder) and compare it with PyTorch."""
    print(f"{part.name}: tracing ...", flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent.parent, prefix=f".{part.name}.") as folder:
        traced = Path(folder) / path.name
        trace(part, traced)
        model = onnx.load(traced)
    before = len(model.graph.node)
    model = tidy(model, part)
    write(model, path)
    size = sum(file.stat().st_size for file in path.parent.iterdir())
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
    difference = check(path)
    print(f"{part.name}: max difference {difference.absolute:.1e}, relative {difference.relative:.1e}", flush=True)
    difference.check(part.name)
    return {**facts, "max_abs": difference.absolute, "max_rel": difference.relative}
