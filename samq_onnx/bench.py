# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.bench``: time, memory and size of models, side by side.

Each model runs in a process of its own, which is started again for a run where memory does not hold all of them. Runs
go round the models in turn, so that what else the machine does meets all of them alike. The floor is the time of the
model's multiply-accumulates at the rate of one large matrix product in ONNX Runtime, float or integer, measured in the
same rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from samq_onnx import roofline
from samq_onnx.command import command_parser, main_guard
from samq_onnx.errors import UserError
from samq_onnx.families import NOTHING, Hints, identify
from samq_onnx.families.hints import add_hints
from samq_onnx.files import check_writable, write_report
from samq_onnx.fusion import INTEGER_DESPITE_FLOAT_INPUT, INTEGER_TYPES, FusionReport, fusion_report
from samq_onnx.inventory import check_files
from samq_onnx.isolate import isolated
from samq_onnx.models import model_bytes, read_model
from samq_onnx.profiling import by_operator, profiled
from samq_onnx.progress import progress_bar
from samq_onnx.roofline import Rate
from samq_onnx.runtime import has_vnni
from samq_onnx.scratch import Scratch
from samq_onnx.worker import ORT_WORKER, Memory
from samq_onnx.worker_pool import WorkerArguments, WorkerPool

__all__ = ["Entry", "Measured", "bench", "main", "measure", "table"]

RUNS = 10
Feed = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model to measure.

    Attributes:
        name: what tables and messages call it.
        model: its path. feed: graph input name -> array.
        bytes: its size on disk.
        command: the process that serves it, see `samq_onnx.worker`.
    """

    name: str
    model: Path
    feed: Feed
    bytes: int
    command: Sequence[str] = ORT_WORKER

    @classmethod
    def of_file(cls, model: Path, name: str | None = None, prompts: int = 1, hints: Hints = NOTHING) -> Entry:
        """An ONNX file with inputs of its own shapes, see `samq_onnx.families.Part.sample_feed`.

        Raises:
            UserError: not a model, or one that no inputs can be made for.
        """
        feed = identify(read_model(model), os.fspath(model), hints).sample_feed(prompts)
        return cls(name or os.fspath(model), model, feed, model_bytes(model))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of each run after the first, and memory."""

    seconds: list[float]
    memory: Memory


def measure(entries: Sequence[Entry], runs: int = RUNS, threads: int | None = None) -> list[Measured]:
    """Run the models in turn, after one run of each that does not count.

    Raises:
        UserError: a number of runs or threads that cannot be, a model that does not open or does not run, or a process
            that died.
    """
    if runs < 1:
        raise UserError(f"runs must be 1 or more, got {runs}")
    if threads is not None and not 1 <= threads <= _processors():
        raise UserError(f"threads must be 1 to {_processors()}, the processors of this machine, got {threads}")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(Scratch())
        workers: list[WorkerArguments] = []
        for number, entry in enumerate(entries):
            feed = scratch / f"{number}.npz"
            np.savez(feed, **entry.feed)  # type: ignore[arg-type]
            workers.append((entry.name, entry.model, feed, threads, entry.command))
        pool = stack.enter_context(WorkerPool(workers))
        seconds: list[list[float]] = [[] for _ in entries]
        for _ in progress_bar(range(1 + runs), "bench", "round"):
            for number, times in enumerate(seconds):
                times.append(pool.run(number))
        return [Measured(times[1:], pool.memory(number)) for number, times in enumerate(seconds)]


def bench(
    entries: Sequence[Entry], runs: int = RUNS, threads: int | None = None, profile: bool = False
) -> dict[str, Any]:
    """Measure models and the machine's matrix products in the same rounds.

    Args:
        entries: the first is what the others are compared with.
        runs: that count, of each. threads: within an operator; None leaves the choice to the engine.
        profile: also the time by operator, of ONNX models.

    Returns:
        ``machine``; ``runs``; ``threads``; ``gemm``: shape, seconds and GMAC a second by kind; ``models``: for each
        name, bytes, seconds, memory in bytes, ratios to the first (above 1 is better), and for ONNX models
        multiply-accumulates, floor in seconds, median over floor, and the operators where asked for, each with its
        own multiply-accumulates and floor.

    Raises:
        UserError: as `measure`, or a model cannot be profiled for lack of memory.
    """
    with Scratch() as scratch:
        products = [_product(kind, scratch) for kind in roofline.KINDS]
        *measured, real, whole = measure([*entries, *products], runs, threads)
    best = {"float": min(real.seconds), "integer": min(whole.seconds)}
    rate = Rate(integers=roofline.MACS / best["integer"], floats=roofline.MACS / best["float"])
    rows = [
        _row(entry, one, entries[0], measured[0], rate, threads, profile)
        for entry, one in zip(entries, measured, strict=True)
    ]
    return {
        "machine": {
            "cpu": _cpu(), "processors": _processors(), "vnni": has_vnni(),
            "python": platform.python_version(), "onnxruntime": ort.__version__,
        },
        "runs": runs,
        "threads": threads,
        "gemm": {
            "shape": roofline.SHAPE,
            **{kind: {"seconds": one, "gmac_per_second": roofline.MACS / one / 1e9} for kind, one in best.items()},
        },
        "models": rows,
    }  # fmt: skip


