# SPDX-License-Identifier: Apache-2.0
"""What of the families of SAM is found and quantized, measured on tiny models with random weights.

    python benchmarks/support.py -o docs/support.md [--families TEXT ...] [--exporters NAME ...] [--models FOLDER]

Each family (`zoo`) is exported by PyTorch's two exporters, and SAM itself by all that rewrites files; all are quantized
to W8A8, compared with themselves without the library and with float, and asked for masks. A row whose package is not
installed says so. Random weights say nothing about accuracy; the signal-to-noise ratio only shows that what was
quantized is what the float model computes.

With --models a second run goes on where the first ended: files are kept, and rows that the same code made of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from markdown_table import markdown_table

import samq_onnx
from samq_onnx import assets, data, images, passes
from samq_onnx.api import Quantized
from samq_onnx.command import main_guard
from samq_onnx.errors import UserError, shortened
from samq_onnx.files import atomic_path, check_writable, write_json
from samq_onnx.models import load_model
from samq_onnx.passes.lift import lift
from samq_onnx.passes.normal import normalise
from samq_onnx.runtime import open_session
from samq_onnx.verify import verify

METHOD, BITS, WEIGHT_BITS = "minmax", "w8a8", 8
IMAGES = 2  # to calibrate with
HEAD = (
    *("family", "exporter", "file", "attentions found", "projections traced", "attentions in codes"),
    *("linears in codes", "integer share", "SQNR, dB", "same without library", "predictor"),
)
INTRODUCTION = f"""# What is found in which model

Made by `python benchmarks/support.py -o docs/support.md`. The models are tiny and have random weights; they are
quantized by {METHOD} at {BITS.upper()} and calibrated on {IMAGES} images. *Attentions found* counts those that are
lifted of those that the graph has. *Projections traced* counts the linear layers around them that are known, four for
each. *Linears in codes*: of all; the first and last layers stay in float on purpose. *Integer share* is that of
multiply-accumulates in the executed kernels, where first and last layers weigh more than in models of full size. *SQNR*
is that of the worst output of more than one number a prompt. *Same without library*: bit for bit. *Predictor*:
`SamPredictor` gives masks of the image's size for a point (p) and for a box (b).

"""


@dataclasses.dataclass
class Found:
    """Rows of the table, and what was refused, with the rows' names."""

    rows: list[list[str]] = dataclasses.field(default_factory=list)
    refused: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


def attentions(path: Path) -> tuple[str, str]:
    """How many of the softmaxes of a graph are lifted, and how many of their projections are known."""
    model = load_model(path)
    normalise(model, WEIGHT_BITS)
    count = sum(node.op_type == "Softmax" for node in model.graph.all_nodes())
    sites = lift(model).attentions
    traced = sum(part is not None for site in sites for part in (site.q, site.k, site.v, site.out))
    return f"{len(sites)}/{count}", f"{traced}/{4 * count}"


def answered(folder: Path) -> str:
    """Which prompts a pair of files answers with masks."""
    try:
        predictor = samq_onnx.SamPredictor(folder / "encoder.onnx", folder / "decoder.onnx")
        rgb = images.load(data.image_paths(assets.demo_images())[0])
        predictor.set_image(rgb)
    except UserError as error:
        return _shown(error)
    kinds = ""
    point = {"point_coords": np.array([[60.0, 70.0]]), "point_labels": np.ones(1)}
    for kind, prompt in (("p", point), ("b", {"box": np.array([20.0, 30.0, 150.0, 120.0])})):
        try:
            kinds += kind if predictor.predict(**prompt)[0].shape[1:] == rgb.shape[:2] else ""
        except UserError:
            continue
    return kinds or "none"


def _shown(error: Exception) -> str:
    """An error without the folder that files lie in."""
    words = [Path(word).name if word.startswith("/") else word for word in shortened(error).split(" ")]
    return " ".join(words).replace("|", "/")


def _is_map(shape: Sequence[int | str]) -> bool:
    """Whether an output has more than one number for each prompt."""
    return any(isinstance(side, int) and side != 1 for side in shape)


def _sqnr(made: Path, values: dict[str, float | None]) -> str:
    shapes = {port.name: port.shape for port in open_session(made).get_outputs()}
    maps = [value for name, value in values.items() if value is not None and _is_map(shapes[name])]
    return f"{min(maps):.1f}" if maps and math.isfinite(min(maps)) else "inf"


def row(names: Sequence[str], source: Path, made: Path, part: Quantized, encoder: Path | None) -> list[str]:
    """A line of the table for a file."""
    fusion = part.save(made)
    found = verify(made, source, encoder)
    linears, kept = len(part.plan.linears), len(part.plan.kept_float)
    return [
        *names,
        *attentions(source),
        str(len(part.plan.attentions)),
        f"{linears}/{linears + kept}",
        f"{fusion.integer_share:.0%}" if fusion is not None else "",
        _sqnr(made, found["output_sqnr_db"]),
        "yes" if found["same"] else "no",
    ]


