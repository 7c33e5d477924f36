# SPDX-License-Identifier: Apache-2.0
"""``make demo``: quantize the bundled SAM-Nano and show it against float, as table and pictures."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from samq_onnx import assets, data, images
from samq_onnx.api import DECODER, ENCODER, Order, execute, parts_of
from samq_onnx.command import command_parser, main_guard
from samq_onnx.data import Calibration
from samq_onnx.evaluate import evaluate
from samq_onnx.files import atomic_path, check_writable, write_report
from samq_onnx.overlay import draw_box, draw_masks, side_by_side
from samq_onnx.predictor import SamPredictor

__all__ = ["main"]

PICTURES = 4
INSTANCES = 12  # drawn in a picture
RUNS = 5


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way to quantize: its title, method, widths, those of a decoder, and how many seconds it takes on slow cores."""

    title: str
    method: str
    bits: str
    decoder_bits: str | None
    seconds: int


QUICK = (_Way("w8a8", "auto", "w8a8", None, 60), _Way("w4a8", "auto", "w4a8", "w8a8", 60))
LEARNED = (_Way("w6a6", "samq", "w6a6", None, 120), _Way("w4a4", "samq", "w4a4", None, 360))
OTHERWISE = 20  # seconds: to score and to draw, each row


def _seconds(folder: Path) -> float:
    """Median seconds to embed one image and answer one prompt."""
    predictor = SamPredictor(folder / ENCODER, folder / DECODER)
    rgb = images.load(data.image_paths(assets.demo_images())[0])
    times = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        predictor.set_image(rgb)
        predictor.predict(box=np.array([8.0, 8.0, 40.0, 40.0]), multimask_output=False)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def _pictures(folders: dict[str, Path], output: Path) -> None:
    predictors = {title: SamPredictor(folder / ENCODER, folder / DECODER) for title, folder in folders.items()}
    for sample in data.load_coco(assets.demo_images())[:PICTURES]:
        rgb = images.load(sample.path)
        shown = sample.instances[:INSTANCES]
        panels = [("annotation", draw_masks(rgb, [instance.mask() for instance in shown]))]
        for title, predictor in predictors.items():
            predictor.set_image(rgb)
            masks = [predictor.predict(box=np.array(i.box), multimask_output=False)[0][0] for i in shown]
            picture = draw_masks(rgb, masks)
            for instance in shown:
                picture = draw_box(picture, instance.box)
            panels.append((title, picture))
        with atomic_path(output / f"{sample.path.stem}.png") as file:
            Image.fromarray(np.asarray(side_by_side(panels))).save(file)


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command: quantize, evaluate, draw."""
    parser = command_parser("demo", __doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder for models and pictures")
    parser.add_argument("--all", action="store_true", help="also W6A6 and W4A4, whose weights are learned")
    parser.add_argument("--json", type=check_writable, help="write the numbers here")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    output: Path = arguments.output
    ways = QUICK + (LEARNED if arguments.all else ())
    seconds = sum(way.seconds for way in ways) + OTHERWISE * (1 + len(ways))
    print(f"this takes about {max(1, round(seconds / 60))} minutes on two slow cores", flush=True)
    source = assets.nano_dir()
    folders = {"float": source}
    for way in ways:
        folders[way.title] = output / way.title
        print(f"quantizing SAM-Nano to {way.title} ...", flush=True)
        order = Order.of(way.method, way.bits, "samq", {}, way.decoder_bits, parts=parts_of(source))
        execute(order, source, Calibration(assets.calibration_images()), say=lambda line: None).save(output / way.title)
    rows: list[dict[str, Any]] = []
    for title, folder in folders.items():
        row: dict[str, Any] = {"model": title}
        for prompt in ("box", "point"):
            report = evaluate(folder / ENCODER, folder / DECODER, assets.demo_images(), prompt, progress=False)
            row[f"{prompt}_iou"] = report["mean_iou"]
            row["instances"], row["images"] = report["instances"], report["images"]
        row["megabytes"] = sum((folder / name).stat().st_size for name in (ENCODER, DECODER)) / 1e6
        row["seconds"] = _seconds(folder)
        rows.append(row)
    _pictures(folders, output)
    print(f"\nSAM-Nano on {rows[0]['images']} bundled images, {rows[0]['instances']} instances, mean IoU in percent")
    print(f"{'model':<8}{'box':>8}{'point':>8}{'MB':>8}{'seconds':>10}")
    for row in rows:
        print(
            f"{row['model']:<8}{100 * row['box_iou']:8.1f}{100 * row['point_iou']:8.1f}"
            f"{row['megabytes']:8.1f}{row['seconds']:10.3f}"
        )
    print(f"pictures: {', '.join(str(p) for p in sorted(output.glob('*.png')))}")
    write_report(arguments.json, rows, f"models and pictures are in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
