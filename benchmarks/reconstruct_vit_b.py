# SPDX-License-Identifier: Apache-2.0
"""What learning costs at real size: ViT-B at 1024 pixels with random weights and planted pathologies.

    python benchmarks/reconstruct_vit_b.py --calib IMAGES -o FOLDER --minutes 8 --device cuda

The encoder is learned by each method for its share of the minutes. FOLDER gets reconstruct.json and reconstruct.md:
seconds of an iteration and the loss before and after of each unit, memory, and how long the iterations of the paper
would take on this machine with as many images. Random weights say nothing about accuracy. The models are made in
FOLDER, once; ``--model`` takes another folder of encoder.onnx and decoder.onnx.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from markdown_table import markdown_table

from samq_onnx.api import Order, execute
from samq_onnx.command import main_guard
from samq_onnx.data import Calibration
from samq_onnx.files import atomic_folder, atomic_path, check_writable, write_json
from samq_onnx.methods import configured, parameters
from samq_onnx.quantize import DEVICES, Effort

METHODS = ("ptq4sam-l", "saq-sam", "auto")
PAPERS = {"ptq4sam-l": 20_000, "saq-sam": 2000, "auto": 20_000}  # iterations of a unit
MOST = "1000000"  # so that the minutes decide
IMAGES = 32  # of a full run
HEAD = ("method", "unit", "iterations", "seconds of one", "loss before", "loss after")


@dataclasses.dataclass
class Descent:
    """A unit, or the whole model, while it is learned."""

    label: str
    iterations: int
    seconds: float


@contextmanager
def _watched() -> Iterator[list[Descent]]:
    """Descents that happen, with the time that they take."""
    from samq_onnx.reconstruct import engine, trainer

    seen: list[Descent] = []
    real = engine.descend

    def descend(*arguments: Any, label: str, **more: Any) -> list[float]:
        started = time.monotonic()
        losses = real(*arguments, label=label, **more)
        seen.append(Descent(label, len(losses), time.monotonic() - started))
        return losses

    engine.descend = trainer.descend = descend
    try:
        yield seen
    finally:
        engine.descend = trainer.descend = real


def memory(device: str) -> dict[str, float]:
    """GB at most so far, of the process and of the GPU."""
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def learned(method: str, source: Path, images: Path, bits: str, effort: Effort, say: Callable[[str], None]) -> Any:
    """Quantize the encoder of a folder; what there is to say of it."""
    settings = (
        {"iterations": MOST} if "iterations" in {one.name for one in parameters(type(configured(method)))} else {}
    )
    order = Order.of(method, bits, "samq", settings, None, True, None, ("model",))
    started = time.monotonic()
    with _watched() as descents:
        result = execute(order, source / "encoder.onnx", Calibration(images), effort=effort, say=say)
    seconds = time.monotonic() - started
    (part,) = result.parts.values()
    units = [line for report in part.reports if report.name == "reconstruction by units" for line in report.done]
    refused = [line for report in part.reports for line in report.refused if "reconstruction" in line]
    by_unit = [one for one in descents if not one.label.endswith(": learning")]
    learning = sum(one.seconds for one in descents)
    late = sum("no time left" in line for line in refused)
    each = sum(one.seconds / one.iterations for one in by_unit) * (1 + late / max(1, len(by_unit)))
    count = len(Calibration(images).images)
    others = IMAGES / count * (seconds - learning)  # nearly all of it goes through the images
    return {
        "method": method,
        "bits": bits,
        "images": count,
        "seconds": seconds,
        "descents": [dataclasses.asdict(one) for one in descents],
        "units": units,
        "refused": refused,
        "memory_gb": memory(effort.device),
        "full_run_hours": (PAPERS[method] * each + others) / 3600 if by_unit else None,
    }


def _told(record: dict[str, Any]) -> str:
    """A method in a line."""
    gb = ", ".join(f"{value:.1f} GB of {name}" for name, value in record["memory_gb"].items())
    hours = record["full_run_hours"]
    full = "not known, as nothing was learned" if hours is None else f"{hours:.1f} hours"
    return (
        f"**{record['method']}** {record['bits']}, {record['images']} images: {record['seconds']:.0f} s, {gb}. "
        f"With {PAPERS[record['method']]} iterations a unit and {IMAGES} images: {full}."
    )


def page(records: Sequence[dict[str, Any]]) -> str:
    """The Markdown."""
    rows = []
    for record in records:
        by_unit = [one for one in record["descents"] if not one["label"].endswith(": learning")]
        told = [line.rsplit(": loss ", 1) for line in record["units"]]
        for one, (unit, losses) in zip(by_unit, told, strict=False):
            before, after = losses.split(" -> ")
            seconds = one["seconds"] / one["iterations"]
            rows.append([record["method"], unit, str(one["iterations"]), f"{seconds:.3f}", before, after])
    return "\n\n".join(map(_told, records)) + "\n\n" + markdown_table([HEAD, *rows])


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", type=Path, required=True, help="folder of images; few are enough for the time")
    parser.add_argument("--model", type=Path, help="folder of float models (default: ViT-B with random weights)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--minutes", type=float, default=8, help="for all methods together (default: 8)")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    check_writable(arguments.output / "reconstruct.json")
    arguments.output.mkdir(parents=True, exist_ok=True)
    source: Path = arguments.model or arguments.output / "vit_b_hard"
    if not source.is_dir():
        from builders import export_random
        from pathology import plant

        with atomic_folder(arguments.output / "vit_b") as folder:
            export_random("vit_b", folder)
        plant(arguments.output / "vit_b", source)
    records: list[dict[str, Any]] = []
    ends = time.monotonic() + 60 * arguments.minutes
    for number, method in enumerate(arguments.methods):
        minutes = max(0.1, (ends - time.monotonic()) / 60 / (len(arguments.methods) - number))
        effort = Effort.of(minutes, device=arguments.device)
        records.append(learned(method, source, arguments.calib, arguments.bits, effort, print))
        write_json(arguments.output / "reconstruct.json", records)
        with atomic_path(arguments.output / "reconstruct.md") as temporary:
            temporary.write_text(page(records))
    print(page(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
