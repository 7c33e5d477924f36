# SPDX-License-Identifier: Apache-2.0
"""Annotated and plain folders of images."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samq_onnx import data, images
from samq_onnx.errors import UserError
from samq_onnx.families.image import ImageInput
from samq_onnx.families.ports import Port
from samq_onnx.feeds import EncoderFeeds
from samq_onnx.intake import Intake, Unusable

WIDTH, HEIGHT = 10, 8
SQUARE = np.zeros((HEIGHT, WIDTH), bool)
SQUARE[2:6, 3:8] = True
POLYGON = [[3, 2, 8, 2, 8, 6, 3, 6]]
# column by column: 3 empty columns and 2 pixels, then runs of 4 with 4 between, then the rest
COUNTS = [3 * HEIGHT + 2, *[4] * 9, 2 * HEIGHT + 2]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def annotation(segmentation: Any, **fields: Any) -> dict[str, Any]:
    base = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 20, "bbox": [3, 2, 5, 4]}
    return base | {"segmentation": segmentation} | fields


def write(folder: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """A folder with one image and these annotations."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "one.png")
    entry = {"id": 7, "file_name": "one.png", "width": WIDTH, "height": HEIGHT} | image
    (folder / "annotations.json").write_text(json.dumps({"images": [entry], "annotations": annotations}))
    return folder


def load_one(folder: Path, segmentation: Any, **fields: Any) -> data.Instance:
    return data.load_coco(write(folder, [annotation(segmentation, **fields)]))[0].instances[0]


@pytest.mark.parametrize(
    "segmentation",
    [POLYGON, compressed(SQUARE), {"size": [HEIGHT, WIDTH], "counts": COUNTS}],
    ids=["poly", "rle", "runs"],
)
def test_masks_of_all_spellings(tmp_path: Path, segmentation: Any) -> None:
    instance = load_one(tmp_path, segmentation)
    assert np.array_equal(instance.mask(), SQUARE)
    assert instance.box == (3, 2, 8, 6) and not instance.crowd
    x, y = instance.point()
    assert SQUARE[int(y), int(x)]


def test_several_polygons_are_one_mask_and_degenerate_ones_nothing(tmp_path: Path) -> None:
    instance = load_one(tmp_path, [*POLYGON, [0, 0, 2, 0, 2, 2, 0, 2], [9, 7, 9, 7]])
    expected = SQUARE.copy()
    expected[:2, :2] = True
    assert np.array_equal(instance.mask(), expected)


def test_crowds_are_flagged(tmp_path: Path) -> None:
    assert load_one(tmp_path, {"size": [HEIGHT, WIDTH], "counts": COUNTS}, iscrowd=1).crowd


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[1, 2, 3, 4]],
        {"size": [WIDTH, HEIGHT], "counts": COUNTS},
        {"size": [HEIGHT, WIDTH], "counts": COUNTS[:-1]},
        {"counts": COUNTS},
        None,
    ],
)
def test_segmentations_that_do_not_decode(tmp_path: Path, segmentation: Any) -> None:
    instance = load_one(tmp_path, segmentation)
    with pytest.raises(Unusable, match=r"annotation 1 of one\.png: the segmentation does not decode"):
        instance.mask()
    if segmentation:
        with pytest.raises(Unusable, match="the segmentation does not decode"):
            instance.point()
    else:  # a box without polygon
        assert instance.point() == (5.5, 4)


def test_prompts_do_not_need_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    instance = load_one(tmp_path, POLYGON)
    assert instance.box == (3, 2, 8, 6) and instance.point() == (5.5, 4)
    with pytest.raises(UserError, match=r"pip install samq_onnx\[eval\]"):
        instance.mask()


def test_interior_point_is_the_pixel_of_the_mask_nearest_its_centroid() -> None:
    mask = np.zeros((20, 30), bool)
    mask[12:17, 20:27] = True
    assert data.interior_point(mask) == (23.5, 14.5)
    mask[13:16, 21:26] = False  # a ring: its centroid is outside
    x, y = data.interior_point(mask)
    assert mask[int(y), int(x)]
    assert (x, y) == (23.5, 12.5)
    with pytest.raises(UserError, match="empty mask"):
        data.interior_point(np.zeros((3, 3), bool))


