# SPDX-License-Identifier: Apache-2.0
"""SAM-Nano-hard: a SAM that computes what it did, with what makes SAM-B hard to quantize planted in it.

    python benchmarks/pathology.py -o FOLDER --check --histograms before_after.png

Weights of SAM-B cannot be shipped, and SAM-Nano has few of its troubles. What is planted, and why each planting
leaves the function as it is, is told in `plantings`. ``--check`` runs both models and compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from histogram_chart import Pair, histogram_chart
from plantings import MEASURING, PLANTINGS, Measured, tensors_to_measure

from samq_onnx import assets
from samq_onnx.api import DECODER, ENCODER
from samq_onnx.command import main_guard, output_path
from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import LOW_RES_MASKS, identify
from samq_onnx.families.decoder import decoder_of
from samq_onnx.feeds import Feed
from samq_onnx.files import atomic_folder, atomic_path, check_writable, write_json
from samq_onnx.inventory import check_files
from samq_onnx.models import load_model, tap
from samq_onnx.passes.graph import add_constant, array_of
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.quantize import outputs
from samq_onnx.runtime import open_session

TOLERANCE = 1e-4  # of outputs, relative to their largest value
FEEDS = 8  # of a model, spread over those of a folder
ROWS = 20_000  # of a tensor, to measure it


def plant(source: Path, output: Path, seed: int = 0, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Write ``source`` with the plantings in it; nodes, names, inputs and outputs stay as exported.

    Args:
        source: folder of encoder.onnx and decoder.onnx, float. output: folder, the same two files.
        seed: of what is drawn; each planting draws the same whatever others are planted.
        only: names of `PLANTINGS`; None for all.

    Returns:
        seed; planted: file -> planting -> name of what was changed -> name of the tensor that shows it best.

    Raises:
        UserError: a planting that there is not, or a model that does not load.
    """
    chosen = list(PLANTINGS if only is None else only)
    unknown = sorted(set(chosen) - set(PLANTINGS))
    if unknown:
        raise UserError(f"unknown planting {unknown[0]!r}; choose from {', '.join(PLANTINGS)}")
    report: dict[str, Any] = {"seed": seed, "planted": {}}
    with atomic_folder(output) as made:
        for number, file in enumerate((ENCODER, DECODER)):
            model = load_model(source / file)
            simplify(model)
            _unshare(model.graph)
            lifted = lift(model.clone())
            wanted = tensors_to_measure(lifted) if MEASURING.intersection(chosen) else ()
            measured = _tensors(model.clone(), wanted, source, file, assets.calibration_images())
            report["planted"][file] = {
                name: planting(lifted, measured, np.random.default_rng([seed, number, turn]))
                for turn, (name, planting) in enumerate(PLANTINGS.items())
                if name in chosen
            }
            _write_back(model, lifted)
            ir.save(model, made / file)
    return report


def _unshare(graph: ir.Graph) -> None:
    """Give every reader of float vectors and larger constants its own, as simplifying made one of equal ones."""
    for value in list(graph.initializers.values()):
        held = array_of(value)
        if held is None or held.dtype != np.float32 or held.size == 1:
            continue
        for use in list(value.uses())[1:]:
            use.node.replace_input_with(use.idx, add_constant(graph, value.name or "", held))


def _write_back(model: ir.Model, lifted: Lifted) -> None:
    """Give a model, whose clone was lifted and edited, the constants and the widths of that clone."""
    edited = lifted.model.graph.initializers
    for name, value in model.graph.initializers.items():
        if name in edited:
            value.const_value, value.shape = edited[name].const_value, edited[name].shape
    widths = {value.name: value.shape[-1] for node in lifted.model.graph for value in node.outputs if value.shape}
    for node in model.graph:
        for value in node.outputs:
            if value.shape and value.name in widths:
                value.shape = ir.Shape([*value.shape[:-1], widths[value.name]])


def _feeds(folder: Path, file: str, images: Path) -> list[Feed]:
    """A few feeds of a model, a decoder's from the encoder beside it."""
    part = identify(load_model(folder / file), str(folder / file))
    encoder = None if file == ENCODER else folder / ENCODER
    feeds = part.feeds(Calibration(images), encoder, file)
    return [feeds[int(index)] for index in np.linspace(0, len(feeds) - 1, min(FEEDS, len(feeds)))]


