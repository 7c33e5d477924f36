# SPDX-License-Identifier: Apache-2.0
"""Encoders of relatives of SAM in full size, 1024 pixels, with random weights: what their speed is measured on.

    python benchmarks/full_size.py -o FOLDER [NAME ...]

FOLDER gets NAME.onnx. Needs the packages mobilesam-mirror and transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import zoo
from zoo.files import Called, package, randomised
from zoo.packages import tiny_vit

from samq_onnx.command import main_guard
from samq_onnx.files import atomic_path

SIDE = 1024
EXPORTER = "torchscript"


def mobile_sam() -> zoo.File:
    """MobileSAM's TinyViT."""
    module = tiny_vit(
        img_size=SIDE,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        mbconv_expand_ratio=4.0,
    )
    return zoo.File("encoder", module, {"image": torch.randn(1, 3, SIDE, SIDE)}, ("image_embeddings",))


def sam2_tiny() -> zoo.File:
    """SAM 2 tiny's Hiera, with its neck; the defaults of transformers are those of that model."""
    transformers = package("transformers")
    model = randomised(transformers.Sam2Model(transformers.Sam2Config()))

    def encode(net: Any, pixels: Any) -> tuple[Any, ...]:
        return tuple(net.get_image_embeddings(pixels))

    made = tuple(f"image_embeddings.{level}" for level in range(3))
    return zoo.File("encoder", Called(model, encode), {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}, made)


MODELS = {"mobile_sam": mobile_sam, "sam2_tiny": sam2_tiny}


@main_guard
def main(argv: Iterable[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*MODELS, []], help=", ".join(MODELS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args(None if argv is None else list(argv))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or MODELS:
        with atomic_path(arguments.output / f"{name}.onnx") as path:
            zoo.export(MODELS[name](), EXPORTER, path)
        print(f"{name}.onnx: written", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
