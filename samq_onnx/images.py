# SPDX-License-Identifier: Apache-2.0
"""Images as SAM wants them: read as RGB, scaled to the model's square, coordinates along with them.

The geometry and the statistics are those of ``segment_anything.utils.transforms.ResizeLongestSide`` and
``segment_anything.modeling.Sam.preprocess``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from samq_onnx.errors import UserError
from samq_onnx.intake import Intake, Unusable

__all__ = [
    "Header",
    "header",
    "is_too_narrow",
    "load",
    "preprocess",
    "resized_shape",
    "size",
    "stretch",
    "to_model_coords",
]

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
BACK = {6: 8, 8: 6}  # orientations that are not undone by themselves
TIFF_SIZE = (256, 257)  # tags of width and height
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE = 65535
HALF_RANGE = WHITE // 2  # values that span no more leave a bit unused, as those of cameras of 10 to 14 bits do
WINDOW = (0.001, 0.999)  # share of the pixels below black, and up to white
BLOCK = 1 << 22  # grey pixels that are looked up together
REDUCED_ABOVE = 88_000_000  # pixels
REDUCED_SIDE = 4096  # pixels that the longest side keeps at least
FOREIGN = frozenset({"EPS"})  # Pillow hands it to another program
PNG_SIGNATURE = 8  # bytes
PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

_opening = threading.Lock()


class Header(NamedTuple):
    """What an image file says of itself: width and height as `load` gives it, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the pixels in the file."""
        return (self.height, self.width) if self.orientation in TRANSPOSED else (self.width, self.height)


def load(
    path: str | os.PathLike[str], intake: Intake | None = None, *, stored: bool = False, reduced: bool = False
) -> np.ndarray:
    """Read an image file as RGB, uint8 [H, W, 3]; the first image of a file that holds several.

    The EXIF rotation is applied. Grey is repeated to three channels. 16-bit grey is scaled from its full range (65535
    becomes 255); where its values span less than half of it, from the range that leaves out the darkest and the
    brightest thousandth of its pixels. An alpha channel is dropped, as in the usual ways to load an image for SAM
    (``cv2.imread``, ``PIL.Image.convert("RGB")``), so that the pixels are those the float model sees there.

    Args:
        intake: whose limit of pixels holds, and which says what is done to the pixels.
        stored: do not apply the EXIF rotation.
        reduced: an image of more than 88 megapixels comes at 1/2, 1/4 or 1/8 of its size, its longest side at least
            4096 pixels. JPEG is decoded at that size.

    Raises:
        Unusable: no such file, not an image, damaged, too large, or of a pixel type without a defined range.
    """
    file, intake = Path(path), intake or Intake()
    with _opened(file, intake) as (image, found):
        divisor = _divisor(*image.size) if reduced else 1
        if divisor > 1:
            intake.tell(
                "reduced", f"{file}: is read at 1/{divisor} of its size, as it is large (other such images too)"
            )
            image.draft(None, (image.width // divisor, image.height // divisor))  # done by formats that can
        if image.format != "MPO" and _holds_several(image):  # of a photo, the others are previews
            intake.tell("several", f"{file}: holds several images; the first is used (of other such files too)")
        deep = _is_deep_colour(image)
        with _quiet(image.format):
            image.load()
        # some formats are turned by Pillow itself, which takes the orientation away
        turned = _orientation(image) != found.orientation
        rgb = _rgb(file, image, intake)
        if divisor > 1 and max(rgb.size) == max(found.stored):
            rgb = rgb.reduce(divisor)
        pixels = np.array(rgb)
    if deep and pixels.max() <= 255 // 2:
        intake.tell("deep", f"{file}: fills a part of 16 bits, whose upper eight are read; scale it to all of them")
    if turned == stored:
        pixels = _turned(pixels, BACK.get(found.orientation, found.orientation) if turned else found.orientation)
    width, height = found.stored if stored else (found.width, found.height)
    if divisor == 1 and pixels.shape[:2] != (height, width):
        raise Unusable(f"{file}: the image is not of the size that its header says; convert it to PNG or JPEG")
    return pixels


def size(path: str | os.PathLike[str], intake: Intake | None = None) -> tuple[int, int]:
    """Width and height of an image as `load` returns it, from its header alone.

    Raises:
        Unusable: no such file, not an image or too large.
    """
    width, height, _ = header(path, intake)
    return width, height


def header(path: str | os.PathLike[str], intake: Intake | None = None) -> Header:
    """Size and orientation of an image, without decoding it.

    Raises:
        Unusable: as `size`.
    """
    with _opened(Path(path), intake or Intake()) as (_, found):
        return found


def is_too_narrow(height: int, width: int, size: int) -> bool:
    """Whether nothing is left of an image's short side after its longest became ``size``."""
    return min(resized_shape(height, width, size)) < 1


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the longest side became ``size``, rounded as SAM rounds."""
    scale = size / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def to_model_coords(points: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Scale (x, y) points [..., 2] from the original image to the encoder's frame, float64 [..., 2]."""
    new_height, new_width = resized_shape(height, width, size)
    return np.asarray(points, np.float64) * (new_width / width, new_height / height)


