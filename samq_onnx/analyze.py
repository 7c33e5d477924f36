# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.analyze``: a page that shows why a model loses what it loses when it is quantized."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.analysis.facts import site_facts
from samq_onnx.analysis.judge import Loss, OutputJudge
from samq_onnx.analysis.observe import Observed, observe
from samq_onnx.analysis.page import page
from samq_onnx.analysis.sensitivity import plan_trials, sensitivity
from samq_onnx.analysis.sites import site_runs
from samq_onnx.analysis.subject import Subject, by_method, by_plan, lowered
from samq_onnx.analysis.verdict import WORST, verdict
from samq_onnx.api import FLOAT_HASH, PARTS, Order, parts_of
from samq_onnx.command import command_parser, main_guard
from samq_onnx.data import Calibration
from samq_onnx.encoder import hinted
from samq_onnx.errors import UserError
from samq_onnx.families import Role, identify
from samq_onnx.families.hints import Hints, add_hints
from samq_onnx.feeds import Selection
from samq_onnx.files import atomic_path, check_writable, write_report
from samq_onnx.float_model import check_float
from samq_onnx.intake import Intake, add_limit, add_strict
from samq_onnx.inventory import check_files
from samq_onnx.methods import DEFAULT_METHOD, METHODS
from samq_onnx.models import load_model, model_sha256
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_file import constants_path, read_plans
from samq_onnx.quantize import outputs, settings
from samq_onnx.runtime import open_session, run_session

__all__ = ["analyze", "main"]

OBSERVED = 6  # inputs that histograms are of
TRIED = 2  # of them, that single sites are tried on


