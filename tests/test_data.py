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

from samq_onnx import data
from samq_onnx.errors import UserError
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
