# SPDX-License-Identifier: Apache-2.0
"""An image as the only input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import images
from samq_onnx.families import Role, Signature
from samq_onnx.families.image import ImageInput, ImagePart
from samq_onnx.families.pixels import Pixels
from samq_onnx.families.ports import Port
from tests.families.exports import RGB


def _no_graph() -> ir.Model | None:
    return None


def _signature(*inputs: Port) -> Signature:
    return Signature(inputs, (), "it", _no_graph, lambda: pytest.fail("needs no session"))


IMAGE = Port("image", "float32", (1, 3, 64, 64))


def test_it_is_found() -> None:
    image = ImageInput.of(_signature(IMAGE))
    assert image == ImageInput(IMAGE, 64, Pixels.NORMALISED, "")
    free = ImageInput.of(_signature(Port("image", "uint8", ("n", 3, 64, 64))))
    assert free is not None and free.size == 64


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [IMAGE, Port("gain", "float32", ())],
        [Port("image", "float32", None)],
        [Port("image", "float32", (64, 64))],
        [Port("image", "float32", (1, 4, 64, 64))],
        [Port("image", "float32", (1, 3, 64, 32))],
        [Port("image", "float32", (1, 3, "side", "side"))],
        [Port("image", "float32", (0, 3, 64, 64))],
        [Port("image", "string", (1, 3, 64, 64))],
    ],
)
def test_anything_else_is_none(inputs: list[Port]) -> None:
    assert ImageInput.of(_signature(*inputs)) is None


def test_images_and_points_lie_in_one_frame() -> None:
    image = ImageInput(Port("image", "float64", (2, 3, 64, 64)), 64)
    (fed,) = image.feed(RGB).values()
    assert fed.dtype == np.float64
    np.testing.assert_array_equal(fed, np.repeat(images.preprocess(RGB, 64), 2, axis=0))
    height, width = RGB.shape[:2]
    corner = image.coords(np.array([[width, height]]), height, width)[0]
    assert corner.max() == 64 and corner[0] / corner[1] == pytest.approx(width / height, rel=0.02)


def test_a_note_is_one_of_the_part() -> None:
    for note in ("", "look"):
        part = ImagePart("f", Role.GENERIC, _signature(IMAGE), ImageInput(IMAGE, 64, note=note), {})
        assert part.notes == ((note,) if note else ())
