# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.evaluate``: mean IoU and Dice of masks prompted by annotations, and agreement with float masks.

Each annotated object of a folder in COCO format is prompted alone, by its box (the decoder's mask 0) or by one
point, the pixel of its mask nearest to its centroid (best of masks 1 to 3 by predicted IoU). The answer is
compared with its mask at original resolution. Crowds and objects under 12 pixels do not count, and images and
annotations that cannot be used are left out (`samq_onnx.intake`).

With --against, the float model answers the same prompts, and its masks are compared with those of the evaluated model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from samq_onnx import data
from samq_onnx.agreement import WORST, Agreement
from samq_onnx.api import DECODER, ENCODER
from samq_onnx.closeup import closeup
from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.errors import UserError
from samq_onnx.families import NOTHING, Hints
from samq_onnx.families.hints import add_hints
from samq_onnx.files import atomic_folder, check_writable, write_report
from samq_onnx.float_model import check_float
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.inventory import check_files
from samq_onnx.models import load_model
from samq_onnx.predictor import Choices, Model, SamPredictor
from samq_onnx.progress import progress_bar
from samq_onnx.samples import fitting
from samq_onnx.scoring import Score, means, overlap

__all__ = ["MIN_AREA", "PROMPTS", "evaluate", "main", "overlap"]

MIN_AREA = 12  # pixels
PROMPTS = ("box", "point")
PICTURES = tuple(f"worst_{rank:02}.png" for rank in range(1, WORST + 1))


class _Asked(NamedTuple):
    """An object that was prompted.

    Attributes:
        rgb: its image, at most reduced. number: of the object in its image. truth: its mask.
        prompt: box or point. answers: of each model, the evaluated one first.
    """

    rgb: np.ndarray
    number: int
    truth: np.ndarray
    prompt: list[float]
    answers: list[Choices]

    def picture(self) -> np.ndarray:
        """The object with the masks of both models."""
        mask, reference = (answer.best.mask for answer in self.answers)
        title = f"float outlined, IoU {overlap(mask, reference)[0]:.2f}"
        return closeup(self.rgb, self.truth, reference, mask, self.prompt, title)


def evaluate(
    encoder: Model,
    decoder: Model,
    data_dir: str | Path,
    prompt: str,
    limit: int | None = None,
    instances: int | None = None,
    progress: bool = True,
    intake: Intake | None = None,
    against: str | Path | None = None,
    worst: str | Path | None = None,
    hints: Hints = NOTHING,
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
        against: folder of the float encoder.onnx and decoder.onnx.
        worst: folder for pictures of the objects whose masks agree least with those of ``against``.
        hints: size and pixels of the image, where the graphs of the encoders do not tell.

    Returns:
        mean_iou and mean_dice over instances, oracle_mean_iou of the best of each decoder's choices by truth, the
        numbers of instances and of images, prompt, min_area; left_out, a line for each image and annotation that was
        not used. With ``against``, agreement: `samq_onnx.agreement.Agreement.report`.

    Raises:
        UserError: unusable models or data, or nothing to evaluate.
    """
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt {prompt!r}; choose one of {', '.join(PROMPTS)}")
    for option, value in (("limit", limit), ("instances", instances)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be 1 or more, got {value}")
    if worst is not None and against is None:
        raise UserError("worst: pictures show where masks differ from those of a float model; give it as against")
    intake = intake or Intake()
    samples = data.load_coco(data_dir, intake)[:limit]
    predictors = [SamPredictor(encoder, decoder, hints)]
    if against is not None:
        predictors.append(SamPredictor(Path(against) / ENCODER, Path(against) / DECODER, hints))
    for size in {predictor.image_size for predictor in predictors}:
        samples = fitting(samples, size, intake)
    scores: list[Score] = []
    agreement = Agreement()
    used = 0
    for sample in progress_bar(samples, f"evaluate, {prompt}", "image", progress):
        with intake.leaving_out():  # an image that does not decode
            for asked in _asked(predictors, sample, prompt, instances, intake):
                score, *reference = [Score.of(answer, asked.truth) for answer in asked.answers]
                scores.append(score)
                if reference:
                    iou, _ = overlap(*(answer.best.mask for answer in asked.answers))
                    draw = asked.picture if worst is not None else None
                    agreement.add(sample.path, asked.number, iou, score, reference[0], draw)
            used += 1
    intake.finish()
    if not scores:
        raise intake.nothing_left(
            f"{data_dir}: no object of {MIN_AREA} pixels or more is annotated that can be used; nothing to evaluate"
        )
    report = {
        **means(scores),
        "instances": len(scores),
        "images": used,
        "prompt": prompt,
        "min_area": MIN_AREA,
        "left_out": intake.left_out,
    }
    if against is not None:
        report["agreement"] = {"against": str(against), **agreement.report()}
    if worst is not None:
        with atomic_folder(worst) as folder:
            for name, bad in zip(PICTURES, agreement.worst, strict=False):
                if bad.picture is not None:
                    Image.fromarray(bad.picture).save(folder / name)
    return report


def _asked(
    predictors: Sequence[SamPredictor], sample: data.Sample, kind: str, count: int | None, intake: Intake
) -> Iterator[_Asked]:
    """The first ``count`` instances, prompted; the image is read if there is one."""
    rgb = None
    for number, instance, truth in islice(_truths(sample, intake), count):
        if rgb is None:
            rgb = sample.load(intake)
            for predictor in predictors:
                predictor.set_image(rgb, (sample.height, sample.width))
        prompt = list(instance.box if kind == "box" else data.interior_point(truth))
        if kind == "box":
            answers = [predictor.choices(box=np.array(prompt)) for predictor in predictors]
        else:
            answers = [predictor.choices(np.array([prompt]), np.ones(1)) for predictor in predictors]
        yield _Asked(rgb, number, truth, prompt, answers)


def _truths(sample: data.Sample, intake: Intake) -> Iterator[tuple[int, data.Instance, np.ndarray]]:
    """Instances that count: numbers among all of the image, and masks."""
    for number, instance in enumerate(sample.instances):
        if instance.crowd or (instance.area is not None and instance.area < MIN_AREA):
            continue
        truth = None
        with intake.leaving_out():
            truth = instance.mask()
        if truth is not None and (instance.area is not None or truth.sum() >= MIN_AREA):
            yield number, instance, truth


def _agreement_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    shares = ", ".join(f"{level}: {share:.1%}" for level, share in found["shares"].items())
    worst, loss = found["worst"][0], found["difference"]["iou"]
    return [
        f"IoU with float masks: mean {found['mean_iou']:.4f}; objects at or above {shares}; worst {worst['iou']:.2f}, "
        f"object {worst['object']} of {Path(worst['image']).name}",
        f"float: mean IoU {found['float']['mean_iou']:.4f}, difference {loss['mean']:+.4f} "
        f"(standard error {loss['standard_error']:.4f})",
    ]


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
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FLOAT",
        help="folder of the float encoder.onnx and decoder.onnx, to compare masks",
    )
    parser.add_argument(
        "--worst",
        type=output_path,
        metavar="FOLDER",
        help=f"pictures of the {WORST} objects that agree least with FLOAT",
    )
    add_hints(parser)
    add_strict(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the result here")
    arguments = parser.parse_args(argv)
    reference = [arguments.against / name for name in (ENCODER, DECODER)] if arguments.against is not None else []
    pictures = [check_writable(arguments.worst / name) for name in PICTURES] if arguments.worst is not None else []
    check_files([arguments.encoder, arguments.decoder, arguments.data, *reference], [arguments.json, *pictures])
    for file in reference:
        check_float(load_model(file), file)
    report = evaluate(
        arguments.encoder, arguments.decoder, arguments.data, arguments.prompt, arguments.limit, arguments.instances,
        intake=Intake(arguments.strict_data, arguments.max_megapixels),
        against=arguments.against, worst=arguments.worst, hints=Hints.given(arguments),
    )  # fmt: skip
    report |= {"encoder": str(arguments.encoder), "decoder": str(arguments.decoder)}
    print(
        f"{report['prompt']} prompts: mean IoU {report['mean_iou']:.4f}, mean Dice {report['mean_dice']:.4f} "
        f"({report['instances']} instances of {MIN_AREA} pixels or more in {report['images']} images, "
        f"{len(report['left_out'])} left out)"
    )
    for line in _agreement_lines(report.get("agreement")):
        print(line)
    write_report(arguments.json, report, "the numbers are above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
