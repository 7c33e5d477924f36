# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.quantize``: a float SAM in ONNX and a folder of images make an integer SAM in ONNX."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import assets, data
from samq_onnx.command import command_parser, main_guard
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.feeds import DecoderFeeds, EncoderFeeds
from samq_onnx.files import atomic_path, check_distinct, check_writable, write_json
from samq_onnx.fusion import fusion_report
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.models import is_decoder, load_model, model_bytes, model_sha256, read_model, square_image_input
from samq_onnx.pipeline import RECIPE, Outcome, quantize_model
from samq_onnx.predictor import SamPredictor, check_pair
from samq_onnx.recipe import BITS, DEFAULT_METHOD, METHODS, Recipe, recipe
from samq_onnx.runtime import open_session

__all__ = ["main", "quantize", "quantize_folder"]

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
ONE_FILE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf holds less than 2 GiB


def _calibration_sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _feeds(
    source: Path, model: ir.Model, calibration: Calibration, encoder: Path | None
) -> EncoderFeeds | DecoderFeeds:
    if not is_decoder(model) and encoder is not None:
        raise UserError(f"{source}: is no SAM decoder; leave out --encoder")
    if is_decoder(model):
        if encoder is None:
            raise UserError(
                f"{source}: a decoder is calibrated on an encoder's embeddings; give --encoder ENCODER.onnx"
            )
        read_model(encoder)
        session = open_session(encoder)
        shapes = {value.name or "": list(value.shape or ()) for value in model.graph.inputs}
        sizes = {name: [d if isinstance(d, int) else 0 for d in shape] for name, shape in shapes.items()}
        check_pair(session, os.fspath(encoder), shapes["image_embeddings"])
        return DecoderFeeds(calibration, session, sizes)
    image = square_image_input(model)
    if image is None:
        described = ", ".join(f"{v.name}{v.shape or ''}" for v in model.graph.inputs)
        raise UserError(f"{source}: cannot make inputs ({described}) from images; a float image [1,3,S,S] is wanted")
    return EncoderFeeds(calibration, *image)


def _save(model: ir.Model, output: Path) -> None:
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > ONE_FILE_LIMIT:
        ir.save(model, output, external_data=f"{output.name}.data")
    else:
        ir.save(model, output)


def _print_outcome(outcome: Outcome) -> None:
    if outcome.is_sam:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.kinds.items()))
        print(f"  attention sites: {found}")
    else:
        print("  no SAM structure found: quantized as a generic network (linears and convolutions)")
    print(f"  linears quantized: {outcome.linears}")
    for reason, count in Counter(outcome.plan.kept_float.values()).items():
        print(f"  linears kept float: {count}, {reason}")
    for fold in outcome.folds:
        print(f"  fold {fold.name}: {len(fold.done)} done, {len(fold.refused)} refused")
        for line in fold.refused:
            print(f"    refused {line}")
    if outcome.learned is not None:
        learned = outcome.learned
        print(
            f"  learned from the float model on {learned.inputs} inputs: "
            f"loss {learned.loss_before:.3f} -> {learned.loss_after:.3f}"
        )
    for line in outcome.refused:
        print(f"  refused: {line}")


