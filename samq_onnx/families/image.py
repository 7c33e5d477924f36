# SPDX-License-Identifier: Apache-2.0
"""An image as the only input of a file: SAM's encoders, and other networks that take one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx import assets, data, images
from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families.layout import PATCH, Layout, Side, layout_of, side_of, takes_side
from samq_onnx.families.part import Part, Role, Signature
from samq_onnx.families.pixels import Pixels, find_pixels
from samq_onnx.families.ports import Port, fit, is_features
from samq_onnx.feeds import EncoderFeeds

__all__ = ["ImageInput", "ImagePart", "sample_image"]


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """A square image of one size.

    Attributes:
        port: of numbers, with free or fixed sides.
        size: side of the square image. pixels: the numbers it wants.
        layout: order of its axes.
        stretched: whether an image fills the square; else its longest side does, and the rest is padded.
        note: a line about ``pixels`` where they are not SAM's usual ones or in doubt, else empty.
    """

    port: Port
    size: int
    pixels: Pixels = Pixels.NORMALISED
    note: str = ""
    layout: Layout = Layout.NCHW
    stretched: bool = False

    @classmethod
    def of(cls, signature: Signature) -> ImageInput | None:
        """The only input of a file if it is an image of numbers, [N, 3, S, S] or in another order of axes, else None.

        The graph tells what pixels it wants, if hints do not; they are SAM's usual ones if there is none. Sides that
        are free are those that make the map that the model gives out, or that hints say.

        Raises:
            UserError: a size that its sides are not.
        """
        return cls.at(signature, signature.inputs[0]) if len(signature.inputs) == 1 else None

    @classmethod
    def at(cls, signature: Signature, port: Port) -> ImageInput | None:
        """As `of`, of one of several inputs."""
        layout = layout_of(port)
        if layout is None:
            return None
        model, where, hints = signature.graph(), signature.where, signature.hints
        found_size = _size(signature, port, layout, model)
        if found_size is None:
            return None
        size, stretched = found_size
        note = ""
        if hints.pixels is not None:
            pixels = hints.pixels
        else:
            found = find_pixels(model, port.name, size) if model is not None else (Pixels.NORMALISED, "")
            pixels, doubt = found
            if doubt:
                note = f"{where}: {doubt}; it is fed pixels {pixels.value}: check that they fit, or say --preprocess"
            elif pixels is not Pixels.NORMALISED:
                note = f"{where}: normalises inside, so it is fed pixels {pixels.value}"
        return cls(port, size, pixels, note, layout, stretched or _is_pyramid(signature.outputs))

    def feed(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """The feed for an image, RGB uint8 [H, W, 3]; it fills the batch. ``shape`` is as for `preprocess`.

        Raises:
            UserError: as `samq_onnx.images.preprocess`.
        """
        made = images.stretch(rgb, self.size) if self.stretched else images.preprocess(rgb, self.size, shape)
        return {self.port.name: fit(self.port, self.layout.of_batch(self.pixels.of_normalised(made)))}

    def coords(self, coords: np.ndarray, height: int, width: int) -> np.ndarray:
        """Points (x, y) of an image of that height and width where they lie in the square, float32 [n, 2]."""
        if self.stretched:
            return np.asarray(coords, np.float64) * (self.size / width, self.size / height)
        return images.to_model_coords(coords, height, width, self.size)


def _is_pyramid(outputs: Sequence[Port]) -> bool:
    """Whether maps of three resolutions, each half of the one before, come out: SAM 2, which stretches its images."""
    sides = {port.side(-1) for port in outputs if is_features(port)} - {None}
    return any({side, 2 * side, 4 * side} <= sides for side in sides if side is not None)


def _size(signature: Signature, port: Port, layout: Layout, model: ir.Model | None) -> Side | None:
    """The square that a file takes, None if its sides differ or nothing tells them."""
    fixed = {side for side in layout.sides(port) if side is not None}
    wanted = signature.hints.size
    if len(fixed) > 1:
        return None
    if fixed:
        told: Side | None = Side(min(fixed), False)
    else:
        told = side_of(model, port.name, layout) if model is not None else None
    if wanted is None or (told is not None and told.pixels == wanted):
        return told
    if told is not None:
        free = not fixed and not told.stretched
        # a network that pools its last map to one size takes other images, too
        if model is None or not (free and takes_side(model, port.name, layout, wanted, told.pixels // PATCH)):
            raise UserError(f"{signature.where}: takes images of {told.pixels} pixels; leave out --input-size {wanted}")
    return Side(wanted, False)


class ImagePart(Part):
    """A file that takes one image.

    Args:
        outputs: role -> name.
    """

    image: ImageInput

    def __init__(
        self, family: str, role: Role, signature: Signature, image: ImageInput, outputs: Mapping[str, str]
    ) -> None:
        super().__init__(family, signature)
        self.role, self.image, self._outputs = role, image, outputs
        self.notes = (image.note,) if image.note else ()

    @property
    def outputs(self) -> Mapping[str, str]:
        return self._outputs

    def feeds(
        self, calibration: Calibration, encoder: Encoder | str | os.PathLike[str] | None, label: str
    ) -> EncoderFeeds:
        self.refuse_encoder(encoder)
        return EncoderFeeds(calibration, self.image)

    def sample_feed(
        self, prompts: int = 1, encoder: Encoder | str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        self.refuse_encoder(encoder)
        return self.image.feed(sample_image())


def sample_image() -> np.ndarray:
    """A bundled image, RGB uint8 [H, W, 3]."""
    return images.load(data.image_paths(assets.demo_images())[0])
