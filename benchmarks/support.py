# SPDX-License-Identifier: Apache-2.0
"""What of the families of SAM is found and quantized, measured on tiny models with random weights.

    python benchmarks/support.py -o docs/support.md [--families TEXT ...] [--exporters NAME ...] [--models FOLDER]

Each family (`zoo.py`) is exported by PyTorch's two exporters, quantized to W8A8, compared with itself without the
library and with float, and asked for masks. A row whose package is not installed says so. Random weights say nothing
about accuracy; the signal-to-noise ratio only shows that what was quantized is what the float model computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import zoo
from markdown_table import markdown_table

import samq_onnx
from samq_onnx import assets, data, images
from samq_onnx.api import Quantized
from samq_onnx.command import main_guard
from samq_onnx.errors import UserError, shortened
from samq_onnx.files import atomic_path, check_writable
from samq_onnx.models import load_model
from samq_onnx.passes.lift import simplify
from samq_onnx.verify import verify

METHOD, BITS = "minmax", "w8a8"
IMAGES = 2  # to calibrate with
HEAD = (
    *("family", "exporter", "file", "attentions found", "attentions in codes", "linears in codes"),
    *("kept float", "integer share", "SQNR, dB", "same without library", "predictor"),
)
INTRODUCTION = f"""# What is found in which model

Made by `python benchmarks/support.py -o docs/support.md`. The models are tiny and have random weights; they are
quantized by {METHOD} at {BITS.upper()} and calibrated on {IMAGES} images. *Attentions found* counts those that are
lifted of those that the graph has. *Kept float* counts linear layers, of which the first and last stay in float on
purpose. *Integer share* is that of multiply-accumulates in the executed kernels, where first and last layers weigh more
than in models of full size. *SQNR* is that of the worst output. *Predictor*: `SamPredictor` gives masks of the image's
size for a point (p) and for a box (b).

"""


@dataclasses.dataclass
class Found:
    """Rows of the table, and what was refused, with the rows' names."""

    rows: list[list[str]] = dataclasses.field(default_factory=list)
    refused: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)


def attentions(path: Path) -> int:
    """How many softmaxes a graph has."""
    model = load_model(path)
    simplify(model)
    return sum(node.op_type == "Softmax" for node in model.graph.all_nodes())


def answered(folder: Path) -> str:
    """Which prompts a pair of files answers with masks."""
    try:
        predictor = samq_onnx.SamPredictor(folder / "encoder.onnx", folder / "decoder.onnx")
        rgb = images.load(data.image_paths(assets.demo_images())[0])
        predictor.set_image(rgb)
    except UserError as error:
        return shortened(error)
    kinds = ""
    point = {"point_coords": np.array([[60.0, 70.0]]), "point_labels": np.ones(1)}
    for kind, prompt in (("p", point), ("b", {"box": np.array([20.0, 30.0, 150.0, 120.0])})):
        try:
            kinds += kind if predictor.predict(**prompt)[0].shape[1:] == rgb.shape[:2] else ""
        except UserError:
            continue
    return kinds or "none"


def row(names: Sequence[str], source: Path, made: Path, part: Quantized, encoder: Path | None) -> list[str]:
    """A line of the table for a file."""
    fusion = part.save(made)
    found = verify(made, source, encoder)
    linears, kept = len(part.plan.linears), len(part.plan.kept_float)
    return [
        *names,
        f"{sum(part.sites.values())}/{attentions(source)}",
        str(len(part.plan.attentions)),
        f"{linears}/{linears + kept}",
        str(kept),
        f"{fusion.integer_share:.0%}" if fusion is not None else "",
        f"{min(value for value in found['output_sqnr_db'].values() if value is not None):.1f}",
        "yes" if found["same"] else "no",
    ]


def measured(family: str, exporter: str, folder: Path, calibration: Path, found: Found) -> None:
    """Export, quantize and compare the files of a family."""
    try:
        files = zoo.FAMILIES[family]()
    except UserError as error:
        found.rows.append([family, exporter, f"not built: {error}", *[""] * (len(HEAD) - 3)])
        return
    exported = []
    for file in files:
        path = folder / f"{file.role}.onnx"
        try:
            if not path.is_file():
                with atomic_path(path) as making:
                    zoo.export(file, exporter, making)
            exported.append(path)
        except Exception as error:  # exporters raise errors of any kind
            reason = f"not exported: {type(error).__name__}"
            found.rows.append([family, exporter, file.role, reason, *[""] * (len(HEAD) - 4)])
    pair = {path.stem for path in exported} >= {"encoder", "decoder"}
    sources = [path for path in exported if not (pair and path.stem in ("encoder", "decoder"))]
    quantized = folder / "quantized"
    quantized.mkdir(exist_ok=True)
    for source in [folder, *sources] if pair else sources:
        alone = source.is_file()
        try:
            result = samq_onnx.quantize(source, calibration, method=METHOD, bits=BITS)
        except UserError as error:
            reason = f"refused: {shortened(error)}"
            found.rows.append([family, exporter, source.stem if alone else "both", reason, *[""] * (len(HEAD) - 4)])
            continue
        made = []
        for name, part in result.parts.items():
            stem = source.stem if alone else name
            encoder = quantized / "encoder.onnx" if stem == "decoder" else None
            made.append(
                row([family, exporter, stem], folder / f"{stem}.onnx", quantized / f"{stem}.onnx", part, encoder)
            )
            lines = Counter(_reason(line) for report in part.reports for line in report.refused)
            if lines:
                found.refused[f"{family}, {exporter}, {stem}"] = lines
        for line in made:
            found.rows.append([*line, answered(quantized) if not alone and line[2] == "decoder" else ""])


def _reason(line: str) -> str:
    """A line of a report without the name of the site."""
    return line.split(": ", 1)[-1]


def page(found: Found) -> str:
    """The document."""
    sections = [
        f"- **{name}**: {'; '.join(f'{reason} ({count})' for reason, count in lines.items())}"
        for name, lines in found.refused.items()
    ]
    refused = "\n## What was not done, and why\n\n" + "\n".join(sections) + "\n" if sections else ""
    return INTRODUCTION + markdown_table([HEAD, *found.rows]) + refused


@main_guard
def main(argv: Iterable[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=check_writable, required=True, help="Markdown file")
    parser.add_argument("--families", nargs="*", default=[""], help="those whose names have one of these in them")
    parser.add_argument("--exporters", nargs="*", choices=zoo.EXPORTERS, default=list(zoo.EXPORTERS))
    parser.add_argument("--models", type=Path, help="folder that keeps what is exported, for a second run")
    arguments = parser.parse_args(None if argv is None else list(argv))
    found = Found()
    with tempfile.TemporaryDirectory() as scratch:
        calibration = Path(scratch) / "images"
        calibration.mkdir()
        for image in data.image_paths(assets.calibration_images())[:IMAGES]:
            shutil.copy(image, calibration)
        for family in zoo.FAMILIES:
            for exporter in arguments.exporters:
                if any(text.lower() in family.lower() for text in arguments.families):
                    folder = (arguments.models or Path(scratch)) / zoo.slug(family) / exporter
                    folder.mkdir(parents=True, exist_ok=True)
                    measured(family, exporter, folder, calibration, found)
                    with atomic_path(arguments.output) as path:  # a run that is ended leaves what it has
                        path.write_text(page(found))
                    print(f"{family}, {exporter}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
