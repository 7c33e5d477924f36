# SPDX-License-Identifier: Apache-2.0
"""Folders of images, with or without COCO annotations.

An annotated folder holds ``images/`` and ``annotations.json``. Boxes are read without further packages; masks
(polygons, compressed and uncompressed RLE) need pycocotools, which is imported when the first mask is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx import images
from samq_onnx.errors import UserError

__all__ = ["Instance", "Sample", "files", "image_paths", "interior_point", "load_coco", "samples"]

ANNOTATIONS = "annotations.json"
IMAGES = "images"
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        where: file and annotation, for messages.
        width, height: of the image.
        box: x0, y0, x1, y1 in pixels, from COCO's x, y, width, height.
        area: pixels, as annotated.
        crowd: a group of objects under one mask (COCO's ``iscrowd``); not evaluated.
        segmentation: COCO's polygons or run lengths.
    """

    where: str
    width: int
    height: int
    box: Box
    area: float
    crowd: bool
    segmentation: Any = dataclasses.field(repr=False)

    def mask(self) -> np.ndarray:
        """The mask, bool [H, W].

        Raises:
            UserError: pycocotools is not installed or the segmentation does not decode.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise UserError("masks need the package pycocotools; run: pip install samq_onnx[eval]") from error
        try:
            decoded = coco.decode(self._run_lengths(coco))
        except Exception as error:  # pycocotools raises errors of any kind
            raise UserError(f"{self.where}: the segmentation does not decode ({error}); mend the file") from error
        return decoded.astype(bool)

    def point(self) -> tuple[float, float]:
        """A point (x, y) inside the mask; the centre of the box if the mask cannot be had."""
        try:
            return interior_point(self.mask())
        except UserError:
            x0, y0, x1, y1 = self.box
            return (x0 + x1) / 2, (y0 + y1) / 2

    def _run_lengths(self, coco: Any) -> Any:
        shape = [self.height, self.width]
        if isinstance(self.segmentation, list):
            # four numbers would be read as a box
            polygons = [polygon for polygon in self.segmentation if len(polygon) >= 6]
            if not polygons:
                raise ValueError("no polygon of three points or more")
            return coco.merge(coco.frPyObjects(polygons, *shape))
        if list(self.segmentation["size"]) != shape:
            raise ValueError(f"its size {self.segmentation['size']} is not the image's {shape}")
        counts = self.segmentation["counts"]
        if isinstance(counts, list):
            if sum(counts) != self.width * self.height or min(counts) < 0:
                raise ValueError("run lengths do not add up to the image")
            return coco.frPyObjects(self.segmentation, *shape)
        return self.segmentation


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image file, its size in pixels, and what is annotated in it (nothing: no annotations)."""

    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...] = ()


def interior_point(mask: np.ndarray) -> tuple[float, float]:
    """The centre (x, y) of the pixel of a mask bool [H, W] nearest to its centroid; the first in reading order."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise UserError("an empty mask has no interior point")
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def image_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files of ``folder/images`` if there is such a folder, else of ``folder``, sorted by name.

    Raises:
        UserError: no such folder or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of images")
    root = root / IMAGES if (root / IMAGES).is_dir() else root
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{root}: no images in this folder; supported: {' '.join(sorted(SUFFIXES))}")
    return found


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """Everything that is read of a folder: its images, and its annotations if it has some.

    Raises:
        UserError: as `image_paths`.
    """
    annotations = Path(folder) / ANNOTATIONS
    return [*image_paths(folder), *([annotations] if annotations.is_file() else [])]


def samples(folder: str | os.PathLike[str]) -> list[Sample]:
    """The images of a folder with their annotations, as listed there; sorted by name where it has none.

    Raises:
        UserError: as `load_coco` and `image_paths`.
    """
    if (Path(folder) / ANNOTATIONS).is_file():
        return load_coco(folder)
    return [Sample(path, *images.size(path)) for path in image_paths(folder)]


def load_coco(folder: str | os.PathLike[str]) -> list[Sample]:
    """The images listed in ``folder/annotations.json`` and their instances, both in the order of the file.

    Raises:
        UserError: the folder or file is missing or not COCO's format, a listed image is missing or of another size.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder that holds {IMAGES}/ and {ANNOTATIONS}")
    file = root / ANNOTATIONS
    if not file.is_file():
        raise UserError(f"{file}: no such file; the folder must hold {IMAGES}/ and {ANNOTATIONS} in COCO format")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        listed = {entry["id"]: _sample(root, entry) for entry in content["images"]}
        instances: dict[Any, list[Instance]] = {key: [] for key in listed}
        for entry in content["annotations"]:
            key = entry["image_id"]
            if key not in listed:
                raise ValueError(f"annotation {entry['id']} is of image {key}, which is not listed")
            instances[key].append(_instance(file, listed[key], entry))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}: not annotations in COCO format ({reason}); mend the file") from error
    if not listed:
        raise UserError(f"{file}: lists no images; nothing to do")
    return [dataclasses.replace(sample, instances=tuple(instances[key])) for key, sample in listed.items()]


def _sample(root: Path, entry: dict[str, Any]) -> Sample:
    path = root / IMAGES / entry["file_name"]
    width, height = images.size(path)
    if (entry["width"], entry["height"]) != (width, height):
        raise UserError(
            f"{path}: the image is {width} x {height}, but {ANNOTATIONS} says {entry['width']} x {entry['height']}; "
            "use the images that were annotated"
        )
    return Sample(path, width, height)


def _instance(file: Path, sample: Sample, entry: dict[str, Any]) -> Instance:
    x, y, width, height = (float(number) for number in entry["bbox"])
    if not np.isfinite([x, y, width, height]).all():
        raise ValueError(f"the bbox of annotation {entry['id']} is not finite")
    return Instance(
        where=f"{file}: annotation {entry['id']} of {sample.path.name}",
        width=sample.width,
        height=sample.height,
        box=(x, y, x + width, y + height),
        area=float(entry["area"]),
        crowd=bool(entry.get("iscrowd", 0)),
        segmentation=entry["segmentation"],
    )