def stretch(rgb: np.ndarray, size: int) -> np.ndarray:
    """As `preprocess`, of an image that fills the square whatever its sides are, as SAM 2 takes it.

    Raises:
        UserError: not an RGB uint8 image.
    """
    _check_rgb(rgb)
    resized = Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR)
    return ((np.asarray(resized, np.float32) - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)[None]


def _check_rgb(rgb: np.ndarray) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise UserError(f"an image must be RGB uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}; use images.load")


def preprocess(rgb: np.ndarray, size: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Turn RGB uint8 [H, W, 3] into the encoder input float32 [1, 3, size, size].

    The longest side is resized to ``size`` (PIL's bilinear filter), pixels are normalised and the rest is zero,
    at the bottom and on the right. ``shape`` is height and width of the original where ``rgb`` was reduced.

    Raises:
        UserError: not an RGB uint8 image, or so long and narrow that nothing is left of its short side.
    """
    _check_rgb(rgb)
    height, width = shape or (rgb.shape[0], rgb.shape[1])
    if is_too_narrow(height, width, size):
        raise UserError(f"an image of {width} x {height} pixels is too narrow for SAM; crop it")
    height, width = resized_shape(height, width, size)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((1, 3, size, size), np.float32)
    canvas[0, :, :height, :width] = ((np.asarray(resized, np.float32) - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    return canvas


@contextlib.contextmanager
def _opened(file: Path, intake: Intake) -> Iterator[tuple[Image.Image, Header]]:
    """An image whose pixels are not read yet. Whatever Pillow raises, also while it is open, becomes `Unusable`."""
    if not os.path.isfile(file):  # also of names that no file can have
        raise Unusable(f"{file}: no such image file; check the path")
    try:
        with _limit(intake.max_pixels):
            image = Image.open(file, formats=[kind for kind in Image.ID if kind not in FOREIGN])
            try:
                found = _header(file, image)
            except BaseException:
                image.close()
                raise
        with image:
            yield image, found
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = intake.max_pixels // 1_000_000
        raise Unusable(
            f"{file}: the image has more than {limit} megapixels; --max-megapixels raises the limit"
        ) from error
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise Unusable(f"{file}: the image does not decode ({_reason(error)}); convert it to PNG or JPEG") from error


@contextlib.contextmanager
def _limit(pixels: int) -> Iterator[None]:
    """Pillow's own limit, which belongs to the whole process, is another one for a moment, and an error."""
    Image.init()
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _quiet(kind: str | None) -> Iterator[None]:
    """Keep decoders from writing to stderr what they raise as well, where that is no other thread's too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if kind == "TIFF":  # libtiff writes past Python
            with contextlib.suppress(OSError):  # no stderr is quiet
                before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 2)
                os.close(nothing)
                stack.callback(os.close, before)
                stack.callback(os.dup2, before, 2)
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return "out of memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__


def _header(file: Path, image: Image.Image) -> Header:
    if image.format == "PNG" and _has_metadata_behind_pixels(file):
        image.load()
    orientation = _orientation(image)
    width, height = image.size
    if image.format == "TIFF":  # versions of Pillow differ in whether this size is of the stored or the turned image
        width, height = (int(image.tag_v2[tag]) for tag in TIFF_SIZE)  # type: ignore[attr-defined]
    return Header(*((height, width) if orientation in TRANSPOSED else (width, height)), orientation)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where nothing, or nothing that is one, is said."""
    try:
        value = Image.Image.getexif(image).get(EXIF_ORIENTATION)  # that of PNG would decode the image
    except Exception:  # what is broken is not the pixels
        return UPRIGHT
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


def _has_metadata_behind_pixels(file: Path) -> bool:
    """Whether a PNG file has chunks that may hold an orientation, and that Pillow reads only with the pixels."""
    behind = False
    with file.open("rb") as stream:
        stream.seek(PNG_SIGNATURE)
        while len(start := stream.read(8)) == 8:
            kind = start[4:]
            if behind and kind in PNG_METADATA:
                return True
            behind = behind or kind == b"IDAT"
            stream.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
    return False


def _holds_several(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second one is there, and broken
        return True


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a colour has 16 bits, of which Pillow gives the upper eight."""
    known = image.format in ("PNG", "TIFF") and image.mode not in WIDE_GREY_MODES
    return known and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _divisor(width: int, height: int) -> int:
    """That an image is reduced by."""
    fitting = (divisor for divisor in (8, 4, 2) if max(width, height) // divisor >= REDUCED_SIDE)
    return next(fitting, 1) if width * height > REDUCED_ABOVE else 1


def _rgb(file: Path, image: Image.Image, intake: Intake) -> Image.Image:
    if image.mode == "F":
        raise Unusable(f"{file}: floating-point pixels have no defined range; convert the image to 8 or 16 bits")
    if image.mode in WIDE_GREY_MODES:
        image = Image.fromarray(_grey(file, np.asarray(image), intake))
    image.info.pop("transparency", None)  # Pillow would warn of some
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(file: Path, wide: np.ndarray, intake: Intake) -> np.ndarray:
    """Grey uint8 [H, W] of grey of 16 bits, integers [H, W]."""
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > WHITE:
        raise Unusable(f"{file}: grey values beyond 16 bits; convert the image to 8 or 16 bits")
    flat = wide.reshape(-1)
    blocks = [slice(start, start + BLOCK) for start in range(0, flat.size, BLOCK)]
    black, white = 0, WHITE
    if 0 < high - low <= HALF_RANGE:
        counts = sum(np.bincount(flat[block], minlength=WHITE + 1) for block in blocks)
        black, white = (int(value) for value in np.searchsorted(np.cumsum(counts), np.array(WINDOW) * flat.size))
        if black == white:  # but for a few pixels it is constant
            black, white = low, high
        intake.tell("window", f"{file}: fills a part of 16 bits, and is shown from {black} to {white} (so are others)")
    span = white - black
    table = ((np.arange(WHITE + 1).clip(black, white) - black) * 255 + span // 2) // span
    grey = np.empty(flat.shape, np.uint8)
    for block in blocks:
        grey[block] = table[flat[block]]
    return grey.reshape(wide.shape)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, 3] as an EXIF orientation says that they are to be seen."""
    if orientation in TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
