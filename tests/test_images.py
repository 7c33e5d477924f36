# SPDX-License-Identifier: Apache-2.0
"""Reading images of all kinds, and their geometry in the encoder's frame."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from samq_onnx import images
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake, Unusable

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


def grey16(path: Path, *values: int) -> np.ndarray:
    """A 16-bit image of these values as it loads, one row."""
    Image.fromarray(np.array([values], np.uint16)).save(path)
    return images.load(path)[0, :, 0]


def test_16_bit_grey_that_leaves_a_bit_unused_is_scaled_from_its_own_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a camera of 12 bits: as a part of 16 bits its brightest pixel would be 16 of 255
    assert grey16(tmp_path / "camera.png", 100, 2148, 4095).tolist() == [0, 131, 255]
    assert "warning: " in capsys.readouterr().err
    # the border: values that span half of the range, and one more, which no number of 15 bits does
    assert grey16(tmp_path / "half.png", 1000, 33767).tolist() == [0, 255]
    capsys.readouterr()
    assert grey16(tmp_path / "more.png", 1000, 33768).tolist() == [4, 131]
    assert capsys.readouterr().err == ""


def test_the_darkest_and_brightest_thousandth_do_not_set_the_range(tmp_path: Path) -> None:
    values = np.concatenate([np.full(5000, 1000), np.full(5000, 2000), [0], [30_000]])
    loaded = grey16(tmp_path / "hot.png", *values)
    assert (loaded[:5000] == 0).all() and (loaded[5000:10_000] == 255).all()
    assert (loaded[10_000], loaded[10_001]) == (0, 255)
    spots = grey16(tmp_path / "spots.png", *([500] * 5000), 600, 700)  # too few to be a thousandth
    assert (spots[:5000] == 0).all() and spots[-2:].tolist() == [128, 255]


def test_constant_grey_is_scaled_from_the_full_range(tmp_path: Path) -> None:
    assert [grey16(tmp_path / "one.png", value, value)[0] for value in (0, 257, 65535)] == [0, 1, 255]


def test_what_is_said_of_many_images_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey16(tmp_path / "one.png", 0, 4095)
    capsys.readouterr()
    intake = Intake()
    for _ in range(3):
        images.load(tmp_path / "one.png", intake)
    assert capsys.readouterr().err.count("\n") == 1


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def test_16_bit_colour_of_few_bits_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("dark", 4095), ("bright", 65535)):
        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        pixels = zlib.compress(b"\0" + struct.pack(">HHH", value, value, value))
        parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        assert images.load(tmp_path / f"{name}.png").tolist() == [[[value >> 8] * 3]]
        assert ("upper eight" in capsys.readouterr().err) == (name == "dark")


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    loaded = images.load(tmp_path / "turned.png")
    assert np.array_equal(loaded, np.rot90(RGB, turns))
    assert images.size(tmp_path / "turned.png") == (loaded.shape[1], loaded.shape[0])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_exif_orientation_and_none(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    Image.fromarray(RGB).save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    with Image.open(tmp_path / name) as opened:
        expected = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(images.load(tmp_path / name), expected)
    assert images.size(tmp_path / name) == (expected.shape[1], expected.shape[0])
    assert np.array_equal(images.load(tmp_path / name, stored=True), RGB)
    assert images.header(tmp_path / name).stored == (7, 5)


def test_an_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "late.png")
    whole = (tmp_path / "late.png").read_bytes()
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6
    (tmp_path / "late.png").write_bytes(whole[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + whole[-12:])
    assert images.size(tmp_path / "late.png") == (5, 7)
    assert np.array_equal(images.load(tmp_path / "late.png"), np.rot90(RGB, 3))
    (tmp_path / "cut.png").write_bytes(whole[:-60])  # otherwise the header is enough
    assert images.size(tmp_path / "cut.png") == (7, 5)


def test_the_limit_of_pixels_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1001, 1000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for read in (images.load, images.size):
        with pytest.raises(Unusable, match=r"a\.png: .* more than 1 megapixels; --max-megapixels"):
            read(tmp_path / "a.png", Intake(max_megapixels=1))
    assert images.load(tmp_path / "a.png", Intake(max_megapixels=2)).shape == (1000, 1001, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert Intake().max_pixels > 300_000_000
    for wrong in (0, -1, 10**9):
        with pytest.raises(UserError, match="max-megapixels"):
            Intake(max_megapixels=wrong)


def test_a_header_of_huge_size_takes_no_memory(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)))
    with pytest.raises(Unusable, match="--max-megapixels"):
        images.load(tmp_path / "bomb.png")


@pytest.mark.parametrize("name", ["large.jpg", "large.png", "turned.jpg"])
def test_large_images_are_read_reduced(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "REDUCED_ABOVE", 5000)
    monkeypatch.setattr(images, "REDUCED_SIDE", 30)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6 if name == "turned.jpg" else 1
    ramp = np.add.outer(np.arange(60), np.arange(90)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / name, exif=exif, quality=95)
    whole, reduced = images.load(tmp_path / name), images.load(tmp_path / name, reduced=True)
    assert reduced.shape == ((45, 30, 3) if name == "turned.jpg" else (30, 45, 3))
    assert np.abs(whole.reshape(reduced.shape[0], 2, reduced.shape[1], 2, 3).mean((1, 3)) - reduced).max() < 4
    assert images.size(tmp_path / name) == (whole.shape[1], whole.shape[0])
    assert "1/2 of its size" in capsys.readouterr().err
    Image.fromarray(ramp[:50]).save(tmp_path / name)
    assert images.load(tmp_path / name, reduced=True).shape == (50, 90, 3)


def test_kinds_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.fromarray(RGB)
    palette = picture.quantize(16)
    colours = np.array(palette.convert("RGB"))
    palette.save(tmp_path / "clear.png", transparency=bytes(range(16)))
    assert np.array_equal(images.load(tmp_path / "clear.png"), colours)
    assert capsys.readouterr().err == ""
    picture.save(tmp_path / "several.gif", save_all=True, append_images=[picture.rotate(90)])
    with Image.open(tmp_path / "several.gif") as first:
        assert np.array_equal(images.load(tmp_path / "several.gif"), np.array(first.convert("RGB")))
    assert "several images" in capsys.readouterr().err
    picture.convert("CMYK").save(tmp_path / "print.tif")
    assert np.array_equal(images.load(tmp_path / "print.tif"), np.array(picture.convert("CMYK").convert("RGB")))
    picture.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(images.load(tmp_path / "bits.png"))) == {0, 255}
    picture.convert("LA").save(tmp_path / "grey_alpha.png")
    assert np.array_equal(images.load(tmp_path / "grey_alpha.png"), np.array(picture.convert("L").convert("RGB")))
    picture.save(tmp_path / "wrong.jpg", "PNG")
    assert np.array_equal(images.load(tmp_path / "wrong.jpg"), RGB)
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")
    assert images.load(tmp_path / "line.png").shape == (1, 60_000, 3)


def test_files_that_do_not_decode(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.repeat(RGB, 40, axis=0)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-400])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    Image.fromarray(RGB).save(tmp_path / "script.png", "EPS")  # Pillow would run another program
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "damaged.tif", compression="tiff_deflate")
    damaged = bytearray((tmp_path / "damaged.tif").read_bytes())
    damaged[3000] ^= 255
    (tmp_path / "damaged.tif").write_bytes(damaged)
    for name, reason in (
        ("missing.png", "no such image file"),
        ("text.png", "not an image"),
        ("cut.png", "does not decode"),
        ("float.tif", "floating-point"),
        ("empty.png", "not an image"),
        ("folder.png", "no such image file"),
        ("loop.png", "no such image file"),
        ("x" * 5000, "no such image file"),
        ("nul\0.png", "no such image file"),
        ("script.png", "not an image"),
        ("damaged.tif", "does not decode"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            images.load(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(UserError, match="not an image"):
        images.size(tmp_path / "text.png")
    assert capfd.readouterr().err == ""  # decoders say it by the error alone


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
