# SPDX-License-Identifier: Apache-2.0
"""Folders of images, with or without COCO annotations (`samq_onnx.coco`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from samq_onnx import images
from samq_onnx.coco import ANNOTATIONS, IMAGES, load_coco
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake
from samq_onnx.progress import progress_bar
from samq_onnx.samples import Instance, Sample, interior_point

__all__ = [
    "ANNOTATIONS",
    "Calibration",
    "Instance",
    "Sample",
    "files",
    "image_paths",
    "interior_point",
    "load_coco",
    "samples",
]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def image_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files of ``folder/images`` if there is such a folder, else of ``folder``, sorted by name.

    Raises:
        UserError: no such folder or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of images")
    found = _directly_in(root)
    if not found:
        root = root / IMAGES if (root / IMAGES).is_dir() else root
        raise UserError(f"{root}: no images in this folder; supported: {' '.join(sorted(SUFFIXES))}")
    return found


def _directly_in(folder: Path) -> list[Path]:
    root = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    return sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """Everything that may be read of a folder: its images, and with annotations those and what lies below it too.

    Raises:
        UserError: as `image_paths`.
    """
    annotations = Path(folder) / ANNOTATIONS
    if not annotations.is_file():
        return image_paths(folder)
    return [*_below(Path(folder) / IMAGES), annotations]


def _below(folder: Path) -> list[Path]:
    """All files below a folder, in linked folders too, each folder once."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [path for name in names if (path := Path(root, name)).is_file()]
    return sorted(found)


def samples(folder: str | os.PathLike[str], intake: Intake | None = None) -> list[Sample]:
    """The images of a folder with their annotations, as listed there; sorted by name where it has none.

    Raises:
        UserError: as `load_coco` and `image_paths`.
    """
    if (Path(folder) / ANNOTATIONS).is_file():
        return load_coco(folder, intake)
    return _plain(image_paths(folder), intake or Intake())


class Calibration:
    """The images of a folder that a model is calibrated on. All are decoded once, to know which can be used.

    Args:
        folder: of images, with or without annotations. It is read when something of it is asked for.
        intake: leaves out what cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], intake: Intake | None = None) -> None:
        self.folder, self.intake = Path(folder), intake or Intake()

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Calibration) -> Calibration:
        """A folder's, where it is none yet."""
        return source if isinstance(source, Calibration) else cls(source)

    def only(self, samples: Iterable[Sample]) -> Calibration:
        """The same folder with these of its images alone."""
        found = Calibration(self.folder, self.intake)
        found.samples = found.images = list(samples)
        return found

    @property
    def annotations(self) -> Path | None:
        """The file of annotations, if there is one."""
        file = self.folder / ANNOTATIONS
        return file if file.is_file() else None

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """The images with annotations, as listed; all that the folder has where nothing is listed.

        Raises:
            UserError: as `data.samples`, or none can be used.
        """
        found = self._decoding(samples(self.folder, self.intake))
        if not found:
            raise self.intake.nothing_left(f"{self.folder}: no image can be used")
        return found

    @functools.cached_property
    def images(self) -> list[Sample]:
        """The images of the folder and those below it that are listed, sorted by path.

        Raises:
            UserError: as `samples`.
        """
        found = {sample.path: sample for sample in self.samples}
        if self.annotations:
            others = [path for path in _directly_in(self.folder) if path not in found]
            found |= {sample.path: sample for sample in self._decoding(_plain(others, self.intake))}
        return [found[path] for path in sorted(found)]

    def _decoding(self, candidates: list[Sample]) -> list[Sample]:
        found = []
        for sample in progress_bar(candidates, "check", "image"):
            with self.intake.leaving_out():
                sample.load(self.intake)
                found.append(sample)
        return found


def _plain(paths: Iterable[Path], intake: Intake) -> list[Sample]:
    found = []
    for path in paths:
        with intake.leaving_out():
            found.append(Sample(path, *images.size(path, intake)))
    return found
