# SPDX-License-Identifier: Apache-2.0
"""COCO's annotations as tools write them: ``annotations.json`` beside ``images/``.

What cannot be used is left out, entry by entry (`samq_onnx.intake`). Masks are decoded when they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from samq_onnx import images
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake, Unusable
from samq_onnx.masks import FARTHEST
from samq_onnx.samples import Box, Instance, Sample

__all__ = ["ANNOTATIONS", "IMAGES", "load_coco"]

ANNOTATIONS = "annotations.json"
IMAGES = "images"
LONGEST_NAME = 4096  # characters
ROUNDING = 1.0  # pixels that a box reaches out of its image in many a file
THINNEST = 0.1  # pixels; what is thinner has no extent once it is scaled
Key = int | float | str
Fields = dict[str, Any]


def load_coco(folder: str | os.PathLike[str], intake: Intake | None = None) -> list[Sample]:
    """The images listed in ``folder/annotations.json`` and their instances, both in the order of the file.

    Backslashes in a file's name are slashes, and as many of its last parts count as lead to a file in
    ``folder/images``; nothing outside of that is read. Width and height may be missing. Where they are those of the
    image before its EXIF rotation, it was annotated in that frame, and is not rotated.

    A box is clipped to its image, which is told if it reaches out by more than a pixel; one that is outside or empty
    is left out. The fields area (that of the mask), iscrowd (0), segmentation (a box alone) and id may be missing.

    Args:
        intake: leaves out images that cannot be used, with all that is annotated in them, and such annotations.

    Raises:
        UserError: the folder or file is missing or not COCO's format, or no image can be used.
    """
    root, intake = Path(folder), intake or Intake()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder that holds {IMAGES}/ and {ANNOTATIONS}")
    file = root / ANNOTATIONS
    if not file.is_file():
        raise UserError(f"{file}: no such file; the folder must hold {IMAGES}/ and {ANNOTATIONS} in COCO format")
    content = _content(file)
    listed = _listed(file, content["images"], intake)
    samples = _samples(file, listed, intake)
    if not samples:
        raise intake.nothing_left(f"{file}: lists no image that can be used")
    instances: dict[Key, list[Instance]] = {key: [] for key in samples}
    known: set[Key] = set()
    for number, entry in enumerate(content["annotations"], 1):
        with intake.leaving_out():
            where = f"{file}: annotation number {number}"
            fields = _fields(where, entry)
            if fields.get("id") is not None:
                identity = _key(where, fields, "id")
                where = f"{file}: annotation {reprlib.repr(identity)}"
                if identity in known:
                    raise Unusable(f"{where}: another one before it has this id; number them anew")
                known.add(identity)
            image = _key(where, fields, "image_id")
            if image not in listed:
                raise Unusable(f"{where}: is of image {reprlib.repr(image)}, which is not listed")
            if image in samples:
                instances[image].append(_instance(where, fields, samples[image], intake))
    return [dataclasses.replace(sample, instances=tuple(instances[key])) for key, sample in samples.items()]


def _content(file: Path) -> dict[str, list[Any]]:
    """What the file holds: an object with lists of images and annotations."""
    try:
        content = json.loads(file.read_bytes())  # UTF-8, 16 or 32, with or without a byte order mark
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not annotations in COCO format ({error}); mend the file") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: not annotations in COCO format (no list of {key}); mend the file")
    if not content["images"]:
        raise UserError(f"{file}: lists no images; nothing to do")
    return content


class _Listed(NamedTuple):
    """An image's entry."""

    name: str
    width: float | None
    height: float | None

    def fits(self, width: int, height: int) -> bool:
        return self.width in (None, width) and self.height in (None, height)


def _listed(file: Path, entries: list[Any], intake: Intake) -> dict[Key, list[_Listed]]:
    """The entries of each id, mostly one."""
    found: dict[Key, list[_Listed]] = {}
    for number, entry in enumerate(entries, 1):
        with intake.leaving_out():
            where = f"{file}: image number {number}"
            fields = _fields(where, entry)
            key = _key(where, fields, "id")
            name = _field(where, fields, "file_name")
            if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
                raise Unusable(f"{where}: its file_name is {reprlib.repr(name)}")
            sides = [fields.get(side) for side in ("width", "height")]
            if any(type(side) not in (int, float, type(None)) for side in sides):
                raise Unusable(f"{where}: its width and height are {reprlib.repr(sides)}")
            found.setdefault(key, []).append(_Listed(name, *sides))
    return found


