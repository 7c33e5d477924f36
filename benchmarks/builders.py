# SPDX-License-Identifier: Apache-2.0
"""The models of the speed benchmark: SAM with random weights in float, and what each quantizer makes of it.

Time and memory do not depend on the values of weights, so no checkpoint is needed and few calibration images do.
Each function writes its file completely or not at all; quantizers take the float file, theirs, and a folder of images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from samq_onnx.api import quantize
from samq_onnx.data import Calibration
from samq_onnx.families import identify
from samq_onnx.files import atomic_path
from samq_onnx.models import read_model

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData

AS_THEY_ARE = {"compensate": "false", "encoder_learned_bits": "0", "decoder_learned_bits": "0"}  # weights are rounded
SEED = 0
RANGE = np.float32(8)  # of activations whose values do not matter
STANDARD_DEVIATION = 0.02  # of parameters that are zero before training, which would be folded away


def export_random(model_type: str, folder: Path) -> None:
    """encoder.onnx, decoder.onnx and decoder_batched.onnx of a model type with random weights."""
    import torch

    from samq_onnx.export import export_sam
    from samq_onnx.export.families import BUILDERS

    torch.manual_seed(SEED)
    sam = BUILDERS[model_type]()
    for parameter in sam.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=STANDARD_DEVIATION)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "random.pth"
        torch.save(sam.state_dict(), checkpoint)
        del sam
        export_sam(checkpoint, model_type, folder, batched=True)


def ort_dynamic(source: Path, output: Path, _: Path) -> None:
    """onnxruntime's dynamic quantization of matrix products: weights ahead, activations on every run."""
    from onnxruntime.quantization import quantize_dynamic

    with atomic_path(output) as temporary:
        quantize_dynamic(source, temporary, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])


def ort_static(source: Path, output: Path, _: Path) -> None:
    """onnxruntime's static quantization with all activations in one made-up range.

    Calibrating ViT-B takes it more than 20 GB, and time does not depend on ranges.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    def made_up(prepared: Path) -> TensorsData:
        graph = onnx.load(prepared).graph
        tensors = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
        return TensorsData(CalibrationMethod.MinMax, dict.fromkeys(tensors, (-RANGE, RANGE)))

    qdq(source, output, made_up)


def qdq(source: Path, output: Path, ranges: Callable[[Path], TensorsData], op_types: Sequence[str] = ()) -> None:
    """What onnxruntime's quantize_static does after calibration: QDQ, weights s8 per channel, activations u8.

    Args:
        ranges: makes those of the tensors of a file. op_types: what is quantized; all that can be, if none is named.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with atomic_path(output) as temporary, tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantizer = QDQQuantizer(
            onnx.load(prepared),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges(prepared),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(op_types or set(QLinearOpsRegistry) | set(QDQRegistry)),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(temporary))


def nncf_int8(source: Path, output: Path, calibration: Path) -> None:
    """NNCF's post-training quantization for transformers, as OpenVINO IR."""
    import nncf
    import openvino

    dataset = nncf.Dataset(_images(source, calibration))
    model = nncf.quantize(openvino.Core().read_model(source), dataset, model_type=nncf.ModelType.TRANSFORMER)
    with atomic_path(output) as temporary:
        openvino.save_model(model, temporary)


def minmax(source: Path, output: Path, calibration: Path) -> None:
    """This package's shortest method at W8A8; time does not depend on ranges."""
    quantize(source, calibration, method="minmax", bits="w8a8").save(output)


def ours(bits: str, source: Path, output: Path, calibration: Path, encoder: Path | None = None) -> None:
    """This package's default recipe without what moves weights, so the same graph; a decoder needs ``encoder``."""
    quantize(source, calibration, bits=bits, settings=AS_THEY_ARE, encoder=encoder).save(output)


def _images(source: Path, calibration: Path) -> list[dict[str, np.ndarray]]:
    part = identify(read_model(source), str(source))
    return [dict(feed) for feed in part.feeds(Calibration(calibration), None, source.stem)]
