# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.segment``: one prompt on one image, drawn into a picture."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from samq_onnx import images, overlay
from samq_onnx.command import command_parser, main_guard
from samq_onnx.errors import UserError
from samq_onnx.families.hints import Hints, add_hints
from samq_onnx.files import atomic_path, check_writable, write_report
from samq_onnx.intake import Intake, add_limit
from samq_onnx.inventory import check_files
from samq_onnx.predictor import SamPredictor

__all__ = ["main"]


def _numbers(text: str, form: str) -> list[float]:
    """Read numbers separated by commas, as many as in ``form``."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")) or not np.isfinite(numbers).all():
        raise UserError(f"{text!r} is not {form}; give numbers separated by commas, in pixels")
    return numbers


def _parse_prompt(points: Sequence[str], boxes: Sequence[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Points float64 [n, 2] and box float64 [4] of the command line.

    Raises:
        UserError: not numbers, not enough of them, no prompt at all, several boxes, or an empty one.
    """
    coords = np.array([_numbers(point, "X,Y") for point in points]) if points else None
    if len(boxes) > 1:
        raise UserError(f"{len(boxes)} boxes; give one, a run each")
    corners = np.array(_numbers(boxes[0], "X0,Y0,X1,Y1")) if boxes else None
    if coords is None and corners is None:
        raise UserError("no prompt; give --point X,Y or --box X0,Y0,X1,Y1")
    if corners is not None and not (corners[:2] < corners[2:]).all():
        raise UserError(f"the box {boxes[0]} is empty; give X0 < X1 and Y0 < Y1")
    return coords, corners


def _check_inside(coords: np.ndarray | None, corners: np.ndarray | None, height: int, width: int) -> None:
    """A point needs a pixel of the image; a box may reach its edges.

    Raises:
        UserError: a point or a box reaches out of the image.
    """
    if coords is not None:
        for x, y in coords:
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(f"the point {x:g},{y:g} is outside of the image of {width} x {height} pixels")
    if corners is not None and not ((corners >= 0).all() and (corners[2:] <= (width, height)).all()):
        shown = ",".join(f"{number:g}" for number in corners)
        raise UserError(f"the box {shown} is outside of the image of {width} x {height} pixels")


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = command_parser("segment", __doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--encoder", type=Path, required=True, help="encoder .onnx, float or quantized")
    parser.add_argument("--decoder", type=Path, required=True, help="decoder .onnx, float or quantized")
    parser.add_argument("--point", action="append", default=[], metavar="X,Y", help="point in the object; repeatable")
    parser.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="box around the object")
    parser.add_argument("-o", "--output", type=check_writable, required=True, help="picture to write (.png, .jpg, ...)")
    add_hints(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the numbers here")
    arguments = parser.parse_args(argv)
    coords, box = _parse_prompt(arguments.point, arguments.box)
    if Image.registered_extensions().get(arguments.output.suffix.lower()) not in Image.SAVE:
        raise UserError(f"{arguments.output}: unknown kind of picture; give a name that ends in .png")
    check_files([arguments.image, arguments.encoder, arguments.decoder], [arguments.output, arguments.json])
    intake = Intake(max_megapixels=arguments.max_megapixels)
    width, height = images.size(arguments.image, intake)
    _check_inside(coords, box, height, width)
    rgb = images.load(arguments.image, intake, reduced=True)  # a large one is segmented and drawn at that size
    scale = np.array([rgb.shape[1] / width, rgb.shape[0] / height])
    coords, box = coords if coords is None else coords * scale, box if box is None else box * np.tile(scale, 2)
    predictor = SamPredictor(arguments.encoder, arguments.decoder, Hints.given(arguments))
    labels = None if coords is None else np.ones(len(coords))

    started = time.perf_counter()
    predictor.set_image(rgb)
    embedded = time.perf_counter()
    mask, iou = predictor.best(coords, labels, box)
    finished = time.perf_counter()

    picture = overlay.draw_masks(rgb, [mask])
    if box is not None:
        picture = overlay.draw_box(picture, box.tolist())
    if coords is not None and labels is not None:
        picture = overlay.draw_points(picture, coords, labels)
    with atomic_path(arguments.output) as temporary:
        Image.fromarray(picture).save(temporary)
    report = {
        "predicted_iou": iou,
        "area": round(mask.sum() / scale.prod()),
        "encoder_seconds": embedded - started,
        "decoder_seconds": finished - embedded,
    }
    print(
        f"predicted IoU {iou:.3f}, area {report['area']} pixels ({mask.mean():.2%} of the image), encoder "
        f"{report['encoder_seconds']:.2f} s, decoder {report['decoder_seconds']:.3f} s; drawn in {arguments.output}"
    )
    write_report(arguments.json, report, f"the picture is in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
