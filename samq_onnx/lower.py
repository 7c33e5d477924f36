# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.lower``: a float model and its plan make the quantized model again, for any target."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from samq_onnx import api
from samq_onnx.callable_module import make_callable
from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.files import check_writable
from samq_onnx.inventory import check_files
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.plan_file import constants_path, read_plans
from samq_onnx.quantize import finish, outputs

__all__ = ["main"]


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `samq_onnx.api.lower`."""
    parser = command_parser("lower", __doc__)
    parser.add_argument("model", type=Path, help="the float model, or the folder, that was quantized")
    parser.add_argument("--plan", type=Path, required=True, help="what quantize --plan-out wrote")
    parser.add_argument("-o", "--output", type=output_path, required=True, help="output file, or folder")
    parser.add_argument("--target", choices=sorted(TARGETS), help="what runs it (default: as the plan says)")
    parser.add_argument("--json", type=check_writable, help="write the report to this file")
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    source, output = arguments.model, arguments.output
    written = outputs(source, output)
    check_files([*outputs(source, source), arguments.plan, constants_path(arguments.plan)], [*written, arguments.json])
    if not source.is_dir():
        check_writable(output)
    finish(source, output, api.lower(source, read_plans(arguments.plan), arguments.target), arguments.json)
    return 0


make_callable(__name__, api.lower)

if __name__ == "__main__":
    sys.exit(main())
