# SPDX-License-Identifier: Apache-2.0
"""Reading images of all kinds, and their geometry in the encoder's frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samq_onnx import images
from samq_onnx.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_alpha_is_dropped_and_grey_repeated(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB, np.zeros((5, 7), np.uint8)])).save(tmp_path / "alpha.png")
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(images.load(tmp_path / "alpha.png"), RGB)
    assert np.array_equal(images.load(tmp_path / "grey.png"), np.repeat(RGB[..., :1], 3, axis=2))


def test_palette(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB).quantize(16)
    picture.save(tmp_path / "palette.png")
    assert np.array_equal(images.load(tmp_path / "palette.png"), np.array(picture.convert("RGB")))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bit_grey_keeps_its_full_range(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([[0, 257, 257 * 100, 65535]], np.uint16)).save(tmp_path / name)
    loaded = images.load(tmp_path / name)
    assert loaded.dtype == np.uint8
    assert loaded[0, :, 1].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    loaded = images.load(tmp_path / "turned.png")
    assert np.array_equal(loaded, np.rot90(RGB, turns))
    assert images.size(tmp_path / "turned.png") == (loaded.shape[1], loaded.shape[0])


def test_files_that_do_not_decode(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.repeat(RGB, 40, axis=0)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-400])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name, reason in (
        ("missing.png", "no such image file"),
        ("text.png", "not an image"),
        ("cut.png", "does not decode"),
        ("float.tif", "floating-point"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            images.load(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(UserError, match="not an image"):
        images.size(tmp_path / "text.png")


@pytest.mark.parametrize(
    ("shape", "expected"), [((480, 640), (768, 1024)), ((1040, 1388), (767, 1024)), ((3, 2), (1024, 683))]
)
def test_resized_shape_rounds_as_sam(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert images.resized_shape(*shape, 1024) == expected


def test_coordinates_scale_by_axis() -> None:
    scaled = images.to_model_coords(np.array([[1388, 1040], [694, 0]]), 1040, 1388, 1024)
    np.testing.assert_allclose(scaled, [[1024, 767], [512, 0]])


def test_preprocess_normalises_and_pads() -> None:
    colour = np.array([200, 0, 100], np.uint8)
    made = images.preprocess(np.tile(colour, (30, 60, 1)), 64)
    assert made.shape == (1, 3, 64, 64) and made.dtype == np.float32
    expected = [(200 - 123.675) / 58.395, -116.28 / 57.12, (100 - 103.53) / 57.375]
    np.testing.assert_allclose(made[0, :, :32], np.broadcast_to(np.array(expected)[:, None, None], (3, 32, 64)), 1e-5)
    assert not made[0, :, 32:].any()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (1, 3000, 3)])
def test_preprocess_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        images.preprocess(np.zeros(shape, np.uint8), 1024)
