# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.quantize``: a float SAM in ONNX and a folder of images make an integer SAM in ONNX."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import assets
from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.external import data_name, unused_data
from samq_onnx.families import Role, identify
from samq_onnx.files import atomic_folder, atomic_path, check_writable, write_report
from samq_onnx.fusion import fusion_report
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.inventory import check_files
from samq_onnx.models import load_model, model_bytes, model_sha256
from samq_onnx.ops import DOMAIN
from samq_onnx.pair import PAIR, pair_hash
from samq_onnx.pipeline import RECIPE, Outcome, quantize_model
from samq_onnx.predictor import SamPredictor
from samq_onnx.recipe import BITS, DEFAULT_METHOD, METHODS, Recipe, recipe
from samq_onnx.samples import Sample

__all__ = ["main", "quantize", "quantize_folder"]

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
QUANTIZED = re.compile("^Q[A-Z]|Quantize|Dequantize|Integer|NBits|Bnb4|FpQ4")  # operators of ONNX and its runtime
ONE_FILE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf holds less than 2 GiB


def _calibration_sha256(calibration: Calibration, used: Iterable[Sample]) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(sample.path for sample in used), *filter(None, [calibration.annotations])]:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _told(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"  {note}")


def _check_float(model: ir.Model, source: Path) -> None:
    """Refuse a model that something has quantized before.

    Raises:
        UserError: it has operators of integer arithmetic; names them and the program that wrote them.
    """
    nodes = [*model.graph.all_nodes(), *(node for one in model.functions.values() for node in one.all_nodes())]
    found = Counter(node.op_type for node in nodes if node.domain == DOMAIN or QUANTIZED.search(node.op_type))
    if RECIPE in model.metadata_props or found:
        by = "samq_onnx" if RECIPE in model.metadata_props else model.producer_name or "a program without a name"
        shown = ", ".join(f"{count} {name}" for name, count in found.most_common(4))
        raise UserError(f"{source}: is already quantized, by {by} ({shown}); give the float model it was made from")


def _save(model: ir.Model, output: Path) -> None:
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > ONE_FILE_LIMIT:
        ir.save(model, output, external_data=data_name(output.name))
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
    pair: str | None = None,
) -> dict[str, Any]:
    """Quantize one ONNX file; prints what happened and returns it as a report.

    Args:
        source: float model. output: where the quantized model goes.
        calibration: folder of images, with or without annotations.
        chosen: the recipe. encoder: float encoder, for the embeddings a decoder is calibrated on.
        quantized_encoder: the encoder that the quantized decoder will work with, where it is another one.
        pair: names the run, if it makes an encoder and a decoder (`samq_onnx.pair`).

    Raises:
        UserError: unusable model, calibration folder or output path; nothing is written.
    """
    started = time.perf_counter()
    calibration = Calibration.of(calibration)
    model = load_model(source)
    check_files([source, encoder, quantized_encoder, calibration.folder], [output])
    check_writable(output)
    _check_float(model, source)
    part = identify(model, os.fspath(source))
    if part.role is Role.DECODER:
        chosen = chosen.for_decoder()
        if calibration.annotations and find_spec("pycocotools") is None:
            print("warning: points lie amid boxes, not masks; run: pip install samq_onnx[eval]", file=sys.stderr)
    print(f"{source}: {chosen.method} W{chosen.weight_bits}A{chosen.activation_bits}")
    feeds = part.feeds(calibration, quantized_encoder or encoder, source.stem)
    _told([*part.notes, *feeds.notes])
    targets = part.feeds(calibration, encoder, source.stem) if quantized_encoder and chosen.learn else None
    if targets is not None:
        _told(targets.notes)
    outcome = quantize_model(model, feeds, chosen, targets=targets, label=source.stem)
    model.metadata_props["samq_onnx.float_model.sha256"] = model_sha256(source)
    model.metadata_props["samq_onnx.calibration.sha256"] = _calibration_sha256(calibration, feeds.samples)
    model.metadata_props.pop(PAIR, None)
    if pair is not None:
        model.metadata_props[PAIR] = pair
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
    files = [source / ENCODER, source / DECODER]
    calibration = Calibration.of(calibration)
    check_files([*files, calibration.folder], [output / ENCODER, output / DECODER])
    SamPredictor(*files)  # refuses what does not fit together
    made_from = [*map(model_sha256, files), _calibration_sha256(calibration, calibration.images)]
    pair = pair_hash({"made_from": made_from, "recipe": dataclasses.asdict(chosen), "version": version("samq_onnx")})
    with atomic_folder(output) as folder:
        encoder, decoder = folder / ENCODER, folder / DECODER
        report = {
            "encoder": quantize(source / ENCODER, encoder, calibration, chosen, pair=pair),
            "decoder": quantize(
                source / DECODER, decoder, calibration, chosen,
                encoder=source / ENCODER, quantized_encoder=encoder, pair=pair,
            ),
        }  # fmt: skip
    for part, name in (("encoder", ENCODER), ("decoder", DECODER)):
        report[part]["output"] = os.fspath(output / name)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quantize", __doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="encoder.onnx, decoder.onnx or a folder of both (default: SAM-Nano)"
    )
    parser.add_argument("-o", "--output", type=output_path, help="output file, or folder when MODEL is one")
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
        written = [output / ENCODER, output / DECODER]
        check_files([source / ENCODER, source / DECODER, calibration], [arguments.json, *written])
        report = quantize_folder(source, output, pictures, chosen)
    else:
        output = arguments.output or source.with_name(f"{source.stem}_{arguments.bits}.onnx")
        written = [output]
        check_files([source, arguments.encoder, calibration], [output, arguments.json])
        report = quantize(source, output, pictures, chosen, encoder=arguments.encoder)
    done = f"wrote {', '.join(map(str, written))}"
    print(done)
    for path in written:
        for left in unused_data(path):
            print(f"warning: {left} is not read by {path}; remove it if nothing else reads it", file=sys.stderr)
    write_report(arguments.json, report, f"{done} all the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
