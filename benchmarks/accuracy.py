# SPDX-License-Identifier: Apache-2.0
"""Accuracy of SAM-Nano by width, method and prompt, with and without planted bimodal keys.

    python benchmarks/accuracy.py --calib DATA/calib --data DATA/val -o FOLDER

Planted keys: +8 or -8, 46 % of them +8 as PTQ4SAM reports for SAM-B, is added to every key bias. Attention does
not change when all keys move together, so the float model computes the same function.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import assets
from samq_onnx.api import DECODER, ENCODER, quantize
from samq_onnx.command import main_guard
from samq_onnx.evaluate import evaluate
from samq_onnx.files import atomic_path, write_json
from samq_onnx.methods import METHODS
from samq_onnx.models import load_model
from samq_onnx.passes.fold.edit import shift_outputs
from samq_onnx.passes.lift import lift, simplify

OFFSET = 8.0
POSITIVE_SHARE = 0.46


def plant_bimodal_keys(source: Path, output: Path, seed: int = 0) -> None:
    """Write ``source`` with +-8 added to every key bias; the attention nodes are left as exported."""
    random = np.random.default_rng(seed)
    model = load_model(source)
    simplify(model)
    for site in lift(model.clone()).attentions:
        assert site.k is not None and site.k.linear.bias is not None
        bias = model.graph.initializers[site.k.linear.bias.name or ""]
        offset = np.where(random.random(site.k.channels.shape) < POSITIVE_SHARE, OFFSET, -OFFSET)
        site.k.linear.bias.const_value = bias.const_value
        shift_outputs(site.k.linear, site.k.channels, offset)
        bias.const_value = site.k.linear.bias.const_value
    with atomic_path(output) as temporary:
        ir.save(model, temporary)


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=assets.nano_dir(), help="folder of encoder.onnx and decoder.onnx")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w6a6", "w4a4"], metavar="wXaY")
    parser.add_argument("--target", default="samq")
    parser.add_argument("--planted", action="store_true", help="plant bimodal keys first")
    parser.add_argument("--limit", type=int, help="first N images")
    parser.add_argument("--instances", type=int, help="first N instances of each image")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    source: Path = arguments.model
    if arguments.planted:
        planted = arguments.output / "planted"
        for name in (ENCODER, DECODER):
            plant_bimodal_keys(source / name, planted / name)
        source = planted
    folders = {("float", "float"): source}
    for method in arguments.methods:
        for bits in arguments.bits:
            folder = arguments.output / f"{method}_{bits}"
            quantize(source, arguments.calib, method=method, bits=bits, target=arguments.target).save(folder)
            folders[method, bits] = folder
    rows: list[dict[str, Any]] = []
    print("| method | width | box | point |\n|---|---|---|---|")
    for (method, bits), folder in folders.items():
        scores = {
            prompt: evaluate(
                folder / ENCODER, folder / DECODER, arguments.data, prompt,
                limit=arguments.limit, instances=arguments.instances, progress=False,
            )["mean_iou"]
            for prompt in ("box", "point")
        }  # fmt: skip
        rows.append({"method": method, "bits": bits, **scores})
        print(f"| {method} | {bits} | {100 * scores['box']:.1f} | {100 * scores['point']:.1f} |", flush=True)
    write_json(arguments.output / "accuracy.json", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
