# SPDX-License-Identifier: Apache-2.0
"""`SamPredictor` on SAM-Nano: prompts in the frame of the original image, masks at its resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samq_onnx import assets, data, images
from samq_onnx.errors import UserError
from samq_onnx.evaluate import overlap
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session

# an image wider than high, so that a mix-up of the axes shows
SAMPLE = next(sample for sample in data.load_coco(assets.demo_images()) if sample.width > sample.height)
INSTANCE = max(SAMPLE.instances, key=lambda instance: instance.area)
BOX = np.array(INSTANCE.box)
POINT = np.array([INSTANCE.point()])


@pytest.fixture(scope="module")
def predictor(nano: Path) -> SamPredictor:
    made = SamPredictor(open_session(nano / "encoder.onnx"), open_session(nano / "decoder.onnx"))
    made.set_image(images.load(SAMPLE.path))
    return made


def test_shapes_and_number_of_masks(predictor: SamPredictor) -> None:
    for multimask, count in ((True, 3), (False, 1)):
        masks, iou, low_res = predictor.predict(box=BOX, multimask_output=multimask)
        assert masks.shape == (count, SAMPLE.height, SAMPLE.width) and masks.dtype == bool
        assert iou.shape == (count,) and low_res.shape == (count, 128, 128)


def test_a_box_and_a_point_find_the_object(predictor: SamPredictor) -> None:
    truth = INSTANCE.mask()
    assert overlap(predictor.best(box=BOX).mask, truth)[0] > 0.6
    assert max(overlap(mask, truth)[0] for mask in predictor.predict(POINT, np.ones(1))[0]) > 0.46


def test_best_is_mask_0_of_a_box_and_the_best_of_three_of_a_point(predictor: SamPredictor) -> None:
    masks, iou, _ = predictor.predict(box=BOX, multimask_output=False)
    best = predictor.best(box=BOX)
    assert np.array_equal(best.mask, masks[0]) and best.iou == iou[0]
    masks, iou, _ = predictor.predict(POINT, np.ones(1))
    best = predictor.best(POINT, np.ones(1))
    assert np.array_equal(best.mask, masks[iou.argmax()]) and best.iou == iou.max()


def test_coordinates_are_those_of_the_original_image(nano: Path, predictor: SamPredictor) -> None:
    rgb = images.load(SAMPLE.path)
    larger = SamPredictor(nano / "encoder.onnx", nano / "decoder.onnx")
    larger.set_image(np.array(Image.fromarray(rgb).resize((2 * SAMPLE.width, 2 * SAMPLE.height))))
    mask = larger.best(box=2 * BOX).mask[::2, ::2]
    assert overlap(mask, predictor.best(box=BOX).mask)[0] > 0.96


def test_the_feed_is_the_one_of_segment_anything(nano: Path, predictor: SamPredictor) -> None:
    size = 512
    encoder, decoder = open_session(nano / "encoder.onnx"), open_session(nano / "decoder.onnx")
    corners = images.to_model_coords(BOX.reshape(2, 2), SAMPLE.height, SAMPLE.width, size)
    feed = {
        "image_embeddings": encoder.run(None, {"image": images.preprocess(images.load(SAMPLE.path), size)})[0],
        "mask_input": np.zeros((1, 1, 128, 128), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([SAMPLE.height, SAMPLE.width], np.float32),
        "point_coords": corners[None].astype(np.float32),
        "point_labels": np.array([[2, 3]], np.float32),
    }
    masks, iou, low_res = decoder.run(None, feed)
    made = predictor.predict(box=BOX)
    for expected, actual in zip((masks[0, 1:] > 0, iou[0, 1:], low_res[0, 1:]), made, strict=True):
        np.testing.assert_array_equal(actual, expected)
    scaled = images.to_model_coords(POINT, SAMPLE.height, SAMPLE.width, size)
    feed["point_coords"] = np.concatenate([scaled, [[0, 0]]])[None].astype(np.float32)
    feed["point_labels"] = np.array([[1, -1]], np.float32)
    feed["mask_input"], feed["has_mask_input"] = low_res[:, :1], np.ones(1, np.float32)
    expected = decoder.run(None, feed)[2][0, 1:]
    np.testing.assert_array_equal(predictor.predict(POINT, np.ones(1), mask_input=low_res[0, :1])[2], expected)


def test_a_mask_and_a_background_point_are_used(predictor: SamPredictor) -> None:
    _, _, plain = predictor.predict(POINT, np.ones(1))
    _, _, refined = predictor.predict(POINT, np.ones(1), mask_input=plain[:1])
    assert np.abs(refined - plain).max() > 1e-2
    _, _, negative = predictor.predict(np.concatenate([POINT, POINT + 20]), np.array([1, 0]))
    _, _, positive = predictor.predict(np.concatenate([POINT, POINT + 20]), np.array([1, 1]))
    assert np.abs(negative - positive).max() > 1e-2


@pytest.mark.parametrize(
    "arguments",
    [
        {"point_coords": POINT},
        {"point_coords": POINT[0], "point_labels": np.ones(1)},
        {"point_coords": POINT, "point_labels": np.ones(2)},
        {"box": BOX[:3]},
        {"box": BOX, "mask_input": np.zeros((1, 64, 64))},
        {"box": BOX[None]},
        {"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)},
        {},
    ],
)
def test_arguments_of_the_wrong_shape(predictor: SamPredictor, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"box": [np.nan] * 4}, "box has values that are not finite"),
        ({"box": [1, 2, np.inf, 9]}, "box has values that are not finite"),
        ({"box": [9, 2, 3, 8]}, "is empty"),
        ({"box": [9, 2, 9, 8]}, "is empty"),
        ({"box": [1, 2, 1e30, 1e30]}, "outside of any image"),
        ({"box": ["1", "2", "3", "4"]}, "box must be numbers, got an array of <U1"),
        ({"box": [1, 2, 3, 10**400]}, "box must be numbers, got an array of object"),
        ({"box": [1, 2, 3, [4]]}, "box is no array of numbers"),
        ({"box": np.array([True] * 4)}, "got an array of bool"),
        ({"point_coords": [[np.nan, 2]], "point_labels": [1]}, "point_coords has values that are not finite"),
        ({"point_coords": [[1e39, 2]], "point_labels": [1]}, "outside of any image"),
        ({"point_coords": [[1, 2]], "point_labels": [np.nan]}, "point_labels has values that are not finite"),
        ({"point_coords": [[1, 2]], "point_labels": [4]}, "unknown label 4"),
        ({"point_coords": [[1, 2]], "point_labels": [0.5]}, "unknown label 0.5"),
        ({"point_coords": [[1, 2]], "point_labels": [True]}, "point_labels must be numbers"),
        ({"box": BOX, "mask_input": np.full((1, 128, 128), np.nan)}, "mask_input has values that are not finite"),
        ({"box": BOX, "mask_input": np.full((1, 128, 128), 1e300)}, "mask_input: numbers beyond 3.4"),
        ({"box": BOX, "mask_input": np.full((1, 128, 128), 3e38, np.float32)}, "is not finite for this prompt"),
        ({"box": BOX, "multimask_output": "no"}, "multimask_output must be True or False"),
    ],
)
def test_a_prompt_that_is_refused_changes_nothing(
    predictor: SamPredictor, arguments: dict[str, Any], reason: str
) -> None:
    before = predictor.predict(box=BOX)
    with pytest.raises(UserError) as caught:
        predictor.predict(**arguments)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    for one, two in zip(before, predictor.predict(box=BOX), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.tolist(),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a.astype(">f8"),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.longdouble),
    ],
)
def test_numbers_count_whatever_holds_them(predictor: SamPredictor, change: Any) -> None:
    expected = predictor.predict(POINT, np.ones(1), box=BOX)
    for one, two in zip(expected, predictor.predict(change(POINT), change(np.ones(1)), change(BOX)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_mask_alone_is_a_prompt(predictor: SamPredictor) -> None:
    mask = predictor.predict(box=BOX, multimask_output=False)[2]
    one, two = (predictor.predict(mask_input=given)[2] for given in (mask, -mask))
    assert np.abs(one - two).max() > 1e-2


def test_images_that_are_none_leave_the_one_before(predictor: SamPredictor) -> None:
    before = predictor.predict(box=BOX)
    rgb = images.load(SAMPLE.path)
    for wrong in (rgb[..., 0], rgb.astype(float), rgb[:0], rgb[:1].repeat(2000, 1), None, "a.png", [[1], [2, 3]]):
        with pytest.raises(UserError):
            predictor.set_image(wrong)  # type: ignore[arg-type]
    for one, two in zip(before, predictor.predict(box=BOX), strict=True):
        np.testing.assert_array_equal(one, two)


def test_images_need_not_lie_in_one_block(nano: Path, predictor: SamPredictor) -> None:
    rgb = images.load(SAMPLE.path)
    other = SamPredictor(nano / "encoder.onnx", nano / "decoder.onnx")
    other.set_image(np.repeat(rgb, 2, axis=1)[:, ::2][::-1][::-1])
    for one, two in zip(predictor.predict(box=BOX), other.predict(box=BOX), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_image_comes_first(nano: Path) -> None:
    with pytest.raises(UserError, match="call set_image before predict"):
        SamPredictor(nano / "encoder.onnx", nano / "decoder.onnx").predict(box=BOX)


def test_models_in_the_wrong_place(nano: Path) -> None:
    with pytest.raises(UserError, match=r"decoder\.onnx: not a SAM encoder"):
        SamPredictor(nano / "decoder.onnx", nano / "encoder.onnx")
    with pytest.raises(UserError, match=r"encoder\.onnx: not a SAM decoder \(has no input has_mask_input"):
        SamPredictor(nano / "encoder.onnx", nano / "encoder.onnx")


@pytest.mark.parametrize("shape", ["ab", (float("nan"), 5), (0, 5), (5,), [5, 5]])
def test_the_original_shape_is_two_sides(predictor: SamPredictor, shape: Any) -> None:
    with pytest.raises(UserError, match="height and width of the original"):
        predictor.set_image(images.load(SAMPLE.path), shape)
