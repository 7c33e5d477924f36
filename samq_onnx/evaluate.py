# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.evaluate``: mean IoU and Dice of masks prompted by annotations.

Each annotated object of a folder in COCO format is prompted alone, by its box (the decoder's mask 0) or by one
point, the pixel of its mask nearest to its centroid (best of masks 1 to 3 by predicted IoU). The answer is
compared with its mask at original resolution. Crowds and objects under 12 pixels do not count, and images and
annotations that cannot be used are left out (`samq_onnx.intake`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx import data
from samq_onnx.command import command_parser, main_guard
from samq_onnx.errors import UserError
from samq_onnx.files import check_writable, write_report
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.inventory import check_files
from samq_onnx.predictor import Model, SamPredictor
from samq_onnx.progress import progress_bar
from samq_onnx.samples import fitting

__all__ = ["MIN_AREA", "PROMPTS", "evaluate", "main", "overlap"]

MIN_AREA = 12  # pixels
PROMPTS = ("box", "point")


def overlap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """IoU and Dice of two masks, bool [H, W]; two empty masks agree."""
    total = int(first.sum()) + int(second.sum())
    if not total:
        return 1.0, 1.0
    shared = int((first & second).sum())
    return shared / (total - shared), 2 * shared / total


def evaluate(
    encoder: Model,
    decoder: Model,
    data_dir: str | Path,
    prompt: str,
    limit: int | None = None,
    instances: int | None = None,
    progress: bool = True,
    intake: Intake | None = None,
) -> dict[str, Any]:
    """Prompt every annotated object of a folder and compare.

    Args:
        encoder, decoder: files or open sessions.
        data_dir: folder of ``images/`` and ``annotations.json``.
        prompt: ``box`` or ``point``.
        limit: the first images only, in the order of the annotations.
        instances: the first instances of each image only, in the order of the annotations.
        progress: show a bar with the time left.
        intake: leaves out images and annotations that cannot be used.

    Returns:
        mean_iou and mean_dice over instances, the numbers of instances and of images, prompt, min_area; left_out, a
        line for each image and annotation that was not used.

    Raises:
        UserError: unusable models or data, or nothing to evaluate.
    """
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt {prompt!r}; choose one of {', '.join(PROMPTS)}")
    for option, value in (("limit", limit), ("instances", instances)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be 1 or more, got {value}")
    intake = intake or Intake()
    samples = data.load_coco(data_dir, intake)[:limit]
    predictor = SamPredictor(encoder, decoder)
    scores: list[tuple[float, float]] = []
    used = 0
    for sample in progress_bar(
        fitting(samples, predictor.image_size, intake), f"evaluate, {prompt}", "image", progress
    ):
        with intake.leaving_out():  # an image that does not decode
            scores += _scores(predictor, sample, prompt, instances, intake)
            used += 1
    intake.finish()
    if not scores:
        raise intake.nothing_left(
            f"{data_dir}: no object of {MIN_AREA} pixels or more is annotated that can be used; nothing to evaluate"
        )
    mean_iou, mean_dice = np.mean(scores, axis=0)
    return {
        "mean_iou": float(mean_iou),
        "mean_dice": float(mean_dice),
        "instances": len(scores),
        "images": used,
        "prompt": prompt,
        "min_area": MIN_AREA,
        "left_out": intake.left_out,
    }


def _scores(
    predictor: SamPredictor, sample: data.Sample, prompt: str, count: int | None, intake: Intake
) -> list[tuple[float, float]]:
    """IoU and Dice of the first ``count`` instances; the image is read if there is one."""
    scores: list[tuple[float, float]] = []
    for instance, truth in islice(_truths(sample, intake), count):
        if not scores:
            predictor.set_image(sample.load(intake), (sample.height, sample.width))
        if prompt == "box":
            answer = predictor.best(box=np.array(instance.box))
        else:
            answer = predictor.best(np.array([data.interior_point(truth)]), np.ones(1))
        scores.append(overlap(answer.mask, truth))
    return scores


def _truths(sample: data.Sample, intake: Intake) -> Iterator[tuple[data.Instance, np.ndarray]]:
    """Instances that count, with their masks."""
    for instance in sample.instances:
        if instance.crowd or (instance.area is not None and instance.area < MIN_AREA):
            continue
        truth = None
        with intake.leaving_out():
            truth = instance.mask()
        if truth is not None and (instance.area is not None or truth.sum() >= MIN_AREA):
            yield instance, truth


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `evaluate`."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="encoder .onnx, float or quantized")
    parser.add_argument("--decoder", type=Path, required=True, help="decoder .onnx, float or quantized")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and annotations.json (COCO)")
    parser.add_argument("--prompt", choices=PROMPTS, required=True)
    parser.add_argument("--limit", type=int, help="first images only, in the order of the annotations")
    parser.add_argument("--instances", type=int, help="first instances of each image only")
    add_strict(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the result here")
    arguments = parser.parse_args(argv)
    check_files([arguments.encoder, arguments.decoder, arguments.data], [arguments.json])
    report = evaluate(
        arguments.encoder, arguments.decoder, arguments.data, arguments.prompt, arguments.limit, arguments.instances,
        intake=Intake(arguments.strict_data, arguments.max_megapixels),
    )  # fmt: skip
    report |= {"encoder": str(arguments.encoder), "decoder": str(arguments.decoder)}
    print(
        f"{report['prompt']} prompts: mean IoU {report['mean_iou']:.4f}, mean Dice {report['mean_dice']:.4f} "
        f"({report['instances']} instances of {MIN_AREA} pixels or more in {report['images']} images, "
        f"{len(report['left_out'])} left out)"
    )
    write_report(arguments.json, report, "the numbers are above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
