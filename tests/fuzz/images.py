# SPDX-License-Identifier: Apache-2.0
"""Image files of all kinds that Pillow writes, mutated.

A file left whole loads as Pillow converts it; any other loads as RGB of the size that its header gave, or is refused.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from samq_onnx import images
from samq_onnx.errors import UserError
from tests.fuzz.target import FINE, REFUSED, Outcome

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 60.0
ORIENTATION = 0x0112
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
WRITERS = {
    "AVIF": [{}], "BLP": [{}], "BMP": [{}], "DDS": [{}], "DIB": [{}], "EPS": [{}], "GIF": [{}], "ICNS": [{}],
    "ICO": [{}], "IM": [{}], "JPEG": [{}, {"progressive": True}], "JPEG2000": [{}], "MPO": [{}], "MSP": [{}],
    "PCX": [{}], "PDF": [{}], "PNG": [{}, {"bits": 4}], "PPM": [{}], "QOI": [{}], "SGI": [{}], "SPIDER": [{}],
    "TGA": [{}, {"rle": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "packbits"},
             {"compression": "tiff_deflate"}],
    "WEBP": [{}, {"lossless": True}], "XBM": [{}],
}  # fmt: skip
NAMES = ("a.png", "a.jpg", "a.tif", "a.gif", "a.bmp", "a.webp", "a")
SIDES = (0, 1, 2, 255, 4096, 16_384, 40_000, 65_535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)


@dataclasses.dataclass(frozen=True)
class Seed:
    """A whole file, and what it shows; None where an image of this kind is refused or not known here."""

    content: bytes
    kind: str
    shows: np.ndarray | None


def prepare(folder: Path) -> list[Seed]:
    """Files of every format and pixel type that can be written."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (13, 19, 3)).astype(np.uint8))
    smooth = Image.fromarray(np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8))
    wide = Image.fromarray(random.integers(0, 65536, (9, 11)).astype(np.uint16))
    seeds = []
    for kind, choices in WRITERS.items():
        for mode in MODES:
            for options in choices:
                for orientation in (0, 3, 6) if mode == "RGB" else (0,):
                    picture = wide if mode == "I;16" else smooth if mode == "L" else colours
                    extra = {}
                    if orientation:
                        extra["exif"] = Image.Exif()
                        extra["exif"][ORIENTATION] = orientation
                    try:
                        written = io.BytesIO()
                        picture.convert(mode).save(written, kind, **options, **extra)
                        seeds.append(Seed(written.getvalue(), f"{kind} {mode}", _shown(written)))
                    except Exception:
                        continue
    frames = io.BytesIO()
    colours.save(frames, "GIF", save_all=True, append_images=[colours.rotate(90, expand=True)])
    seeds.append(Seed(frames.getvalue(), "GIF of several", None))
    stack = io.BytesIO()
    colours.save(stack, "TIFF", save_all=True, append_images=[smooth])
    seeds.append(Seed(stack.getvalue(), "TIFF of several", None))
    return seeds


