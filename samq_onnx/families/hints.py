# SPDX-License-Identifier: Apache-2.0
"""What people say of the image that a model takes, where its graph does not tell; quantized models carry it along."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping

from samq_onnx.errors import UserError
from samq_onnx.families.pixels import Pixels

__all__ = ["Hints", "add_hints"]

SIZE, PIXELS = "samq_onnx.input_size", "samq_onnx.preprocess"  # metadata of a model
LARGEST = 1 << 14  # pixels of a side


@dataclasses.dataclass(frozen=True)
class Hints:
    """Of an image input.

    Attributes:
        size: side of the square image. pixels: the numbers it wants; None where nothing is said.
    """

    size: int | None = None
    pixels: Pixels | None = None

    @classmethod
    def of(cls, size: int | None = None, preprocess: str | None = None) -> Hints:
        """What options say.

        Raises:
            UserError: no size of an image, or no name of `Pixels`.
        """
        if size is not None and not 1 <= size <= LARGEST:
            raise UserError(f"input size must be 1 to {LARGEST}, got {size}")
        names = [one.name.lower() for one in Pixels]
        if preprocess is not None and preprocess not in names:
            raise UserError(f"preprocess must be one of {', '.join(names)}, got {preprocess!r}")
        return cls(size, None if preprocess is None else Pixels[preprocess.upper()])

    @classmethod
    def given(cls, arguments: argparse.Namespace) -> Hints:
        """What the options of `add_hints` say.

        Raises:
            UserError: as `of`.
        """
        return cls.of(arguments.input_size, arguments.preprocess)

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Hints:
        """What a model carries; nothing where that is no hint."""
        size = metadata.get(SIZE, "")
        try:
            return cls.of(int(size) if size.isascii() and size.isdigit() else None, metadata.get(PIXELS))
        except UserError:
            return cls()

    def or_else(self, other: Hints) -> Hints:
        """Itself, and what the other says where it says nothing."""
        return Hints(self.size if self.size is not None else other.size, self.pixels or other.pixels)

    def metadata(self) -> dict[str, str]:
        """What a model carries along."""
        found = {SIZE: "" if self.size is None else str(self.size)}
        found[PIXELS] = "" if self.pixels is None else self.pixels.name.lower()
        return {key: value for key, value in found.items() if value}


def add_hints(parser: argparse.ArgumentParser) -> None:
    """The options that say what a model's graph does not tell of its image."""
    parser.add_argument(
        "--input-size", type=int, metavar="SIDE", help="of the square image, where the model leaves its sides free"
    )
    parser.add_argument(
        "--preprocess",
        choices=[one.name.lower() for one in Pixels],
        help="what pixels the encoder takes, where its graph does not tell",
    )