def analyze(
    source: Path,
    calibration: Calibration,
    order: Order,
    plans: Mapping[str, QuantPlan] | None = None,
    encoder: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Look at a float model, or a folder of encoder and decoder, and at what its plans cost.

    Args:
        order: makes the plans where none are given. encoder: float, for a decoder alone.
        say: is told what is going on.

    Returns:
        What the page shows: ``parts``, name -> ``verdict``, lines; ``sites``, the costliest first, each with
        ``losses`` (trial -> error and flips), ``tensors`` and ``channels``; ``loss`` of all together.

    Raises:
        UserError: unusable model or images, or a plan of another model.
    """
    names = parts_of(source)
    if plans is not None and set(plans) != set(names):
        raise UserError(f"{source}: the plan is one of {' and '.join(plans)}, wanted is one of {' and '.join(names)}")
    files = {name: source / PARTS[name] if source.is_dir() else source for name in names}
    parts = {}
    for name, file in files.items():
        say(f"{file}: looking")
        plan = plans[name] if plans is not None else None
        parts[name] = _part(name, file, calibration, order, plan, files.get("encoder", encoder))
    how = "a given plan" if plans is not None else f"method {order.method.name}, {str(order.widths).upper()}"
    return {"model": os.fspath(source), "how": f"Planned by {how}.", "parts": parts}


def _part(
    name: str, file: Path, calibration: Calibration, order: Order, plan: QuantPlan | None, encoder: Path | None
) -> dict[str, Any]:
    started = time.perf_counter()
    model = load_model(file)
    check_float(model, file)
    if plan is not None and plan.metadata.get(FLOAT_HASH) != model_sha256(file):
        raise UserError(f"{file}: the plan was made for another model; give the float model that was quantized")
    part = identify(model, os.fspath(file), order.hints)
    needed = encoder if part.role is Role.DECODER or name != "encoder" else None  # a needless one is refused
    feeds = part.feeds(calibration, hinted(needed, part, order.hints), file.stem)
    few = Selection(feeds, sorted({len(feeds) * number // OBSERVED for number in range(OBSERVED)}))
    seen: list[Observed] = []

    def look(lifted: Lifted) -> None:
        seen.append(observe(lifted, few, label=f"{file.stem}: as it is"))

    subjects: AbstractContextManager[Subject]
    if plan is not None:
        subjects = by_plan(model, plan, label=os.fspath(file), look=look)
    else:
        scheme = order.scheme(name, part)
        subjects = by_method(model, part, feeds, order.method, scheme, order.target, label=file.stem, look=look)
    with subjects as subject:
        look(subject.lifted)
        judge = OutputJudge(part)
        tried = few[: max(1, min(TRIED, len(few)))]
        runs = site_runs(subject.lifted, subject.plan, subject.rounded)
        trials = plan_trials(subject.plan, runs)
        alone = {site: trial[:1] for site, trial in trials.items()}
        found = sensitivity(subject.lifted, runs, alone, tried, judge, label=file.stem)
        worst = {site: trials[site][1:] for site in found.worst()[:WORST]}
        roles = sensitivity(subject.lifted, runs, worst, tried, judge, label=f"{file.stem}, roles")
        losses = {site: {**one, **roles.losses.get(site, {})} for site, one in found.losses.items()}
        before, after = seen
        sites = site_facts(subject, before, after, losses)
        quantized = lowered(load_model(file), subject.plan)
    whole = _whole(file, quantized, tried, judge)
    notes = [f"Histograms of {len(few)} inputs, single sites tried on {len(tried)}."]
    planned = {*subject.plan.linears, *subject.plan.attentions}
    names = [*(one.name for one in subject.lifted.linears), *(site.name for site in subject.lifted.attentions)]
    in_float = [name for name in names if name not in planned]
    if in_float:
        notes.append(f"Not listed, as they stay in float: {', '.join(in_float)}.")
    if found.weighted:
        notes.append("Errors are measured at the end of a site's block and weighted by what the rest makes of them.")
    if plan is not None and subject.plan.constants:
        notes.append("Weights that the plan holds rounded are not known in float: they seem to cost nothing.")
    (judged,) = judge.outputs
    return {
        "verdict": verdict(sites, whole, judged),
        "loss": whole,
        "judged": judged,
        "notes": notes,
        "sites": sites,
        "seconds": time.perf_counter() - started,
    }


def _whole(file: Path, quantized: ir.Model, feeds: Selection | Sequence[Any], judge: OutputJudge) -> dict[str, Any]:
    """Loss of the quantized model, mean over inputs."""
    sessions = open_session(file), open_session(ir.to_proto(quantized).SerializeToString())
    losses = []
    for index, feed in enumerate(feeds):
        one, two = (
            dict(zip(judge.outputs, run_session(session, feed, os.fspath(file), judge.outputs), strict=True))
            for session in sessions
        )
        losses.append(judge(index, one, two))
    return vars(Loss.mean(losses))


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `analyze`."""
    parser = command_parser("analyze", __doc__)
    parser.add_argument("model", type=Path, help="float model, or folder of encoder.onnx and decoder.onnx")
    parser.add_argument("--calib", type=Path, required=True, help="folder of calibration images")
    parser.add_argument(
        "-o", "--output", type=check_writable, required=True, metavar="HTML", help="write the page here"
    )
    parser.add_argument("--plan", type=Path, help="what quantize --plan-out wrote (default: plan now)")
    parser.add_argument("--method", choices=sorted(METHODS), default=DEFAULT_METHOD, help="that plans without --plan")
    parser.add_argument("--bits", default="w8a8", metavar="wXaY", help="of weights and activations, each 2 to 8")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method")
    parser.add_argument("--encoder", type=Path, help="float encoder, needed for a decoder alone")
    add_hints(parser)
    add_strict(parser)
    add_limit(parser)
    parser.add_argument("--json", type=check_writable, help="write the numbers here")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    source: Path = arguments.model
    plan = [arguments.plan, constants_path(arguments.plan)] if arguments.plan else []
    check_files(
        [*outputs(source, source), arguments.encoder, arguments.calib, *plan], [arguments.output, arguments.json]
    )
    names = parts_of(source)
    order = Order.of(arguments.method, arguments.bits, "samq", settings(arguments.set), parts=names)
    order = dataclasses.replace(order, hints=Hints.given(arguments))
    pictures = Calibration(arguments.calib, Intake(arguments.strict_data, arguments.max_megapixels))
    plans = read_plans(arguments.plan) if arguments.plan else None
    report = analyze(source, pictures, order, plans, arguments.encoder)
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    for name, part in report["parts"].items():
        print(f"{name}:")
        for line in part["verdict"]:
            print(f"  {line}")
    print(f"wrote {arguments.output}")
    write_report(arguments.json, report, f"the page is in {arguments.output}")
    pictures.intake.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