def _shown(written: io.BytesIO) -> np.ndarray | None:
    """As Pillow converts it; not for grey of more bits, which has several ways."""
    with Image.open(io.BytesIO(written.getvalue())) as image:
        image.load()
        if image.mode.startswith(("I", "F")) or image.format == "EPS":
            return None
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def case(state: list[Seed], random: np.random.Generator, folder: Path) -> Outcome:
    """One file."""
    seed = state[int(random.integers(len(state)))]
    content, whole = _mutate(seed.content, seed.kind, random)
    file = folder / NAMES[int(random.integers(len(NAMES)))]
    file.write_bytes(content)
    before = Image.MAX_IMAGE_PIXELS
    size: tuple[int, int] | None = None
    try:
        size = images.size(file)
        said = ""
    except UserError as error:
        said = str(error)
    try:
        loaded = images.load(file)
    except UserError as error:
        if "\n" in str(error).strip() or str(file) not in str(error):
            return "words", str(error)
        return ("silent", f"is refused: {error}") if whole and seed.shows is not None else (REFUSED, str(error))
    if before != Image.MAX_IMAGE_PIXELS:
        return "dirty", "the limit of Pillow changed"
    if loaded.dtype != np.uint8 or loaded.ndim != 3 or loaded.shape[2] != 3 or 0 in loaded.shape:
        return "silent", f"loads as {loaded.dtype} {loaded.shape}"
    if size != (loaded.shape[1], loaded.shape[0]):
        return "silent", f"{seed.kind}: loads as {loaded.shape}, its size is {size} {said}"
    if whole and seed.shows is not None and not np.array_equal(loaded, seed.shows):
        return "silent", f"{seed.kind}: other pixels"
    if content != file.read_bytes():
        return "dirty", "the file changed"
    return FINE, "loads"


def _mutate(content: bytes, kind: str, random: np.random.Generator) -> tuple[bytes, bool]:
    """Changed bytes, and whether they are as they were."""
    draw = int(random.integers(10))
    if draw == 0:
        return content, True
    data = bytearray(content)
    if draw == 1:
        return content[: int(random.integers(len(content)))], False
    if draw == 2:
        return content + random.bytes(int(random.integers(1, 100))), False
    if draw == 3:
        return _with_sides(data, kind, random), False
    if draw == 4:
        start, length = int(random.integers(len(data))), int(random.integers(1, 64))
        del data[start : start + length]
    elif draw == 5:
        start = int(random.integers(len(data)))
        data[start:start] = random.bytes(int(random.integers(1, 64)))
    elif draw == 6:  # a number somewhere in front
        start = int(random.integers(min(len(data), 200)))
        value = SIDES[int(random.integers(len(SIDES)))]
        form = ("<H", ">H", "<I", ">I")[int(random.integers(4))]
        data[start : start + struct.calcsize(form)] = struct.pack(form, value & (0xFFFF if "H" in form else 0xFFFFFFFF))
    else:
        reach = len(data) if random.random() < 0.5 else min(len(data), 100)
        for _ in range(int(random.integers(1, 5))):
            data[int(random.integers(reach))] ^= 1 << int(random.integers(8))
    if kind.startswith("PNG") and random.random() < 0.7:
        _mend_checksums(data)
    return bytes(data), False


def _with_sides(data: bytearray, kind: str, random: np.random.Generator) -> bytes:
    """Another width and height in the header, of the formats whose headers are simple."""
    width, height = (SIDES[int(random.integers(len(SIDES)))] for _ in range(2))
    if kind.startswith("PNG"):
        data[16:24] = struct.pack(">II", width, height)
        _mend_checksums(data)
    elif kind.startswith(("BMP", "DIB")):
        start = 18 if kind.startswith("BMP") else 4
        data[start : start + 8] = struct.pack("<II", width, height)
    elif kind.startswith("GIF"):
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif kind.startswith(("JPEG ", "MPO")):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            start = data.find(marker)
            if start >= 0:
                data[start + 5 : start + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif kind.startswith("PPM"):
        end = data.find(b"\n", 3)
        data[3:end] = f"{width} {height}".encode()
    elif kind.startswith("TIFF"):
        start = struct.unpack_from("<I", data, 4)[0]
        for tag, value in ((256, width), (257, height)):
            place = data.find(struct.pack("<H", tag), start)
            if 0 <= place <= len(data) - 12:
                data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, value)
    elif kind.startswith("QOI"):
        data[4:12] = struct.pack(">II", width, height)
    elif kind.startswith("TGA"):
        data[12:16] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    else:
        data[int(random.integers(min(32, len(data))))] = int(random.integers(256))
    return bytes(data)


def _mend_checksums(data: bytearray) -> None:
    """Of a PNG's chunks, so that what is in them is read."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
