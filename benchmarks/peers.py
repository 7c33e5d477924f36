# SPDX-License-Identifier: Apache-2.0
"""Other quantizers on an encoder and a decoder, for comparisons of accuracy: 8 bits, QDQ.

They are given what ours is given: the images of the folder, and for the decoder prompts on what its quantized encoder
makes of them. ONNX Runtime's defaults quantize every operator that they know, the arithmetic of coordinates and masks
in a decoder included. That is one row. In the others only products are quantized (convolutions and matrix products), as
ours and as its documentation advises for transformers.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import builders
import numpy as np

from samq_onnx.api import DECODER, ENCODER
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import identify
from samq_onnx.feeds import Feed, Selection
from samq_onnx.models import read_model

__all__ = ["PEERS", "quantize_by"]

PROMPTS = 128  # of a decoder, as many as ours sees
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NNCF_WORKER = Path(__file__).with_name("nncf_worker.py")

Build = Callable[[Path, Path, Sequence[Feed]], None]
"""Makes a quantized file of a float one and of inputs."""


def _static(method: str, op_types: Sequence[str], source: Path, output: Path, feeds: Sequence[Feed]) -> None:
    """onnxruntime's static quantization, its histograms fed input by input, which keeps memory flat."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    def ranges(prepared: Path) -> Any:
        augmented = prepared.with_name("augmented.onnx")
        calibrator = create_calibrator(
            prepared, op_types, augmented_model_path=augmented, calibrate_method=CalibrationMethod[method]
        )
        for feed in feeds:
            calibrator.collect_data(_Reader(feed))
        return calibrator.compute_data()

    builders.qdq(source, output, ranges, op_types)


class _Reader:
    """One input, as onnxruntime reads inputs."""

    def __init__(self, feed: Feed) -> None:
        self._left: list[dict[str, np.ndarray]] = [dict(feed)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def _dynamic(source: Path, output: Path, _: Sequence[Feed]) -> None:
    builders.ort_dynamic(source, output, source.parent)


def _nncf(python: str, source: Path, output: Path, feeds: Sequence[Feed]) -> None:
    """NNCF for transformers, by an interpreter that has it."""
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        for number, feed in enumerate(feeds):
            np.savez(Path(folder) / f"{number:06}.npz", **feed)
        command = [python, str(NNCF_WORKER), str(source), folder, str(output)]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise UserError(f"NNCF: {lines[-1]}")


PEERS: dict[str, Build | None] = {
    "ort-static-default": functools.partial(_static, "MinMax", ()),
    "ort-static-minmax": functools.partial(_static, "MinMax", PRODUCTS),
    "ort-static-percentile": functools.partial(_static, "Percentile", PRODUCTS),
    "ort-static-entropy": functools.partial(_static, "Entropy", PRODUCTS),
    "ort-dynamic": _dynamic,
    "nncf": None,  # wants an interpreter
}


def quantize_by(peer: str, source: Path, output: Path, calibration: Path, python: str = sys.executable) -> None:
    """Quantize the encoder.onnx and decoder.onnx of a folder by another quantizer.

    Args:
        peer: of `PEERS`. output: folder. calibration: folder of images. python: an interpreter that has NNCF.

    Raises:
        UserError: it is not installed, or failed.
    """
    build = PEERS[peer] or functools.partial(_nncf, python)
    output.mkdir(parents=True, exist_ok=True)
    for name, encoder in ((ENCODER, None), (DECODER, output / ENCODER)):
        part = identify(read_model(source / name), str(source / name))
        feeds = part.feeds(Calibration(calibration), encoder, name)
        chosen = np.random.default_rng(0).permutation(len(feeds))[:PROMPTS]
        build(source / name, output / name, Selection(feeds, sorted(chosen.tolist())))
