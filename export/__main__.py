# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.export``: a Segment Anything checkpoint to encoder.onnx and decoder.onnx."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from samq_onnx import assets
from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.errors import UserError
from samq_onnx.export import export_sam
from samq_onnx.files import check_writable, write_report
from samq_onnx.inventory import check_files

__all__ = ["main"]

MODEL_TYPES = (
    *("vit_b", "vit_l", "vit_h", "nano", "vit_t"),
    *("hq_vit_b", "hq_vit_l", "hq_vit_h", "hq_vit_t"),
    *("sam2_t", "sam2_s", "sam2_b+", "sam2_l"),
)


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `export_sam`."""
    parser = command_parser("export", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="state dict, .pth, .pt or .safetensors, or a folder of transformers; nano is bundled",
    )
    parser.add_argument("--model-type", choices=MODEL_TYPES, help="default: what the checkpoint's tensors tell")
    parser.add_argument("-o", "--output", type=output_path, required=True, help="folder for the ONNX files")
    parser.add_argument("--batched", action="store_true", help="also decoder_batched.onnx: N prompts -> N masks")
    parser.add_argument("--json", type=check_writable, help="write the report here")
    arguments = parser.parse_args(argv)
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        if arguments.model_type is None:
            raise UserError("give --checkpoint FILE or FOLDER, or --model-type nano, which is bundled")
        if arguments.model_type != "nano":
            raise UserError(f"--model-type {arguments.model_type} needs --checkpoint FILE; only nano is bundled")
        checkpoint = assets.nano_checkpoint()
    made = [arguments.output / name for name in ("encoder.onnx", "decoder.onnx", "decoder_batched.onnx")]
    check_files([checkpoint, *_files_of(checkpoint)], [arguments.json, *made])
    report = export_sam(checkpoint, arguments.model_type, arguments.output, arguments.batched)
    for file in report["files"].values():
        print(file["path"])
    write_report(arguments.json, report, f"the models are in {arguments.output}")
    return 0


def _files_of(folder: Path) -> list[Path]:
    """All that may be read of a folder: configurations, and weights with their index."""
    return sorted(file for suffix in ("json", "safetensors") for file in folder.glob(f"*.{suffix}"))


if __name__ == "__main__":
    sys.exit(main())