def test_broken_annotations(tmp_path: Path) -> None:
    good = annotation(POLYGON)
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        ([good], {"file_name": "two.png"}, "no such image file"),
        ([good], {"width": WIDTH + 1}, r"is 10 x 8, but annotations\.json says 11 x 8"),
        ([good], {"id": 8}, "image 7, which is not listed"),
        ([{key: good[key] for key in good if key != "bbox"}], {}, "no field 'bbox'"),
        ([annotation(POLYGON, bbox=[1, 2, 3])], {}, "not four finite numbers"),
    ]
    for entries, image, reason in cases:
        folder, intake = write(tmp_path, entries, **image), Intake()
        with pytest.raises(UserError, match=reason):
            data.load_coco(folder, Intake(strict=True))
        with contextlib.suppress(UserError):  # the one image is left out
            assert data.load_coco(folder, intake)[0].instances == ()
        assert len(intake.left_out) == 1 and re.search(reason, intake.left_out[0])
    for text in ("not json", "[]", '{"images": []}', '{"images": [], "annotations": []}'):
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(UserError, match=r"annotations\.json: "):
            data.load_coco(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        data.load_coco(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such file"):
        data.load_coco(tmp_path / "images")


def test_plain_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        data.image_paths(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        data.image_paths(tmp_path / "nowhere")
    for name in ("b.png", "a.JPG"):
        Image.new("L", (4, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in data.image_paths(tmp_path)] == ["a.JPG", "b.png"]
    assert data.samples(tmp_path)[0] == data.Sample(tmp_path / "a.JPG", 4, 3)


def test_an_annotated_folder_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    write(tmp_path, [])
    Image.new("L", (4, 3)).save(tmp_path / "images" / "a.png")
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"].append({"id": 1, "file_name": "a.png", "width": 4, "height": 3})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert [sample.path.name for sample in data.samples(tmp_path)] == ["one.png", "a.png"]
    assert [path.name for path in data.image_paths(tmp_path)] == ["a.png", "one.png"]


def changed(folder: Path, change: Any) -> list[data.Sample]:
    """The folder of one image and two squares, loaded after a change to what its file says."""
    write(folder, [annotation(POLYGON), annotation(compressed(SQUARE), id=2)])
    content = json.loads((folder / "annotations.json").read_text())
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content))
    return data.load_coco(folder)


NAMES = ["images/one.png", "images\\one.png", "..\\label\\one.png", "./one.png", "/home/me/one.png", "C:\\me\\one.png"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_as_tools_write_them(tmp_path: Path, name: str) -> None:
    plain = changed(tmp_path, lambda content: None)
    assert changed(tmp_path, lambda content: content["images"][0].update(file_name=name)) == plain


def test_file_names_that_lead_into_folders_below(tmp_path: Path) -> None:
    write(tmp_path, [annotation(POLYGON)], file_name="train\\one.png")
    (tmp_path / "images" / "train").mkdir()
    (tmp_path / "images" / "one.png").rename(tmp_path / "images" / "train" / "one.png")
    assert data.load_coco(tmp_path)[0].path == tmp_path / "images" / "train" / "one.png"
    calibration = data.Calibration(tmp_path)
    assert [sample.path.name for sample in calibration.images] == ["one.png"]
    assert data.files(tmp_path) == [calibration.images[0].path, tmp_path / "annotations.json"]


@pytest.mark.parametrize(
    "name", ["../one.png", "../../one.png", "/etc/passwd", "..", "", "a/" * 3000, "x" * 300, "\0", 5]
)
def test_nothing_outside_of_the_images_is_read(tmp_path: Path, name: Any) -> None:
    folder = write(tmp_path / "a", [annotation(POLYGON)], file_name=name)
    for place in (tmp_path, tmp_path / "a"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(place / "one.png")
    (folder / "images" / "one.png").unlink()
    with pytest.raises(UserError, match="lists no image that can be used; left out: "):
        data.load_coco(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [entry.pop("area") for entry in content["annotations"]],
        lambda content: [entry.update(iscrowd=None) for entry in content["annotations"]],
        lambda content: [entry.pop("iscrowd") for entry in content["annotations"]],
        lambda content: [entry.pop("category_id") for entry in content["annotations"]],
        lambda content: [content["images"][0].pop(side) for side in ("width", "height")],
        lambda content: content["images"][0].update(width=None),
        lambda content: content.update(info={}, licenses=[]),
    ],
)
def test_fields_that_may_be_missing(tmp_path: Path, change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (sample,) = changed(tmp_path, change)
    assert (sample.width, sample.height) == (WIDTH, HEIGHT)
    assert all(np.array_equal(instance.mask(), SQUARE) and not instance.crowd for instance in sample.instances)
    assert len(sample.instances) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    plain = changed(tmp_path, lambda content: None)
    file = tmp_path / "annotations.json"
    file.write_bytes(file.read_text().encode(encoding))
    assert data.load_coco(tmp_path) == plain


ODD_ENTRIES: list[tuple[Any, str]] = [
    (None, "is None, not an object"),
    ([], r"is \[\], not an object"),
    ("a", "is 'a', not an object"),
    *(({name: value}, reason) for name, value, reason in [
        ("bbox", None, "not four finite numbers"),
        ("bbox", [1, 2, 3], "not four finite numbers"),
        ("bbox", ["1", 2, 3, 4], "not four finite numbers"),
        ("bbox", [True, 2, 3, 4], "not four finite numbers"),
        ("bbox", [float("nan"), 2, 3, 4], "not four finite numbers"),
        ("bbox", [10**400, 2, 3, 4], "not four finite numbers"),
        ("bbox", {"x": 1}, "not four finite numbers"),
        ("bbox", [3, 2, 0, 4], "empty"),
        ("bbox", [3, 2, -5, 4], "empty"),
        ("bbox", [3, 2, 1e-9, 4], "empty"),
        ("bbox", [3, 2, 1e18, 4], "outside of the image"),
        ("bbox", [WIDTH, 2, 5, 4], "outside of the image"),
        ("bbox", [3, -9, 5, 4], "outside of the image"),
        ("area", "20", "its area is '20'"),
        ("area", -1, "its area is -1"),
        ("area", float("nan"), "its area is nan"),
        ("area", 10**400, "its area is 1000"),
        ("iscrowd", "0", "neither 0 nor 1"),
        ("iscrowd", 2, "neither 0 nor 1"),
        ("image_id", 8, "image 8, which is not listed"),
        ("image_id", [7], r"its image_id is \[7\]"),
        ("image_id", None, "its image_id is None"),
        ("image_id", True, "its image_id is True"),
        ("id", 1, "another one before it has this id"),
        ("id", {}, "its id is {}"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "reason"), ODD_ENTRIES)
def test_an_annotation_that_cannot_be_used_is_left_out(
    tmp_path: Path, entry: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = annotation(POLYGON)
    bad = annotation(POLYGON, id=2) | entry if isinstance(entry, dict) else entry
    folder, intake = write(tmp_path, [good, bad, annotation(POLYGON, id=3)]), Intake()
    (sample,) = data.load_coco(folder, intake)
    assert [instance.where.split()[2] for instance in sample.instances] == ["1", "3"]
    (line,) = intake.left_out
    assert re.search(reason, line) and str(folder / "annotations.json") in line
    assert capsys.readouterr().err == f"warning: left out: {line}\n"
    with pytest.raises(UserError, match=reason):
        data.load_coco(folder, Intake(strict=True))


def test_fields_that_are_missing(tmp_path: Path) -> None:
    for name in ("bbox", "image_id"):
        entry = annotation(POLYGON, id=2)
        del entry[name]
        intake = Intake()
        data.load_coco(write(tmp_path, [annotation(POLYGON), entry]), intake)
        assert len(intake.left_out) == 1 and f"has no field {name!r}" in intake.left_out[0]


def test_boxes_are_clipped_to_their_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_one(tmp_path, POLYGON, bbox=[-0.5, 2, WIDTH + 1, 6.9]).box == (0, 2, WIDTH, HEIGHT)
    assert capsys.readouterr().err == ""  # tools round
    assert load_one(tmp_path, POLYGON, bbox=[-3, 2, 7, 4]).box == (0, 2, 4, 6)
    assert "reaches out of the image" in capsys.readouterr().err


def test_images_with_one_id_are_not_mixed_up(tmp_path: Path) -> None:
    def again(content: dict[str, Any]) -> None:
        content["images"].append(dict(content["images"][0]))

    (sample,) = changed(tmp_path, again)
    assert len(sample.instances) == 2
    write(tmp_path, [annotation(POLYGON), annotation(POLYGON, id=2, image_id=8)])
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "two.png")
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"] += [{"id": 8, "file_name": "two.png"}, {"id": 7, "file_name": "two.png"}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    intake = Intake()
    assert [sample.path.name for sample in data.load_coco(tmp_path, intake)] == ["two.png"]
    assert len(intake.left_out) == 1 and "2 different images have this id" in intake.left_out[0]


def test_two_names_that_lead_to_one_file(tmp_path: Path) -> None:
    def other(content: dict[str, Any]) -> None:
        content["images"].append({"id": 8, "file_name": "other/one.png", "width": WIDTH, "height": HEIGHT})

    assert len(changed(tmp_path, other)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not json", b"[]", b"null", b"5", b"{}", b'{"images": 5, "annotations": []}',
        b'{"images": [], "annotations": []}',
        b'{"images": [null], "annotations": []}', b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}",
        b"\xff\xfe\xff", b"\x80",
    ],
)  # fmt: skip
def test_files_that_are_none_are_one_line(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, [])
    (tmp_path / "annotations.json").write_bytes(content)
    with pytest.raises(UserError, match=r"annotations\.json: ") as caught:
        data.load_coco(tmp_path)
    assert "\n" not in str(caught.value)


def turned(folder: Path, *listed: tuple[int, int, int]) -> list[data.Sample]:
    """Images of 10 x 8 pixels with an EXIF orientation each, listed with a width and a height."""
    write(folder, [])
    entries = []
    for number, (orientation, width, height) in enumerate(listed):
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = orientation
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / f"{number}.jpg", exif=exif)
        entries.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
    (folder / "annotations.json").write_text(json.dumps({"images": entries, "annotations": []}))
    return data.load_coco(folder)


def test_photos_annotated_in_the_frame_they_are_stored_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = turned(tmp_path, (6, WIDTH, HEIGHT), (8, WIDTH, HEIGHT), (3, WIDTH, HEIGHT), (1, WIDTH, HEIGHT))
    assert [sample.stored for sample in stored] == [True, True, True, False]  # a tool treats all of them alike
    assert all(sample.load().shape == (HEIGHT, WIDTH, 3) for sample in stored)
    assert capsys.readouterr().err.count("EXIF rotation") == 1
    upright = turned(tmp_path, (6, HEIGHT, WIDTH), (3, WIDTH, HEIGHT))
    assert [sample.stored for sample in upright] == [False, False]
    assert upright[0].load().shape == (WIDTH, HEIGHT, 3)
    assert [sample.stored for sample in data.Calibration(tmp_path).images if "0" in sample.path.name] == [False]


def test_calibration_uses_what_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [annotation(POLYGON), annotation(POLYGON, id=2, image_id=9)])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"].append({"id": 9, "file_name": "cut.png"})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    Image.effect_noise((99, 99), 50).save(tmp_path / "images" / "whole.png")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "whole.png").read_bytes()[:1000])
    (tmp_path / "images" / "text.png").write_text("no image")
    Image.new("L", (3000, 1)).save(tmp_path / "images" / "line.png")
    image = ImageInput(Port("image", "float32", (1, 3, 64, 64)), 64)
    calibration = data.Calibration(tmp_path)
    encoder = EncoderFeeds(calibration, image)
    assert [sample.path.name for sample in encoder.samples] == ["one.png", "whole.png"]
    assert [feed["image"].shape for feed in encoder] == [(1, 3, 64, 64)] * 2
    assert [sample.path.name for sample in calibration.samples] == ["one.png"]
    assert len(calibration.intake.left_out) == 3
    assert len(EncoderFeeds(calibration, image)) == 2
    assert capsys.readouterr().err.count("warning: left out") == 3  # not again for the second
    with pytest.raises(UserError, match=r"cut\.png"):
        EncoderFeeds(data.Calibration(tmp_path, Intake(strict=True)), image)
