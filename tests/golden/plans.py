# SPDX-License-Identifier: Apache-2.0
"""The numbers of the plans that every method makes for a small SAM with random weights, on one image of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import samq_onnx
from samq_onnx.methods import METHODS
from samq_onnx.plan_file import plan_to_json

__all__ = ["FILE", "made", "numbers"]

FILE = Path(__file__).with_name("plans.json")
WIDTHS = ("w8a8", "w6a6", "w4a4")
LEARNED = ("adaround", "ahcptq", "brecq", "lsq", "lsq+", "pq-sam-l", "ptq4sam-l", "qdrop", "saq-sam")
SLOW: dict[str, tuple[str, ...]] = {  # method -> widths; what auto chooses of near-equals depends on the machine
    "auto": (),
    "erq": ("w4a4",),
    **dict.fromkeys(LEARNED, ()),
}
DIGITS = 7
SKIPPED = ("metadata", "constants", "kept_float")
SETTINGS = {"samq": {"encoder_learned_bits": "0", "decoder_learned_bits": "0"}}  # learning depends on the machine


def numbers(value: Any) -> Any:
    """A plan with floats of few digits, and lists of them as their mean and largest."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in SKIPPED}
    if isinstance(value, (list, tuple)) and all(isinstance(item, float) for item in value):
        return [numbers(float(np.mean(value))), numbers(float(max(value)))]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def made(model: Path, images: Path) -> dict[str, Any]:
    """Method and widths -> part -> plan."""
    found = {}
    for method in sorted(METHODS):
        for bits in SLOW.get(method, WIDTHS):
            result = samq_onnx.quantize(model, images, method=method, bits=bits, settings=SETTINGS.get(method))
            found[f"{method} {bits}"] = {name: numbers(plan_to_json(plan)) for name, plan in result.plans.items()}
    return found
