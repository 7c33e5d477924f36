# SPDX-License-Identifier: Apache-2.0
"""Calibration inputs that people give as arrays: a folder of .npz files, one input of the model each.

That calibrates a model whose inputs nothing here can make from images. The names of the arrays are names of inputs.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from samq_onnx.archives import read_arrays
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import Part
from samq_onnx.families.ports import Port, fit
from samq_onnx.feeds import Feed, Feeds
from samq_onnx.intake import Intake
from samq_onnx.samples import Sample

__all__ = ["SUFFIX", "ArrayFeeds", "ArrayFolder"]

SUFFIX = ".npz"
LARGEST = 4 << 30  # bytes that a file may unpack to


class ArrayFolder(Calibration):
    """A folder of inputs in the place of images.

    Raises:
        UserError: no such folder, or it has no file .npz.
    """

    def __init__(self, folder: str | os.PathLike[str], intake: Intake | None = None) -> None:
        super().__init__(folder, intake)
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: no such folder; give a folder of {SUFFIX} files, an input of the model each"
            )
        self.files = sorted(path for path in self.folder.iterdir() if path.suffix == SUFFIX and path.is_file())
        if not self.files:
            raise UserError(f"{self.folder}: has no {SUFFIX} file; numpy.savez(FILE, INPUT=array, ...) writes one")

    @property
    def annotations(self) -> Path | None:
        return None

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """The files; they have no pixels."""
        return [Sample(path, 1, 1) for path in self.files]

    @functools.cached_property
    def images(self) -> list[Sample]:
        return self.samples

    def feeds(self, part: Part) -> ArrayFeeds:
        """The inputs of a model, all of which are looked at.

        Raises:
            UserError: a file that is no such archive, or has not the arrays of the inputs.
        """
        found = ArrayFeeds(self, part.signature.inputs)
        for index in range(len(found)):
            found[index]
        return found


class ArrayFeeds(Feeds):
    """Inputs of a folder, each read when it is asked for."""

    def __init__(self, folder: ArrayFolder, ports: tuple[Port, ...]) -> None:
        self.samples, self._ports = folder.samples, ports

    def __len__(self) -> int:
        return len(self.samples)

    def _make(self, index: int) -> Feed:
        path = self.samples[index].path
        try:
            arrays = read_arrays(path, LARGEST)
        except ValueError as error:
            raise UserError(f"{path}: no archive of arrays ({error}); write it with numpy.savez") from error
        wanted = {port.name for port in self._ports}
        if set(arrays) != wanted:
            other = sorted(set(arrays) ^ wanted)[0]
            problem = "has no array for the input" if other in wanted else "the model has no input"
            raise UserError(f"{path}: {problem} {other!r}; name the arrays {', '.join(sorted(wanted))}")
        try:
            made = {port.name: fit(port, arrays[port.name]) for port in self._ports}
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        for name, array in made.items():
            if not array.size or (array.dtype.kind == "f" and not np.isfinite(array).all()):
                raise UserError(f"{path}: the array {name!r} is empty, or has numbers that are not finite")
        return made