def _product(kind: str, folder: Path) -> Entry:
    path = folder / f"{kind}.onnx"
    onnx.save(roofline.product(kind), path)
    return Entry.of_file(path, f"{kind} matrix product")


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def _row(
    entry: Entry, one: Measured, base: Entry, first: Measured, rate: Rate, threads: int | None, profile: bool
) -> dict[str, Any]:
    median = statistics.median(one.seconds)
    row: dict[str, Any] = {
        "name": entry.name,
        "model": os.fspath(entry.model),
        "bytes": entry.bytes,
        "seconds": {"median": median, "min": min(one.seconds), "max": max(one.seconds), "runs": one.seconds},
        "memory": dataclasses.asdict(one.memory),
        "ratios": {
            "speed": statistics.median(first.seconds) / median,
            "memory": first.memory.peak / one.memory.peak,
            "size": base.bytes / entry.bytes,
        },
    }
    if entry.command == ORT_WORKER:
        macs, operators = isolated(entry.name, _inspect, entry.model, entry.feed, threads, profile)
        floor = rate.floor(macs.integer_macs, macs.float_macs)
        row |= {"macs": macs.to_json(), "floor_seconds": floor, "times_floor": median / floor if floor else None}
        if operators is not None:
            row["operators"] = [one | _roofline(one, macs, rate) for one in operators]
    return row


def _roofline(operator: Mapping[str, Any], report: FusionReport, rate: Rate) -> dict[str, Any]:
    """Multiply-accumulates of an operator of one input type, and their seconds at the rates of the machine; 0 of one
    that ONNX Runtime fused only for the run that was timed."""
    whole, real = report.operators.get(operator["operator"], (0, 0))
    integer = operator["input"] in INTEGER_TYPES or operator["operator"] in INTEGER_DESPITE_FLOAT_INPUT
    whole, real = (whole, 0) if integer else (0, real)
    return {"macs": whole + real, "floor_seconds": rate.floor(whole, real)}


def _inspect(
    model: Path, feed: Feed, threads: int | None, profile: bool
) -> tuple[FusionReport, list[dict[str, Any]] | None]:
    """What a model multiplies and, where asked for, how long its operators take."""
    ort.set_default_logger_severity(3)
    return fusion_report(model, feed), by_operator(profiled(model, feed, threads=threads, runs=2)) if profile else None


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """The models of `bench`'s report as rows of text, headings first."""
    rows = [_cells(row) for row in report["models"]]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    seconds, memory, ratios = row["seconds"], row["memory"], row["ratios"]
    cells = {
        "model": row["name"],
        "seconds": f"{seconds['median']:.4g}",
        "min": f"{seconds['min']:.4g}",
        "max": f"{seconds['max']:.4g}",
        "faster": f"{ratios['speed']:.2f}x",
        "peak MB": f"{memory['peak'] / 1e6:.0f}",
        "runs add": "-" if memory["inference"] is None else f"{memory['inference'] / 1e6:.0f}",
        "less": f"{ratios['memory']:.2f}x",
        "file MB": f"{row['bytes'] / 1e6:.1f}",
        "smaller": f"{ratios['size']:.2f}x",
    }
    if "macs" not in row:
        return cells | dict.fromkeys(("GMAC", "integer", "floor", "over floor"), "-")
    macs = row["macs"]
    return cells | {
        "GMAC": f"{(macs['integer_macs'] + macs['float_macs']) / 1e9:.2f}",
        "integer": f"{macs['integer_share']:.0%}",
        "floor": f"{row['floor_seconds']:.4g}",
        "over floor": f"{row['times_floor']:.1f}x" if row["times_floor"] else "-",
    }


def _print(report: Mapping[str, Any]) -> None:
    rows = table(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]))
    shape, rates = report["gemm"]["shape"], {kind: report["gemm"][kind]["gmac_per_second"] for kind in roofline.KINDS}
    print(
        f"median, min and max seconds of {report['runs']} runs; "
        f"floor at {rates['float']:.0f} GMAC/s float and {rates['integer']:.0f} GMAC/s integer, "
        f"as a product of {'x'.join(map(str, shape))} reaches"
    )
    for row in report["models"]:
        if "operators" in row:
            print(f"\n{row['name']}: one run, by operator; floor: at the rates above")
            heads = f"{'ms':>10}{'share':>8}{'calls':>7}{'GMAC':>9}{'floor ms':>10}{'GMAC/s':>8}"
            print(f"{'operator':<34}{'input':<10}{heads}")
            for one in row["operators"]:
                seconds, gmacs = one["seconds"], one["macs"] / 1e9
                line = (
                    f"{one['operator']:<34}{one['input']:<10}{1e3 * seconds:10.2f}{one['share']:8.1%}{one['calls']:7d}"
                )
                if gmacs:
                    line += f"{gmacs:9.2f}{1e3 * one['floor_seconds']:10.1f}{gmacs / seconds:8.1f}"
                print(line)


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `bench`."""
    parser = command_parser("bench", __doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="the first is compared with the others")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each model that count (default: {RUNS})")
    parser.add_argument("--threads", type=int, help="threads within an operator (default: ONNX Runtime's choice)")
    add_hints(parser)
    parser.add_argument("--profile", action="store_true", help="also the time by operator")
    parser.add_argument("--json", type=check_writable, help="write all numbers to this file")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    check_files(arguments.models, [arguments.json])
    entries = [Entry.of_file(model, hints=Hints.given(arguments)) for model in arguments.models]
    report = bench(entries, arguments.runs, arguments.threads, arguments.profile)
    _print(report)
    write_report(arguments.json, report, "the numbers are above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
