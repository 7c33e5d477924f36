# SPDX-License-Identifier: Apache-2.0
"""How a run takes in images and annotations: what it leaves out, what it says of them, and how large they may be.

One bad file among thousands does not end a run: it is left out, told on stderr and listed in the report. A run holds
one `Intake` and hands it to whatever reads.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from samq_onnx.errors import UserError
from samq_onnx.progress import write_line

__all__ = ["Intake", "Unusable", "add_limit", "add_strict"]

SHOWN = 10  # things left out that are told one by one
MEGAPIXELS = 320  # a little more than the largest cameras and scanners make
MOST_MEGAPIXELS = 4000  # run lengths of masks are of 32 bits
LONGEST_LINE = 600  # characters


class Unusable(UserError):
    """An image or an annotation that cannot be used. The message says which, and why."""


class Intake:
    """What a run does with images and annotations that it cannot use.

    Args:
        strict: the first one is an error.
        max_megapixels: an image of more is not usable.

    Attributes:
        left_out: a line for each, which one and why.
        max_pixels: that an image may have.

    Raises:
        UserError: a limit that cannot be.
    """

    def __init__(self, strict: bool = False, max_megapixels: int = MEGAPIXELS) -> None:
        if not 1 <= max_megapixels <= MOST_MEGAPIXELS:
            raise UserError(f"max-megapixels must be 1 to {MOST_MEGAPIXELS}, got {max_megapixels}")
        self.strict = strict
        self.max_pixels = max_megapixels * 1_000_000
        self.left_out: list[str] = []
        self._known: set[str] = set()
        self._told: set[str] = set()
        self._counted = SHOWN

    def tell(self, topic: str, line: str) -> None:
        """Say a line on stderr, the first time in this run that its topic comes up."""
        if topic not in self._told:
            self._told.add(topic)
            _warn(line)

    @contextlib.contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Leave out what raises `Unusable` within; an error if strict."""
        try:
            yield
        except Unusable as error:
            if self.strict:
                raise
            line = _printable(str(error))
            if line in self._known:  # it was left out before, where the same data are read again
                return
            self._known.add(line)
            self.left_out.append(line)
            if len(self.left_out) <= SHOWN:
                _warn(f"left out: {line}")

    def finish(self) -> None:
        """Say how many more were left out than were told."""
        if len(self.left_out) > self._counted:
            _warn(f"{len(self.left_out) - self._counted} more left out; --json lists all of them")
            self._counted = len(self.left_out)

    def nothing_left(self, line: str) -> UserError:
        """The error where nothing can be used, with a reason if something was left out."""
        return UserError(f"{line}; left out: {self.left_out[0]}" if self.left_out else line)


def add_strict(parser: argparse.ArgumentParser) -> None:
    """The option that makes the first unusable image or annotation an error."""
    parser.add_argument(
        "--strict-data",
        action="store_true",
        help="an unusable image or annotation ends the run instead of being left out",
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """The option that raises the limit of an image's size."""
    parser.add_argument(
        "--max-megapixels",
        type=int,
        default=MEGAPIXELS,
        metavar="N",
        help="size an image may have (default: %(default)s)",
    )


def _warn(line: str) -> None:
    write_line(f"warning: {_printable(line)}")


def _printable(line: str) -> str:
    """On one line, without what a terminal would obey, and not endless."""
    line = " ".join(line.split())
    if not line.isprintable():
        line = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode() for character in line
        )
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
