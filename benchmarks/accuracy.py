# SPDX-License-Identifier: Apache-2.0
"""Accuracy of SAM-Nano by method, width and prompt, beside other quantizers and on a model that is hard to quantize.

    python benchmarks/accuracy.py --calib DATA/calib --data DATA/val -o FOLDER
    python benchmarks/accuracy.py ... --rows samq:probabilities=uniform@w4a4 samq@w4a4-strict --peers
    python benchmarks/accuracy.py ... --table big-agq --set iterations=500 --limit 4

FOLDER gets accuracy.md, accuracy.json and accuracy.png, written after each row. A row that the JSON has with the same
settings is not measured again; one that failed is. After a change of the code, take another FOLDER. ``hard`` is
SAM-Nano with the pathologies of SAM-B planted (`pathology`), one model for each seed, each of which computes what
SAM-Nano does. Tables of the papers have names (`accuracy_tables`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from accuracy_report import Results
from accuracy_row import FLOAT, Row
from accuracy_tables import TABLES
from peers import PEERS, quantize_by

from samq_onnx import assets
from samq_onnx.api import DECODER, ENCODER, quantize
from samq_onnx.command import main_guard
from samq_onnx.data import image_paths
from samq_onnx.errors import UserError
from samq_onnx.evaluate import PROMPTS, evaluate
from samq_onnx.files import check_writable
from samq_onnx.methods import METHODS, Widths
from samq_onnx.quantize import settings
from samq_onnx.scratch import Scratch

NANO, HARD = "nano", "hard"
STRICT = {"no": (False,), "yes": (True,), "both": (False, True)}


def models(names: Sequence[str], seeds: Sequence[int], output: Path) -> dict[str, Path]:
    """Folders of float models by their titles; hard ones are made where they are missing."""
    found: dict[str, Path] = {}
    if NANO in names:
        found["SAM-Nano"] = assets.nano_dir()
    for seed in seeds if HARD in names else ():
        folder = output / f"{HARD}_{seed}"
        if not folder.is_dir():
            from pathology import plant

            plant(assets.nano_dir(), folder, seed=seed)
        found[f"SAM-Nano-hard, seed {seed}"] = folder
    return found


def measured(row: Row, source: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row of a float model gives: seconds of calibration, and the report of evaluate on each prompt.

    Raises:
        Exception: whatever a quantizer raises.
    """
    with Scratch(arguments.output) as folder:
        started = time.perf_counter()
        if row == FLOAT:
            folder = source
        elif row.method in PEERS:
            quantize_by(row.method, source, folder, arguments.calib, arguments.nncf_python)
        else:
            quantize(
                source, arguments.calib,
                method=row.method, bits=row.bits, strict=row.strict, settings=dict(row.settings),
                minutes=arguments.minutes,
            ).save(folder)  # fmt: skip
        seconds = time.perf_counter() - started
        return {"seconds": seconds} | {
            prompt: evaluate(
                folder / ENCODER, folder / DECODER, arguments.data, prompt, arguments.limit, arguments.instances,
                against=source if row != FLOAT else None,
            )
            for prompt in PROMPTS
        }  # fmt: skip


def wanted(arguments: argparse.Namespace) -> list[Row]:
    """The rows, float first.

    Raises:
        UserError: a method, parameter or width that there is not.
    """
    grid = [
        Row(method, bits, (), strict)
        for method in arguments.methods
        for bits in arguments.bits
        for strict in STRICT[arguments.strict]
    ]
    ours = TABLES[arguments.table] if arguments.table else grid
    if arguments.rows is not None:
        ours = [Row.parse(text) for text in arguments.rows]
    ours = [row.with_settings(settings(arguments.set)) for row in ours]
    for row in ours:
        row.check()
    peers = [] if arguments.table else list(PEERS)
    return [FLOAT, *ours, *(Row(peer, "w8a8") for peer in (peers if arguments.peers is None else arguments.peers))]


def _width(text: str) -> str:
    return str(Widths.parse(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", type=Path, required=True, help="folder of images to calibrate on")
    parser.add_argument("--data", type=Path, required=True, help="folder with annotations to measure on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[NANO], choices=[NANO, HARD])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of hard models (default: 0)")
    parser.add_argument("--methods", nargs="+", default=sorted(METHODS), choices=sorted(METHODS), metavar="METHOD")
    parser.add_argument("--bits", nargs="+", type=_width, default=["w8a8", "w6a6", "w4a4"], metavar="wXaY")
    parser.add_argument("--strict", default="no", choices=list(STRICT), help="one width everywhere (default: no)")
    parser.add_argument(
        "--rows", nargs="*", metavar="ROW", help="METHOD[:NAME=VALUE,...]@wXaY[-strict], instead of methods and bits"
    )
    parser.add_argument("--table", choices=list(TABLES), help="rows of a paper's table, instead of methods and bits")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter, of all rows whose method has it"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="that each model may take, where its method learns")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="which (default: all; with --table none)")
    parser.add_argument("--nncf-python", default=sys.executable, metavar="PYTHON", help="an interpreter that has NNCF")
    parser.add_argument("--limit", type=int, help="first images only")
    parser.add_argument("--instances", type=int, help="first instances of each image only")
    return parser


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    ort.set_default_logger_severity(3)
    logging.getLogger().setLevel(logging.ERROR)  # of ONNX Runtime's quantizers
    rows = wanted(arguments)
    image_paths(arguments.calib)  # says that there are none, before each row does
    results = Results(check_writable(arguments.output / "accuracy.json"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    given = {name: getattr(arguments, name) for name in ("limit", "instances")}
    given |= {"minutes": arguments.minutes} if arguments.minutes is not None else {}
    given |= {name: str(getattr(arguments, name)) for name in ("calib", "data")}
    for title, source in models(arguments.models, arguments.seeds, arguments.output).items():
        for row in rows:
            settings = {"model": title, "row": str(row), **given}
            if results.has(settings):
                continue
            try:
                found = measured(row, source, arguments)
            except Exception as error:  # each quantizer raises its own kinds; the other rows are measured
                if row == FLOAT:
                    raise
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                found = {"error": " ".join(f"{kind}{error}".split())}
            print(results.add(settings, found), flush=True)
    print(f"\n{results.markdown()}\nwrote {arguments.output}/accuracy.md, accuracy.json, accuracy.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