def tensors(folder: Path, file: str, names: Sequence[str], images: Path | None = None) -> Measured:
    """Rows [tokens, channels] of tensors of a model, on images of a folder, or the bundled ones that `plant` uses."""
    model = load_model(folder / file)
    simplify(model)
    return _tensors(model, names, folder, file, images or assets.calibration_images())


def _tensors(model: ir.Model, names: Sequence[str], folder: Path, file: str, images: Path) -> Measured:
    if not names:
        return {}
    tap(model, names)
    session = open_session(ir.to_proto(model).SerializeToString())
    runs = [session.run(list(names), feed) for feed in _feeds(folder, file, images)]
    rows = {}
    for name, arrays in zip(names, zip(*runs, strict=True), strict=True):
        whole = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        rows[name] = whole[:: max(1, len(whole) // ROWS)]
    return rows


def differences(source: Path, planted: Path, images: Path) -> dict[str, float]:
    """The largest difference of embeddings and of low-resolution mask logits, each over its largest value.

    The planted decoder runs on the embeddings of the planted encoder.
    """
    outputs: dict[str, list[list[np.ndarray]]] = {"embedding": [], "masks": []}
    for folder in (source, planted):
        encoder = Encoder(folder / ENCODER)
        decoder = decoder_of(identify(load_model(folder / DECODER), str(folder / DECODER)))
        embedding, mask = encoder.session.get_outputs()[0].name, decoder.answers(encoder.image.size)[LOW_RES_MASKS]
        session = open_session(folder / DECODER)
        outputs["embedding"].append([encoder.session.run([embedding], f)[0] for f in _feeds(folder, ENCODER, images)])
        outputs["masks"].append([session.run([mask], feed)[0] for feed in _feeds(folder, DECODER, images)])
    return {
        name: max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*both, strict=True))
        for name, both in outputs.items()
    }


def _histograms(source: Path, planted: Path, report: Mapping[str, Any], images: Path) -> list[Pair]:
    """Of each planting, what one tensor held before and holds after."""
    pairs = []
    for file, plantings in report["planted"].items():
        shown = {name: list(done.values())[len(done) // 2] for name, done in plantings.items() if done}
        before, after = (tensors(folder, file, list(shown.values()), images) for folder in (source, planted))
        for name, tensor in shown.items():
            pairs.append(Pair(f"{name}: {tensor}", before[tensor].ravel(), after[tensor].ravel()))
    return pairs


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=assets.nano_dir(), help="folder of encoder.onnx and decoder.onnx")
    parser.add_argument("-o", "--output", type=output_path, required=True, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=0, help="another number gives another variant")
    parser.add_argument("--only", nargs="+", choices=list(PLANTINGS), help="plant these alone")
    bundled = assets.demo_images()
    parser.add_argument("--check", type=Path, nargs="?", const=bundled, metavar="IMAGES", help="compare with the model")
    parser.add_argument("--histograms", type=check_writable, metavar="PNG", help="draw tensors before and after")
    parser.add_argument("--json", type=check_writable, help="write what was done here")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    source, output = arguments.model, arguments.output
    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {arguments.seed}")
    check_files(outputs(source, source), [*outputs(source, output), arguments.histograms, arguments.json])
    report = plant(source, output, arguments.seed, arguments.only)
    for file, plantings in report["planted"].items():
        print(f"{file}: " + ", ".join(f"{name} in {len(done)}" for name, done in plantings.items()))
    if arguments.histograms is not None:
        pairs = _histograms(source, output, report, arguments.check or bundled)
        with atomic_path(arguments.histograms) as path:
            histogram_chart("Before and after planting (counts are logarithmic)", pairs).save(path)
    if arguments.check is not None:
        report["differences"] = differences(source, output, arguments.check)
        print("largest relative difference: " + ", ".join(f"{k} {v:.1e}" for k, v in report["differences"].items()))
    if arguments.json is not None:
        write_json(arguments.json, report)
    worst = max(report.get("differences", {"none": 0.0}).values())
    if not worst <= TOLERANCE:
        raise UserError(f"{output}: differs from {source} by {worst:.1e}, more than {TOLERANCE:g}; plant less (--only)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
