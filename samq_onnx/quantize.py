# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.quantize``: a float SAM in ONNX and a folder of images make an integer SAM in ONNX."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from samq_onnx import api, assets
from samq_onnx.analysis.mixed import Goal
from samq_onnx.api import DECODER, ENCODER, Order, Quantized, Result, execute, parts_of
from samq_onnx.array_feeds import ArrayFolder
from samq_onnx.callable_module import make_callable
from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.data import Calibration
from samq_onnx.documents import read_document
from samq_onnx.errors import UserError
from samq_onnx.external import unused_data
from samq_onnx.families import Hints
from samq_onnx.families.pixels import Pixels
from samq_onnx.files import check_writable, write_report
from samq_onnx.fusion import FusionReport
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.inventory import check_files
from samq_onnx.methods import DEFAULT_METHOD, METHODS
from samq_onnx.models import model_bytes
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.plan_file import constants_path, plan_to_json, write_plans
from samq_onnx.reconstruct.effort import CACHE_GB, DEVICES, Effort

__all__ = ["described", "finish", "main", "outputs", "settings"]

SHOWN = 12  # refusals of one step that are printed


def described(part: Quantized) -> list[str]:
    """What happened to a model, in lines."""
    lines = []
    if any(kind != "generic" for kind in part.sites):
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(part.sites.items()))
        lines.append(f"attention sites: {found}")
    else:
        lines.append("no SAM structure found: quantized as a generic network (linears and convolutions)")
    lines.append(f"linears quantized: {len(part.plan.linears)}")
    for reason, count in Counter(part.plan.kept_float.values()).items():
        lines.append(f"linears kept float: {count}, {reason}")
    lines.append("done: " + ", ".join(f"{len(report.done)} {report.name}" for report in part.reports if report.done))
    for report in part.reports:
        if report.facts:
            taken = report.done[0] if len(report.done) == 1 and len(report.facts) > 1 else None  # of alternatives
            facts = (f"{name} {value:.4g}{' (taken)' * (name == taken)}" for name, value in report.facts.items())
            lines.append(f"{report.name}: " + "; ".join(facts))
        lines += [f"not done: {line}" for line in report.refused[:SHOWN]]
        if len(report.refused) > SHOWN:
            lines.append(f"and {len(report.refused) - SHOWN} more of {report.name}; --json lists all of them")
    return lines


def _json(part: Quantized, source: Path, output: Path, fusion: FusionReport | None) -> dict[str, Any]:
    return {
        "model": os.fspath(source),
        "output": os.fspath(output),
        "recipe": part.recipe,
        "feeds": part.feeds,
        "sites": part.sites,
        "linears": len(part.plan.linears),
        "kept_float": part.plan.kept_float,
        "reports": [dataclasses.asdict(report) for report in part.reports],
        "bytes_before": model_bytes(source),
        "bytes_after": model_bytes(output),
        "fusion": fusion.to_json() if fusion is not None else None,
        "seconds": part.seconds,
        "plan": plan_to_json(part.plan),
    }


def _widths(found: Mapping[str, Any]) -> list[str]:
    """Which widths were chosen, what was predicted and what was measured, in lines."""
    predicted, measured, sites = found["predicted"], found["measured"], found["sites"]
    packed = [site for site in sites if site["chosen"]]
    lines = [
        f"widths: {len(packed)} of {len(sites)} weights packed to 4 bits; all take {measured['bytes'] / 1e6:.4g} MB "
        f"(predicted {predicted['bytes'] / 1e6:.4g}, possible {found['bytes_least'] / 1e6:.4g} to "
        f"{found['bytes_most'] / 1e6:.4g})",
        f"widths: predicted error of all weights {predicted['error']:.3g} of the output's square"
        + (f", {100 * predicted['flips']:.3g} % of mask pixels" if predicted["flips"] else ""),
    ]
    if "points_lost" in measured:
        where = "images held out" if measured["held_out"] else "calibration images"
        lines.append(
            f"widths: measured {measured['points_lost']:.2f} points of mean IoU lost to float masks on {where}"
        )
    return lines


def outputs(source: Path, output: Path) -> list[Path]:
    """The model files that are written for a file or a folder."""
    return [output / name for name in (ENCODER, DECODER)] if source.is_dir() else [output]


def finish(source: Path, output: Path, result: Result, report: Path | None, plan: Path | None = None) -> None:
    """Write what was made, and say what was done; for commands."""
    fusion: Mapping[str, FusionReport | None] = result.save(output)
    written = outputs(source, output)
    if plan is not None:
        write_plans(plan, result.plans)
    summary: dict[str, Any] = {"left_out": result.left_out}
    if result.widths is not None:
        summary["widths"] = result.widths
        for line in _widths(result.widths):
            print(line)
    for name, file in zip(result.parts, written, strict=True):
        part = result.parts[name]
        found = _json(part, source / file.name if source.is_dir() else source, file, fusion[name])
        summary.update({name: found} if len(written) > 1 else found)
        before, after = found["bytes_before"] / 1e6, found["bytes_after"] / 1e6
        print(f"{file}: {before:.1f} MB -> {after:.1f} MB ({before / after:.1f}x smaller), {part.seconds:.0f} s")
        ran = fusion[name]
        for line in [*described(part), *(ran.lines() if ran is not None else [])]:
            print(f"  {line}")
    done = f"wrote {', '.join(map(str, [*written, *([plan] if plan is not None else [])]))}"
    print(done)
    for path in written:
        for left in unused_data(path):
            print(f"warning: {left} is not read by {path}; remove it if nothing else reads it", file=sys.stderr)
    write_report(report, summary, f"{done} all the same")