def _samples(file: Path, listed: dict[Key, list[_Listed]], intake: Intake) -> dict[Key, Sample]:
    """The images that are there as they are listed."""
    found: dict[Key, tuple[Path, images.Header, list[bool]]] = {}
    names: dict[Path, str] = {}
    for key, (entry, *others) in listed.items():
        with intake.leaving_out():
            where = f"{file}: image {reprlib.repr(key)}"
            if any(other != entry for other in others):
                raise Unusable(f"{where}: {1 + len(others)} different images have this id; number them anew")
            path = _find(file.parent / IMAGES, entry.name)
            if names.setdefault(path, entry.name) != entry.name:
                raise Unusable(f"{where}: {path}, which its file_name leads to, is another image's; use other names")
            header = images.header(path, intake)
            sizes = {False: header[:2], True: header.stored}
            frames = [stored for stored, size in sizes.items() if entry.fits(*size)]
            if not frames:
                raise Unusable(
                    f"{path}: the image is {header.width} x {header.height}, but {ANNOTATIONS} says "
                    f"{reprlib.repr(entry.width)} x {reprlib.repr(entry.height)}; use the images that were annotated"
                )
            found[key] = (path, header, frames)
        if others and key in found:
            with intake.leaving_out():
                raise Unusable(f"{where}: is listed {1 + len(others)} times; one of them counts")
    certain = {frames[0] for _, _, frames in found.values() if len(frames) == 1}
    samples: dict[Key, Sample] = {}
    for key, (path, header, frames) in found.items():
        stored = frames == [True]
        if len(frames) == 2 and certain == {True}:  # its size does not tell; the other images do
            stored = header.orientation != images.UPRIGHT
        if stored:
            intake.tell("stored", f"{path}: was annotated without its EXIF rotation, and is not rotated (nor others)")
        samples[key] = Sample(path, *(header.stored if stored else header[:2]), stored=stored)
    return samples


def _find(folder: Path, name: str) -> Path:
    """The file in ``folder`` that the whole name, or as many of its last parts as possible, leads to."""
    for separators in ("/", r"[/\\]"):
        parts = [part for part in re.split(separators, name) if part not in ("", ".", "..")]
        for first in range(len(parts)):
            path = folder.joinpath(*parts[first:])
            if os.path.isfile(path):  # also of names that no file can have
                return path
    raise Unusable(f"{folder / (parts[-1] if parts else name)}: no such image file; check the path")


def _instance(where: str, fields: Fields, sample: Sample, intake: Intake) -> Instance:
    where = f"{where} of {sample.path.name}"
    area, crowd = fields.get("area"), fields.get("iscrowd")
    if area is not None and not (_is_finite(area) and area >= 0):
        raise Unusable(f"{where}: its area is {reprlib.repr(area)}")
    if crowd is not None and crowd not in (0, 1):
        raise Unusable(f"{where}: its iscrowd is {reprlib.repr(crowd)}, neither 0 nor 1")
    return Instance(
        where=where,
        width=sample.width,
        height=sample.height,
        box=_box(where, fields, sample, intake),
        area=None if area is None else float(area),
        crowd=bool(crowd),
        segmentation=fields.get("segmentation"),
    )


def _box(where: str, fields: Fields, sample: Sample, intake: Intake) -> Box:
    values = _field(where, fields, "bbox")
    if not isinstance(values, list) or len(values) != 4 or not all(_is_finite(value) for value in values):
        raise Unusable(f"{where}: its bbox is {reprlib.repr(values)}, not four finite numbers")
    x, y, width, height = map(float, values)
    x0, y0, x1, y1 = (
        max(x, 0.0),
        max(y, 0.0),
        min(x + width, float(sample.width)),
        min(y + height, float(sample.height)),
    )
    if max(map(abs, (x, y, width, height))) > FARTHEST or min(width, height, x1 - x0, y1 - y0) < THINNEST:
        raise Unusable(f"{where}: its bbox {reprlib.repr(values)} is empty, or outside of the image")
    if max(x0 - x, y0 - y, x + width - x1, y + height - y1) > ROUNDING:
        intake.tell("box", f"{where}: its bbox reaches out of the image, and is cut there (so are others)")
    return x0, y0, x1, y1


def _is_finite(value: Any) -> bool:
    """Whether it is a number of JSON that a float can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _fields(where: str, entry: Any) -> Fields:
    if not isinstance(entry, dict):
        raise Unusable(f"{where}: is {reprlib.repr(entry)}, not an object")
    return entry


def _field(where: str, fields: Fields, name: str) -> Any:
    if name not in fields:
        raise Unusable(f"{where}: has no field {name!r}")
    return fields[name]


def _key(where: str, fields: Fields, name: str) -> Key:
    value = _field(where, fields, name)
    if type(value) not in (int, float, str) or value != value:
        raise Unusable(f"{where}: its {name} is {reprlib.repr(value)}")
    return value
