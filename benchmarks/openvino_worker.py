# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's side of `samq_onnx.worker`: openvino_worker.py f32|bf16 MODEL FEED [THREADS]."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from samq_onnx.errors import UserError
from samq_onnx.worker import serve


def open_model(precision: str, model: str, threads: int | None) -> Callable[[Mapping[str, np.ndarray]], object]:
    """Compile an ONNX file or OpenVINO IR for this processor, float layers in ``precision``."""
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("this processor has no bf16")
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda feed: request.infer(dict(feed))


if __name__ == "__main__":
    sys.exit(serve(functools.partial(open_model, sys.argv[1]), sys.argv[2:]))
