# SPDX-License-Identifier: Apache-2.0
"""What each exact fold and each closed form is worth, alone and together, on one model.

    python benchmarks/ablation.py --model FOLDER --calib DATA/calib --data DATA/val --bits w6a6 -o FOLDER

Every recipe ends with ranges of least error, rounded weights and codes relative to the row; what is named comes before
or after these. Encoder and decoder are quantized at one width. Rows are agreement with the float masks, box prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from markdown_table import markdown_table

from samq_onnx import assets
from samq_onnx.api import DECODER, ENCODER, Order, execute, parts_of
from samq_onnx.command import main_guard
from samq_onnx.data import Calibration
from samq_onnx.evaluate import evaluate
from samq_onnx.families import Part
from samq_onnx.files import atomic_path, write_json
from samq_onnx.methods import Method, Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import (
    BalanceOperands,
    CentreKeys,
    FlipBimodalKeys,
    Gptq,
    GptqSettings,
    Ranges,
    RepairOutputs,
    RepairSettings,
    RotateStream,
)

RANGES = Ranges("omse", "mse", "row", convolution_outputs=False)
GPTQ, SEQUENCE = Gptq(GptqSettings()), Gptq(GptqSettings(sequential=True))
REPAIR = RepairOutputs(RepairSettings())
FOLDS: list[Step] = [RotateStream(), BalanceOperands(), CentreKeys()]
RECIPES: dict[str, list[Step]] = {
    "ranges alone": [RANGES],
    "signs": [FlipBimodalKeys(), RANGES],
    "centring": [CentreKeys(), RANGES],
    "balanced operands": [BalanceOperands(), RANGES],
    "rotation": [RotateStream(), RANGES],
    "rotation, centring": [RotateStream(), CentreKeys(), RANGES],
    "balanced operands, centring": [BalanceOperands(), CentreKeys(), RANGES],
    "all folds": [*FOLDS, RANGES],
    "GPTQ": [RANGES, GPTQ],
    "all folds, GPTQ": [*FOLDS, RANGES, GPTQ],
    "all folds, GPTQ in sequence": [*FOLDS, RANGES, SEQUENCE],
    "all folds, affine repair": [*FOLDS, RANGES, REPAIR],
    "all folds, GPTQ in sequence, affine repair": [*FOLDS, RANGES, SEQUENCE, REPAIR],
}


@dataclasses.dataclass(frozen=True)
class _Recipe(Method):
    """Steps as they stand, for every part."""

    name = "recipe"

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return RECIPES[self._chosen]

    _chosen = ""


def _method(name: str) -> Method:
    return type("_Chosen", (_Recipe,), {"_chosen": name})()


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=assets.nano_dir(), help="float encoder.onnx and decoder.onnx")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bits", default="w6a6", metavar="wXaY")
    parser.add_argument("--limit", type=int, help="first images only")
    parser.add_argument("--instances", type=int, help="first instances of each image only")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        order = Order(_method(name), Widths.parse(arguments.bits), "samq", strict=True)
        made = execute(order, arguments.model, Calibration.of(arguments.calib), say=lambda line: None)
        assert set(made.parts) == set(parts_of(arguments.model))
        folder = arguments.output / "model"
        made.save(folder)
        found = evaluate(
            folder / ENCODER, folder / DECODER, arguments.data, "box",
            limit=arguments.limit, instances=arguments.instances, progress=False, against=arguments.model,
        )  # fmt: skip
        agreement = found["agreement"]
        rows.append({"recipe": name, "mean_iou": found["mean_iou"], "agreement": agreement})
        print(name, f"{100 * agreement['mean_iou']:.2f}", flush=True)
        write_json(arguments.output / "ablation.json", rows)
    head = ["recipe", "IoU", "agreement", "kept at 0.96"]
    table = [
        [
            row["recipe"],
            *(f"{100 * x:.2f}" for x in (row["mean_iou"], row["agreement"]["mean_iou"])),
            f"{100 * row['agreement']['shares']['0.96']:.1f}",
        ]
        for row in rows
    ]
    with atomic_path(arguments.output / "ablation.md") as temporary:
        temporary.write_text(markdown_table([head, *table]))
    print((arguments.output / "ablation.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
