# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.verify``: the native kernels against the function bodies, the quantized model against float."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import ops
from samq_onnx.command import command_parser, main_guard
from samq_onnx.encoder import hinted
from samq_onnx.errors import UserError
from samq_onnx.families import NOTHING, Hints, identify
from samq_onnx.families.hints import add_hints
from samq_onnx.files import check_writable, write_report
from samq_onnx.inventory import check_files
from samq_onnx.models import load_model, model_sha256, tap
from samq_onnx.passes.aside import outputs_aside
from samq_onnx.passes.lift import lift
from samq_onnx.passes.lower.fuse import unfuse
from samq_onnx.passes.lower.opset import INT4_OPSET
from samq_onnx.passes.normal import normalise
from samq_onnx.runtime import open_session, run_session

__all__ = ["main", "sqnr", "verify"]

COMPARABLE = "samq_onnx.comparable"  # metadata of a quantized model
FLOAT_ATTENTION = {f"Attention{terms}" for terms in ops.TERMS}  # whose kernel adds up in another order than its body
ROUNDING = 1e-3  # of an output's largest value, that such an attention may change


def sqnr(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB; infinite when both are equal."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - value).sum())
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(max(signal, 1e-300) / noise))


def _run(
    model: str | ir.Model, feed: Mapping[str, np.ndarray], native: bool = True, where: str = ""
) -> dict[str, np.ndarray]:
    session = open_session(model if isinstance(model, str) else ir.to_proto(model).SerializeToString(), native=native)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, run_session(session, feed, where or str(model), names), strict=True))


def _fed(model: ir.Model) -> list[ir.Value]:
    """The inputs that have no value of their own."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _comparable(model: ir.Model, path: Path) -> list[str]:
    """The names of values that mean the same in a quantized model and in the float model it came from."""
    if COMPARABLE not in model.metadata_props:
        raise UserError(f"{path}: not written by samq_onnx.quantize; give a quantized model")
    try:
        names = json.loads(model.metadata_props[COMPARABLE])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: its metadata {COMPARABLE} are no list of names; quantize the float model again")
    return names


def _floats(model: ir.Model) -> set[str | None]:
    """The values that nodes of a graph make, but those known to be of other types."""
    values = [value for node in model.graph for value in node.outputs]
    return {value.name for value in values if value.dtype in (None, ir.DataType.FLOAT)}


def verify(quantized: Path, reference: Path, encoder: Path | None = None, hints: Hints = NOTHING) -> dict[str, Any]:
    """Compare a quantized model with itself without the library, and with the float model it came from.

    Args:
        encoder: whose embedding of a bundled image a decoder is fed; random numbers without it.
        hints: size and pixels of the encoder's image, where neither its graph nor the quantized model tells.

    Returns:
        ``native_max_abs`` output -> largest difference between native kernels and function bodies; ``same`` whether
        there is none; ``agree``, whether there is none but what rounding in an attention that stayed in float explains;
        ``output_sqnr_db`` output -> dB against float; ``site_sqnr_db`` value name -> dB against float
        for every quantized linear and attention whose float output is there and means the same in both.

    Raises:
        UserError: a file is no model, or ``quantized`` was not made from ``reference``.
    """
    model, original = load_model(quantized), load_model(reference)
    comparable = _comparable(model, quantized)
    if model.metadata_props.get("samq_onnx.float_model.sha256") != model_sha256(reference):
        raise UserError(f"{quantized} was not made from {reference}; give the float model it came from")
    part = identify(original, str(reference), hints.or_else(Hints.read(model.metadata_props)))
    for one, two in ((_fed(model), _fed(original)), (model.graph.outputs, original.graph.outputs)):
        if [(value.name, value.dtype) for value in one] != [(value.name, value.dtype) for value in two]:
            raise UserError(f"{quantized}: has other inputs or outputs than {reference}; quantize that again")
    feed = part.sample_feed(encoder=hinted(encoder, part, hints))
    with outputs_aside(original):
        normalise(original, 4 if model.opset_imports.get("", 0) >= INT4_OPSET else 8)  # as far as it was raised
    structure = lift(original)
    if structure.attentions:
        ops.add_functions(original)
    native = _run(str(quantized), feed)
    body = _run(str(quantized), feed, native=False)
    outputs = list(native)
    same = all(_same(body[name], native[name]) for name in outputs)
    in_float = any(node.domain == ops.DOMAIN and node.op_type in FLOAT_ATTENTION for node in model.graph)
    unfuse(model)
    ops.add_functions(model)
    both = _floats(model) & _floats(original)
    sites = [name for name in comparable if name in both]
    for tapped in (model, original):
        tap(tapped, sites)
    quantized_values = _run(model, feed, where=str(quantized))
    float_values = _run(original, feed, where=str(reference))
    return {
        "quantized": str(quantized),
        "reference": str(reference),
        "native_max_abs": {name: _apart(body[name], native[name]) for name in outputs},
        "same": same,
        "agree": same or (in_float and all(_near(body[name], native[name]) for name in outputs)),
        "output_sqnr_db": _ratios(float_values, native, outputs, quantized),
        "site_sqnr_db": _ratios(float_values, quantized_values, sites, quantized),
    }


def _is_numeric(value: object) -> TypeGuard[np.ndarray]:
    """Whether an output is an array of numbers, and not of words, and no sequence."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    return np.array_equal(one, two, equal_nan=_is_numeric(one) and one.dtype.kind == "f")


def _apart(one: np.ndarray, two: np.ndarray) -> float:
    """The largest difference; infinite where there is no such number."""
    if not _is_numeric(one) or not _is_numeric(two) or one.shape != two.shape or _same(one, two):
        return 0.0 if _same(one, two) else math.inf
    return float(np.abs(one.astype(np.float64) - two).max())


def _near(one: np.ndarray, two: np.ndarray) -> bool:
    return _apart(one, two) <= (ROUNDING * float(np.abs(one).max(initial=0.0)) if _is_numeric(one) else 0.0)


def _ratios(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], names: Sequence[str], path: Path
) -> dict[str, float]:
    ratios = {}
    for name in names:
        one, two = reference[name], found[name]
        if _is_numeric(one) and _is_numeric(two):
            if one.shape != two.shape:
                raise UserError(f"{path}: {name} is {list(two.shape)}, in the float model {list(one.shape)}")
            ratios[name] = sqnr(one, two)
    return ratios


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `verify`."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("--encoder", type=Path, help="embeds a bundled image for a decoder; else its input is random")
    parser.add_argument("--reference", type=Path, required=True, help="the float model it was made from")
    add_hints(parser)
    parser.add_argument("--json", type=check_writable, help="write the numbers here")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    check_files([arguments.quantized, arguments.reference, arguments.encoder], [arguments.json])
    report = verify(arguments.quantized, arguments.reference, arguments.encoder, Hints.given(arguments))
    for name, value in report["native_max_abs"].items():
        print(f"native against body  {value:7.1e} off {name}")
    for name, value in sorted(report["site_sqnr_db"].items(), key=lambda item: item[1]):
        print(f"site against float   {value:7.1f} dB  {name}")
    for name, value in report["output_sqnr_db"].items():
        print(f"output against float {value:7.1f} dB  {name}")
    write_report(arguments.json, report, "the numbers are above")
    if not report["agree"]:
        print("error: native kernels and function bodies give different outputs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
