# SPDX-License-Identifier: Apache-2.0
"""Time, memory and size of SAM with random weights: float, other quantizers and ours, measured side by side.

    python benchmarks/speed.py --model vit_b -o FOLDER
    python benchmarks/full_size.py -o FOLDER; python benchmarks/speed.py --encoder FOLDER/mobile_sam.onnx -o FOLDER

FOLDER/vit_b gets speed.md, speed.json, speed.png and every model; a second run measures the models that are there. An
encoder of another family is a file, which is measured alone.
OpenVINO and NNCF need the extra samq_onnx[bench]. A row that cannot be had says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import builders
import onnxruntime as ort
from bar_chart import bar_chart
from markdown_table import markdown_table

from samq_onnx import assets, data
from samq_onnx.bench import RUNS, Entry, bench, measure, table
from samq_onnx.command import main_guard
from samq_onnx.errors import UserError
from samq_onnx.export.requirements import check_requirements
from samq_onnx.files import atomic_path, check_writable, write_json
from samq_onnx.isolate import isolated
from samq_onnx.quantize import DECODER, ENCODER

MODELS = ("nano", "vit_b", "vit_l", "vit_h")
FLOAT, BATCHED = "float", "decoder_batched.onnx"
IMAGES = 2  # to calibrate with
PROMPTS = 64
OPENVINO_WORKER = str(Path(__file__).with_name("openvino_worker.py"))


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to run the encoder.

    Attributes:
        name: in tables.
        build: makes its file from (float file, file, folder of images); None where the float file is run.
        openvino: precision of float layers, where it is OpenVINO that runs it.
        package: what it needs of the extra.
    """

    name: str
    build: Callable[[Path, Path, Path], None] | None = None
    openvino: str | None = None
    package: str = "onnxruntime"


MINMAX = "minmax"
OURS = {bits: functools.partial(builders.ours, bits) for bits in ("w8a8", "w4a4")}
ROWS = {
    FLOAT: Row("ONNX Runtime float"),
    "dynamic": Row("ONNX Runtime quantize_dynamic", builders.ort_dynamic),
    "static": Row("ONNX Runtime quantize_static", builders.ort_static),
    "openvino-f32": Row("OpenVINO f32", None, "f32", "openvino"),
    "openvino-bf16": Row("OpenVINO bf16", None, "bf16", "openvino"),
    "nncf-int8": Row("OpenVINO, NNCF int8", builders.nncf_int8, "f32", "nncf"),
    **{bits: Row(f"samq_onnx {bits.upper()}", build) for bits, build in OURS.items()},
    MINMAX: Row("samq_onnx W8A8, minmax", builders.minmax),
}