def settings(words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of the command line."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set {word}: wanted NAME=VALUE; python -m samq_onnx.methods lists the names")
        found[name] = value
    return found


def _site_bits(path: Path | None) -> object:
    if path is None:
        return None
    found = read_document(path, "wanted site -> role -> bits")
    if not isinstance(found, dict):  # null is none at all
        raise UserError(f"{path}: wanted an object, site -> role -> bits")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quantize", __doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="encoder.onnx, decoder.onnx or a folder of both (default: SAM-Nano)"
    )
    parser.add_argument("-o", "--output", type=output_path, help="output file, or folder when MODEL is one")
    parser.add_argument("--calib", type=Path, help="folder of calibration images (default: a few bundled ones)")
    parser.add_argument("--feeds", type=Path, metavar="FOLDER", help="calibrate on .npz files: input name -> array")
    parser.add_argument("--encoder", type=Path, help="float encoder, needed to calibrate a decoder alone")
    parser.add_argument(
        "--input-size", type=int, metavar="SIDE", help="of the square image, where the model leaves its sides free"
    )
    parser.add_argument(
        "--preprocess",
        choices=[one.name.lower() for one in Pixels],
        help="what pixels the encoder takes, where its graph does not tell",
    )
    parser.add_argument("--bits", default="w8a8", metavar="wXaY", help="of weights and activations, each 2 to 8")
    parser.add_argument(
        "--decoder-bits", metavar="wXaY", help="of a decoder (default: what the method makes of --bits)"
    )
    parser.add_argument("--strict", action="store_true", help="the same width in every quantized layer of both parts")
    parser.add_argument("--site-bits", type=Path, metavar="FILE", help="JSON of other widths: site -> role -> bits")
    goals = parser.add_mutually_exclusive_group()
    goals.add_argument(
        "--budget-mb", type=float, metavar="N", help="pack weights to 4 bits, cheapest first, until all take N MB"
    )
    goals.add_argument(
        "--max-loss", type=float, metavar="POINTS", help="pack as many as lose no more of mean IoU with float masks"
    )
    parser.add_argument("--method", choices=sorted(METHODS), default=DEFAULT_METHOD)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method; may be repeated"
    )
    parser.add_argument("--target", choices=sorted(TARGETS), default="samq", help="what runs it (default: %(default)s)")
    parser.add_argument("--stats", type=output_path, metavar="FILE", help="keep statistics there, and use them again")
    parser.add_argument("--minutes", type=float, metavar="N", help="that all of it may take, where a method learns")
    parser.add_argument(
        "--cache-gb", type=float, default=CACHE_GB, metavar="N", help="memory for activations while it learns"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="that it learns on (default: %(default)s)")
    parser.add_argument("--plan-out", type=check_writable, metavar="PLAN", help="write the plan to this file")
    add_strict(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the report to this file")
    return parser


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `samq_onnx.api`."""
    arguments = _parser().parse_args(argv)
    effort = Effort.of(arguments.minutes, arguments.cache_gb, arguments.device)
    ort.set_default_logger_severity(3)
    source: Path = arguments.model or assets.nano_dir()
    calibration: Path | None = arguments.feeds or arguments.calib
    if arguments.feeds is not None and arguments.calib is not None:
        raise UserError("--feeds and --calib are two ways to calibrate; give one")
    if calibration is None:
        calibration = assets.calibration_images()
        print(
            "warning: no --calib; calibrating on a few bundled microscopy images, give a folder of your own images",
            file=sys.stderr,
        )
    names = parts_of(source)
    order = Order.of(
        arguments.method, arguments.bits, arguments.target, settings(arguments.set), arguments.decoder_bits,
        arguments.strict, _site_bits(arguments.site_bits), names,
    )  # fmt: skip
    order = dataclasses.replace(order, hints=Hints.of(arguments.input_size, arguments.preprocess))
    goal = None
    if arguments.budget_mb is not None or arguments.max_loss is not None:
        goal = Goal(arguments.budget_mb, arguments.max_loss)
    folder = source.is_dir()
    default = (
        Path(f"{source.name}_{order.widths}") if folder else source.with_name(f"{source.stem}_{order.widths}.onnx")
    )
    output: Path = arguments.output or default
    reads = outputs(source, source)
    plans = [arguments.plan_out, constants_path(arguments.plan_out)] if arguments.plan_out else []
    written = outputs(source, output)
    check_files(
        [*reads, arguments.encoder, calibration, arguments.site_bits],
        [*written, arguments.json, arguments.stats, *plans],
    )
    for path in [*([] if folder else written), *([arguments.stats] if arguments.stats else [])]:
        check_writable(path)
    intake = Intake(arguments.strict_data, arguments.max_megapixels)
    pictures = (Calibration if arguments.feeds is None else ArrayFolder)(calibration, intake)
    if goal is not None and arguments.feeds is not None:
        raise UserError("--budget-mb and --max-loss look at masks of images; give --calib instead of --feeds")
    result = execute(
        order, source, pictures, encoder=arguments.encoder, stats=arguments.stats, goal=goal, effort=effort, say=print
    )  # fmt: skip
    finish(source, output, result, arguments.json, arguments.plan_out)
    pictures.intake.finish()
    return 0


make_callable(__name__, api.quantize)

if __name__ == "__main__":
    sys.exit(main())