def quantize(
    source: Path,
    output: Path,
    calibration: Path | Calibration,
    chosen: Recipe,
    *,
    encoder: Path | None = None,
    quantized_encoder: Path | None = None,
) -> dict[str, Any]:
    """Quantize one ONNX file; prints what happened and returns it as a report.

    Args:
        source: float model. output: where the quantized model goes.
        calibration: folder of images, with or without annotations.
        chosen: the recipe. encoder: float encoder, for the embeddings a decoder is calibrated on.
        quantized_encoder: the encoder that the quantized decoder will work with, where it is another one.

    Raises:
        UserError: unusable model, calibration folder or output path; nothing is written.
    """
    started = time.perf_counter()
    calibration = Calibration.of(calibration)
    model = load_model(source)
    check_distinct([output], [source, encoder, quantized_encoder])
    check_writable(output)
    if RECIPE in model.metadata_props:
        raise UserError(f"{source}: is already quantized; give the float model it was made from")
    if is_decoder(model):
        chosen = chosen.for_decoder()
        if calibration.annotations and find_spec("pycocotools") is None:
            print("warning: points lie amid boxes, not masks; run: pip install samq_onnx[eval]", file=sys.stderr)
    print(f"{source}: {chosen.method} W{chosen.weight_bits}A{chosen.activation_bits}")
    feeds = _feeds(source, model, calibration, quantized_encoder or encoder)
    targets = _feeds(source, model, calibration, encoder) if quantized_encoder and chosen.learn else None
    outcome = quantize_model(model, feeds, chosen, targets=targets, label=source.stem)
    model.metadata_props["samq_onnx.float_model.sha256"] = model_sha256(source)
    model.metadata_props["samq_onnx.calibration.sha256"] = _calibration_sha256(
        [*sorted(sample.path for sample in feeds.samples), *filter(None, [calibration.annotations])]
    )
    with atomic_path(output) as temporary:
        _save(model, temporary)
        fusion = fusion_report(temporary, feeds[0])  # ONNX Runtime loads it: only then does it replace what was there
    report: dict[str, Any] = {
        "model": os.fspath(source),
        "output": os.fspath(output),
        "recipe": dataclasses.asdict(chosen),
        "feeds": len(feeds),
        "left_out": list(calibration.intake.left_out),
        "sites": outcome.kinds,
        "linears": outcome.linears,
        "kept_float": outcome.plan.kept_float,
        "folds": [dataclasses.asdict(fold) for fold in outcome.folds],
        "refused": outcome.refused,
        "learned": dataclasses.asdict(outcome.learned) if outcome.learned else None,
        "bytes_before": model_bytes(source),
        "bytes_after": model_bytes(output),
        "fusion": fusion.to_json(),
        "seconds": time.perf_counter() - started,
        "plan": outcome.plan.to_json(),
    }
    _print_outcome(outcome)
    before, after = report["bytes_before"] / 1e6, report["bytes_after"] / 1e6
    print(f"  {before:.1f} MB -> {after:.1f} MB ({before / after:.1f}x smaller), {report['seconds']:.0f} s")
    for line in fusion.lines():
        print(f"  {line}")
    calibration.intake.finish()
    return report


def quantize_folder(source: Path, output: Path, calibration: Path | Calibration, chosen: Recipe) -> dict[str, Any]:
    """Quantize ``encoder.onnx`` and ``decoder.onnx`` of a folder into a folder of the same shape, both or none."""
    for name in (ENCODER, DECODER):
        read_model(source / name)
    check_distinct([output / ENCODER, output / DECODER], [source / ENCODER, source / DECODER])
    SamPredictor(source / ENCODER, source / DECODER)  # refuses what does not fit together
    calibration = Calibration.of(calibration)
    with atomic_path(output / ENCODER) as encoder, atomic_path(output / DECODER) as decoder:
        report = {
            "encoder": quantize(source / ENCODER, encoder, calibration, chosen),
            "decoder": quantize(
                source / DECODER, decoder, calibration, chosen, encoder=source / ENCODER, quantized_encoder=encoder
            ),
        }
    for part, name in (("encoder", ENCODER), ("decoder", DECODER)):
        report[part]["output"] = os.fspath(output / name)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quantize", __doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="encoder.onnx, decoder.onnx or a folder of both (default: SAM-Nano)"
    )
    parser.add_argument("-o", "--output", type=Path, help="output file, or folder when MODEL is one")
    parser.add_argument("--calib", type=Path, help="folder of calibration images (default: a few bundled ones)")
    parser.add_argument("--encoder", type=Path, help="float encoder, needed to calibrate a decoder alone")
    parser.add_argument("--bits", choices=sorted(BITS, reverse=True), default="w8a8")
    parser.add_argument("--method", choices=sorted(METHODS), default=DEFAULT_METHOD)
    add_strict(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the report, with the whole plan, to this file")
    return parser


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `quantize` and `quantize_folder`."""
    arguments = _parser().parse_args(argv)
    ort.set_default_logger_severity(3)
    source: Path = arguments.model or assets.nano_dir()
    chosen = recipe(arguments.method, arguments.bits)
    calibration: Path | None = arguments.calib
    if calibration is None:
        calibration = assets.calibration_images()
        print(
            "warning: no --calib; calibrating on a few bundled microscopy images, give a folder of your own images",
            file=sys.stderr,
        )
    pictures = Calibration(calibration, Intake(arguments.strict_data, arguments.max_megapixels))
    if source.is_dir():
        if arguments.encoder:
            raise UserError(f"{source}: is a folder, whose encoder.onnx is used; leave out --encoder")
        output = arguments.output or Path(f"{source.name}_{arguments.bits}")
        check_distinct(
            [arguments.json, output / ENCODER, output / DECODER],
            [source / ENCODER, source / DECODER, *data.files(calibration)],
        )
        report = quantize_folder(source, output, pictures, chosen)
        print(f"wrote {output / ENCODER}, {output / DECODER}")
    else:
        output = arguments.output or source.with_name(f"{source.stem}_{arguments.bits}.onnx")
        check_distinct([output, arguments.json], [source, arguments.encoder, *data.files(calibration)])
        report = quantize(source, output, pictures, chosen, encoder=arguments.encoder)
        print(f"wrote {output}")
    if arguments.json:
        write_json(arguments.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