class Bench:
    """The rows of one model type, their files in one folder."""

    def __init__(self, model: str | Path, folder: Path, runs: int, threads: int | None) -> None:
        self.folder, self.runs, self.threads = folder, runs, threads
        self.calibration = folder / "images"
        self.calibration.mkdir(parents=True, exist_ok=True)
        for image in data.image_paths(assets.calibration_images())[:IMAGES]:
            shutil.copy(image, self.calibration)
        if isinstance(model, Path):
            with atomic_path(folder / FLOAT / ENCODER) as temporary:
                shutil.copy(model, temporary)
        elif not (folder / FLOAT / BATCHED).is_file():
            check_requirements()
            isolated(f"export of {model}", builders.export_random, model, folder / FLOAT)

    def encoders(self, keys: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The report on the rows that can be had, and why the others cannot."""
        entries, missing = [], {}
        for key in ROWS:
            if key in keys:
                try:
                    entries.append(self._entry(key, ROWS[key]))
                except UserError as error:
                    if key == FLOAT:
                        raise
                    name = ROWS[key].name
                    missing[name] = str(error).removeprefix(f"{name}: ")
                    print(f"{name}: {missing[name]}", flush=True)
        return bench(entries, self.runs, self.threads), missing

    def decoders(self, file: str, prompts: int) -> dict[str, Any]:
        """The report on a decoder, float and ours."""
        entries = [Entry.of_file(self.folder / FLOAT / file, ROWS[FLOAT].name, prompts)]
        for bits, build in OURS.items():
            path = self._built(f"{bits} {file}", self.folder / bits / file, build, self.folder / FLOAT / ENCODER)
            entries.append(Entry.of_file(path, ROWS[bits].name, prompts))
        return bench(entries, self.runs, self.threads)

    def _entry(self, key: str, row: Row) -> Entry:
        if importlib.util.find_spec(row.package) is None:
            raise UserError(f"{row.package} is not installed; run: pip install samq_onnx[bench]")
        entry = Entry.of_file(self.folder / FLOAT / ENCODER, row.name)
        if row.build is not None:
            path = self.folder / key / (ENCODER if row.openvino is None else "encoder.xml")
            self._built(row.name, path, row.build)
            size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
            entry = dataclasses.replace(entry, model=path, bytes=size)
        if row.openvino is not None:
            entry = dataclasses.replace(entry, command=(sys.executable, OPENVINO_WORKER, row.openvino))
        measure([entry], 1, self.threads)  # alone first: a failure here costs this row only
        return entry

    def _built(self, name: str, path: Path, build: Callable[..., None], *further: Path) -> Path:
        if not path.is_file():
            print(f"{name}: building ...", flush=True)
            try:
                isolated(
                    name, build, self.folder / FLOAT / path.with_suffix(".onnx").name, path, self.calibration, *further
                )
            except UserError:
                raise
            except Exception as error:  # each quantizer raises its own kinds
                raise UserError(f"does not build ({type(error).__name__}: {error})") from error
        return path


def _encoder_table(report: dict[str, Any], missing: dict[str, str]) -> str:
    rows = table(report)
    blank = [""] * (len(rows[0]) - 2)
    return markdown_table([*rows, *([name, reason, *blank] for name, reason in missing.items())])


def _decoder_table(reports: dict[int, dict[str, Any]]) -> str:
    rows = [["decoder", "prompts at once", "prompts a second", "faster", "peak MB"]]
    for prompts, report in reports.items():
        for row in report["models"]:
            rate = prompts / row["seconds"]["median"]
            peak = row["memory"]["peak"] / 1e6
            rows.append([row["name"], str(prompts), f"{rate:.1f}", f"{row['ratios']['speed']:.2f}x", f"{peak:.0f}"])
    return markdown_table(rows)


def _write(output: Path, report: dict[str, Any], missing: dict[str, str], decoders: dict[int, dict[str, Any]]) -> str:
    """Write what is known so far; the tables."""
    write_json(output / "speed.json", {"encoder": report, "not_measured": missing, "decoder": decoders})
    text = _encoder_table(report, missing) + (f"\n{_decoder_table(decoders)}" if decoders else "")
    with atomic_path(output / "speed.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    ours = {ROWS[key].name for key in (*OURS, MINMAX)}
    bars = []
    for row in report["models"]:
        seconds, speed = row["seconds"]["median"], row["ratios"]["speed"]
        bars.append((row["name"], seconds, f"{seconds:.3g} s   {speed:.2f}x", row["name"] in ours))
    with atomic_path(output / "speed.png") as temporary:
        bar_chart(f"{output.name} encoder: median seconds per image", bars).save(temporary)
    return text


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_of = parser.add_mutually_exclusive_group(required=True)
    subject_of.add_argument("--model", choices=MODELS)
    subject_of.add_argument("--encoder", type=Path, help="file of an encoder of another family")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for models and results")
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=[key for key in ROWS if key != MINMAX], help="beside float"
    )
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"of the batched decoder (default: {PROMPTS})")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    encoder: Path | None = arguments.encoder
    output: Path = arguments.output / (arguments.model if encoder is None else encoder.stem)
    check_writable(output / "speed.json")
    subject = Bench(encoder or arguments.model, output, arguments.runs, arguments.threads)
    report, missing = subject.encoders([FLOAT, *arguments.rows])
    decoders: dict[int, dict[str, Any]] = {}
    _write(output, report, missing, decoders)
    for file, prompts in ((DECODER, 1), (BATCHED, arguments.prompts)) if encoder is None else ():
        try:
            decoders[prompts] = subject.decoders(file, prompts)
        except UserError as error:
            missing[f"decoder, {prompts} prompts"] = str(error)
    print(f"\n{_write(output, report, missing, decoders)}\nwrote {output}/speed.md, speed.json, speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
