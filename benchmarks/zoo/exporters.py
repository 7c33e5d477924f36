# SPDX-License-Identifier: Apache-2.0
"""Ways to write a file: PyTorch's two exporters, and what other tools make of that."""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

from samq_onnx.errors import UserError
from zoo.files import Called, File

__all__ = ["EVERYWHERE", "EXPORTERS", "OPSET"]

OPSET, OLD_OPSET = 17, 12
Exporter = Callable[[File, Path], None]


def torchscript(file: File, path: Path, opset: int = OPSET, free: dict[str, dict[int, str]] | None = None) -> None:
    """PyTorch's former exporter."""
    _written(file, path, dynamo=False, opset_version=opset, dynamic_axes=file.free if free is None else free)


def dynamo(file: File, path: Path) -> None:
    """PyTorch's exporter; sizes that are 1 in the sample are fixed, as it fixes them."""
    free = {
        name: [axis for axis in file.free.get(name, {}) if tensor.shape[axis] > 1]
        for name, tensor in file.sample.items()
    }
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free.values())
    dynamic = (shapes,) if isinstance(file.module, Called) else shapes
    _written(file, path, dynamo=True, external_data=False, optimize=True, verbose=False, dynamic_shapes=dynamic)


def _written(file: File, path: Path, **options: Any) -> None:
    names = {"input_names": list(file.sample), "output_names": list(file.outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(file.module), tuple(file.sample.values()), str(path), **names, **options
        )  # fmt: skip


def old_opset(file: File, path: Path) -> None:
    """An opset whose axes are attributes."""
    torchscript(file, path, OLD_OPSET)


def free_batch(file: File, path: Path) -> None:
    """Any number of images."""
    free = {name: {0: "batch", **file.free.get(name, {})} for name in file.sample if file.sample[name].ndim == 4}
    torchscript(file, path, free={**file.free, **free})


def _rewritten(file: File, path: Path, package: str, rewrite: Callable[[Any, Path, Path], None], opset: int) -> None:
    """What a package makes of TorchScript's file."""
    try:
        tool = importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"needs the package {package}") from error
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.onnx"
        torchscript(file, plain, opset)
        rewrite(tool, plain, path)


def simplified(file: File, path: Path) -> None:
    """onnxsim, as it is often run on files of an old opset."""

    def rewrite(tool: Any, plain: Path, path: Path) -> None:
        made, fine = tool.simplify(onnx.load(plain))
        assert fine
        onnx.save(made, path)

    _rewritten(file, path, "onnxsim", rewrite, OLD_OPSET)


def slimmed(file: File, path: Path) -> None:
    """OnnxSlim."""
    _rewritten(file, path, "onnxslim", lambda tool, plain, path: tool.slim(str(plain), str(path)), OPSET)


def halved(file: File, path: Path) -> None:
    """float16 by the converter of ONNX Runtime, inputs and outputs too."""

    def rewrite(tool: Any, plain: Path, path: Path) -> None:
        onnx.save(tool.convert_float_to_float16(onnx.load(plain)), path)

    _rewritten(file, path, "onnxruntime.transformers.float16", rewrite, OPSET)


def _optimised(level: ort.GraphOptimizationLevel) -> Exporter:
    def write(file: File, path: Path) -> None:
        def rewrite(tool: Any, plain: Path, path: Path) -> None:
            options = tool.SessionOptions()
            options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
            options.log_severity_level = 4
            tool.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])

        _rewritten(file, path, "onnxruntime", rewrite, OPSET)

    return write


EVERYWHERE: dict[str, Exporter] = {"torchscript": torchscript, "dynamo": dynamo}
EXPORTERS: dict[str, Exporter] = {
    **EVERYWHERE,
    f"torchscript, opset {OLD_OPSET}": old_opset,
    "torchscript, any number of images": free_batch,
    f"onnxsim, opset {OLD_OPSET}": simplified,
    "OnnxSlim": slimmed,
    "float16": halved,
    "ONNX Runtime, basic": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "ONNX Runtime, extended": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
}
"""Those for all families, and those that rewrite a file, which are tried on one."""