def _blank(*cells: str) -> list[str]:
    return [*cells, *[""] * (len(HEAD) - len(cells))]


def measured(family: str, exporter: str, folder: Path, calibration: Path) -> Found:
    """Export, quantize and compare the files of a family."""
    found = Found()
    try:
        files = zoo.FAMILIES[family]()
    except UserError as error:
        found.rows.append(_blank(family, exporter, f"not built: {error}"))
        return found
    exported = []
    for file in files:
        path = folder / f"{file.role}.onnx"
        try:
            if not path.is_file():
                with atomic_path(path) as making:
                    zoo.export(file, exporter, making)
            exported.append(path)
        except Exception as error:  # exporters raise errors of any kind
            reason = str(error) if isinstance(error, UserError) else type(error).__name__
            found.rows.append(_blank(family, exporter, file.role, f"not exported: {reason}"))
    pair = {path.stem for path in exported} >= {"encoder", "decoder"}
    sources = [path for path in exported if not (pair and path.stem in ("encoder", "decoder"))]
    quantized = folder / "quantized"
    quantized.mkdir(exist_ok=True)
    for source in [folder, *sources] if pair else sources:
        alone = source.is_file()
        try:
            result = samq_onnx.quantize(source, calibration, method=METHOD, bits=BITS)
            made = []
            for name, part in result.parts.items():
                stem = source.stem if alone else name
                encoder = quantized / "encoder.onnx" if stem == "decoder" and not alone else None
                target = quantized / f"{stem}.onnx"
                made.append(row([family, exporter, stem], folder / f"{stem}.onnx", target, part, encoder))
                lines = Counter(line.split(": ", 1)[-1] for report in part.reports for line in report.refused)
                if lines:
                    found.refused[f"{family}, {exporter}, {stem}"] = dict(lines)
            found.rows += [[*line, answered(quantized) if not alone and line[2] == "decoder" else ""] for line in made]
        except UserError as error:
            found.rows.append(_blank(family, exporter, source.stem if alone else "both", f"refused: {_shown(error)}"))
        except Exception as error:  # a defect of ours is to be seen in the table
            traceback.print_exc()
            reason = f"fails: {type(error).__name__}"
            found.rows.append(_blank(family, exporter, source.stem if alone else "both", reason))
    return found


def code() -> str:
    """A hash of all code that a row depends on, but for other packages."""
    total = hashlib.sha256()
    folders = {Path(folder) for module in (samq_onnx, passes, zoo) for folder in module.__path__}
    files = [path for folder in folders for suffix in ("py", "so") for path in folder.rglob(f"*.{suffix}")]
    for path in sorted({*files, Path(__file__)}):
        total.update(path.read_bytes())
    return total.hexdigest()


def kept(path: Path, version: str) -> Found | None:
    """Rows that the same code made."""
    if not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text())
    return Found(held["rows"], held["refused"]) if held["code"] == version else None


def page(found: Sequence[Found]) -> str:
    """The document."""
    sections = [
        f"- **{name}**: {'; '.join(f'{reason} ({count})' for reason, count in lines.items())}"
        for one in found
        for name, lines in one.refused.items()
    ]
    refused = "\n## What was not done, and why\n\n" + "\n".join(sections) + "\n" if sections else ""
    return INTRODUCTION + markdown_table([HEAD, *(line for one in found for line in one.rows)]) + refused


@main_guard
def main(argv: Iterable[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=check_writable, required=True, help="Markdown file")
    parser.add_argument("--families", nargs="*", default=[""], help="those whose names have one of these in them")
    parser.add_argument("--exporters", nargs="*", choices=zoo.EXPORTERS, default=list(zoo.EXPORTERS))
    parser.add_argument("--models", type=Path, help="folder that keeps what is exported, for a second run")
    arguments = parser.parse_args(None if argv is None else list(argv))
    found, version = [], code()
    with tempfile.TemporaryDirectory() as scratch:
        calibration = Path(scratch) / "images"
        calibration.mkdir()
        for image in data.image_paths(assets.calibration_images())[:IMAGES]:
            shutil.copy(image, calibration)
        for family in zoo.FAMILIES:
            for exporter in zoo.exporters(family):
                chosen = any(text.lower() in family.lower() for text in arguments.families)
                if not chosen or exporter not in arguments.exporters:
                    continue
                folder = (arguments.models or Path(scratch)) / zoo.slug(family) / zoo.slug(exporter)
                folder.mkdir(parents=True, exist_ok=True)
                rows = folder / "rows.json"
                one = kept(rows, version)
                if one is None:
                    one = measured(family, exporter, folder, calibration)
                    write_json(rows, {"code": version, "rows": one.rows, "refused": one.refused})
                found.append(one)
                with atomic_path(arguments.output) as path:  # a run that is ended leaves what it has
                    path.write_text(page(found))
                print(f"{family}, {exporter}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
