# SPDX-License-Identifier: Apache-2.0
"""Decoders of SAM's relatives: inputs and outputs have roles by name and shape, and users see SAM's own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from samq_onnx import images
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import EMBEDDING, IOU, LOW_RES_MASKS, MASKS, Role
from samq_onnx.families.resize import bilinear, to_image
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests.families.exports import BOX, POINT, RGB, answers, assert_same, behind, part_of, quantizes
from tests.fuzz import tiny

LOW_RES = tiny.SIDE // 4
NEVER = -10.0


def _inputs(model: onnx.ModelProto, shapes: dict[str, tuple[int, list[int | str]]]) -> None:
    del model.graph.input[:], model.graph.value_info[:]
    made = (helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in shapes.items())
    model.graph.input.extend(made)


def _outputs(model: onnx.ModelProto, shapes: dict[str, list[int | str]]) -> None:
    del model.graph.output[:]
    made = (helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    model.graph.output.extend(made)


def _held(model: onnx.ModelProto, **arrays: np.ndarray) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def _without_mask(model: onnx.ModelProto, side: int = tiny.SIDE) -> None:
    """The tiny decoder with constants for what such decoders do not take."""
    _held(
        model,
        mask_input=np.zeros((1, 1, LOW_RES, LOW_RES), np.float32),
        has_mask_input=np.zeros(1, np.float32),
        orig_im_size=np.array([side, side], np.float32),
    )


def hugging_face() -> onnx.ModelProto:
    """points and labels with an axis of prompts, positions beside the embedding; three low-resolution masks."""
    model = tiny.decoder()
    _without_mask(model)
    _held(model, one=np.array([1], np.int64), four=np.array([4], np.int64), nought=np.array(0, np.float32))
    front = [
        helper.make_node("Squeeze", ["input_points", "one"], ["points_float"]),
        helper.make_node("Squeeze", ["input_labels", "one"], ["labels_int"]),
        helper.make_node("Cast", ["labels_int"], ["labels_float"], to=1),
        helper.make_node("Mul", ["image_positional_embeddings", "nought"], ["no_position"]),
        helper.make_node("Add", ["image_embeddings", "no_position"], ["embedded"]),
    ]
    for node in model.graph.node:
        names = {"point_coords": "points_float", "point_labels": "labels_float", "image_embeddings": "embedded"}
        node.input[:] = [names.get(name, name) for name in node.input]
    for node in reversed(front):
        model.graph.node.insert(0, node)
    for source, made in (("low_res_masks", "pred_masks"), ("iou_predictions", "iou_scores")):
        model.graph.node.append(helper.make_node("Slice", [source, "one", "four", "one"], [f"three_{made}"]))
        model.graph.node.append(helper.make_node("Unsqueeze", [f"three_{made}", "one"], [made]))
    embedding: list[int | str] = [1, 16, 4, 4]
    _inputs(
        model,
        {
            "input_points": (1, [1, 1, "n", 2]),
            "input_labels": (7, [1, 1, "n"]),
            "image_positional_embeddings": (1, embedding),
            "image_embeddings": (1, embedding),
        },
    )
    _outputs(model, {"iou_scores": [1, 1, 3], "pred_masks": [1, 1, 3, LOW_RES, LOW_RES]})
    onnx.checker.check_model(model, full_check=True)
    return model


def positioned() -> onnx.ModelProto:
    """An encoder that gives positions beside the embedding, first."""
    model = tiny.encoder()
    _held(model, two=np.array(2, np.float32))
    model.graph.node.append(helper.make_node("Mul", ["image_embeddings", "two"], ["image_positional_embeddings"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("image_positional_embeddings", 1, [1, 16, 4, 4]))
    return model


def pyramid() -> onnx.ModelProto:
    """An encoder with features of three resolutions."""
    model = tiny.encoder()
    for name, stride in (("high_res_feats_0", 4), ("high_res_feats_1", 8)):
        size = [stride, stride]
        model.graph.node.append(helper.make_node("AveragePool", ["image"], [name], kernel_shape=size, strides=size))
        side = tiny.SIDE // stride
        model.graph.output.append(helper.make_tensor_value_info(name, 1, [1, 3, side, side]))
    return model


def high_resolution() -> onnx.ModelProto:
    """SAM 2: features of higher resolution, no size of an image; low-resolution masks are called masks."""
    model = tiny.decoder()
    _held(model, orig_im_size=np.array([tiny.SIDE, tiny.SIDE], np.float32), nought=np.array(0, np.float32))
    front = [
        helper.make_node("ReduceMean", ["high_res_feats_0"], ["mean_0"], keepdims=0),
        helper.make_node("ReduceMean", ["high_res_feats_1"], ["mean_1"], keepdims=0),
        helper.make_node("Add", ["mean_0", "mean_1"], ["means"]),
        helper.make_node("Mul", ["means", "nought"], ["nothing"]),
        helper.make_node("Add", ["image_embed", "nothing"], ["embedded"]),
    ]
    behind(model, "image_embeddings", front, "embedded")
    for node in model.graph.node:
        node.output[:] = ["unused" if name == "masks" else name for name in node.output]
    model.graph.node.append(helper.make_node("Identity", ["low_res_masks"], ["masks"]))
    _inputs(
        model,
        {
            "image_embed": (1, [1, 16, 4, 4]),
            "high_res_feats_0": (1, [1, 3, 16, 16]),
            "high_res_feats_1": (1, [1, 3, 8, 8]),
            "point_coords": (1, [1, "n", 2]),
            "point_labels": (1, [1, "n"]),
            "mask_input": (1, [1, 1, LOW_RES, LOW_RES]),
            "has_mask_input": (1, [1]),
        },
    )
    _outputs(model, {"masks": ["b", 4, "h", "w"], "iou_predictions": ["b", 4]})
    onnx.checker.check_model(model, full_check=True)
    return model


def in_pixels() -> onnx.ModelProto:
    """Points in pixels of the image, whose size is given; three masks of that size and no others, as EfficientSAM."""
    model = tiny.decoder()
    one, size = helper.make_node, "orig_im_size"
    _held(
        model,
        mask_input=np.zeros((1, 1, LOW_RES, LOW_RES), np.float32),
        has_mask_input=np.zeros(1, np.float32),
        own_size=np.array([tiny.SIDE, tiny.SIDE], np.float32),
        first=np.array([1], np.int64),
        fourth=np.array([4], np.int64),
        swapped=np.array([1, 0], np.int64),
        leading=np.array([1, 3], np.int64),
        side=np.array(tiny.SIDE, np.float32),
    )
    front = [
        one("Squeeze", ["batched_point_coords", "first"], ["in_image"]),
        one("Squeeze", ["batched_point_labels", "first"], ["labels"]),
        one("Cast", [size], ["sizes"], to=1),
        one("Gather", ["sizes", "swapped"], ["width_and_height"]),
        one("Div", ["side", "width_and_height"], ["factors"]),
        one("Mul", ["in_image", "factors"], ["coords"]),
    ]
    for node in model.graph.node:
        names = {"point_coords": "coords", "point_labels": "labels", size: "own_size"}
        node.input[:] = [names.get(name, name) for name in node.input]
    for node in reversed(front):
        model.graph.node.insert(0, node)
    model.graph.node.extend(
        [
            one("Slice", ["low_res_masks", "first", "fourth", "first"], ["three"]),
            one("Concat", ["leading", size], ["wanted"], axis=0),
            one("Resize", ["three", "", "", "wanted"], ["full"], mode="linear"),
            one("Unsqueeze", ["full", "first"], ["output_masks"]),
            one("Slice", ["iou_predictions", "first", "fourth", "first"], ["scores"]),
            one("Unsqueeze", ["scores", "first"], ["iou_of_three"]),
        ]
    )
    prompts: list[int | str] = [1, 1, "n"]
    _inputs(
        model,
        {
            "image_embeddings": (1, [1, 16, 4, 4]),
            "batched_point_coords": (1, [*prompts, 2]),
            "batched_point_labels": (1, prompts),
            size: (7, [2]),
        },
    )
    _outputs(model, {"output_masks": [1, 1, 3, "h", "w"], "iou_of_three": [1, 1, 3]})
    onnx.checker.check_model(model, full_check=True)
    return model


def intermediate() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """SAM-HQ: an encoder and a decoder with embeddings of layers, SAM's own names for the rest."""
    encoder, decoder = tiny.encoder(), tiny.decoder()
    _held(encoder, layers=np.array([2, 1, 4, 4, 16], np.int64), axis=np.array(0, np.int64))
    encoder.graph.node.extend(
        [
            helper.make_node("Concat", ["image_embeddings", "image_embeddings"], ["twice"], axis=0),
            helper.make_node("Reshape", ["twice", "layers"], ["interm_embeddings"]),
        ]
    )
    encoder.graph.output.append(helper.make_tensor_value_info("interm_embeddings", 1, [2, 1, 4, 4, 16]))
    _held(decoder, nought=np.array(0, np.float32))
    front = [
        helper.make_node("ReduceMean", ["interm_embeddings"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["nothing"]),
        helper.make_node("Add", ["image_embeddings", "nothing"], ["embedded"]),
    ]
    behind(decoder, "image_embeddings", front, "embedded")
    for node in decoder.graph.node[:3]:
        node.input[:] = ["image_embeddings" if name == "embedded" else name for name in node.input]
    decoder.graph.input.append(helper.make_tensor_value_info("interm_embeddings", 1, [1, 1, 4, 4, 16]))
    for value in decoder.graph.output:  # as exporters leave them
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
            dim.dim_param = f"side_of_{value.name}"
    return encoder, decoder


def _saved(folder: Path, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> tuple[Path, Path]:
    paths = folder / "other_encoder.onnx", folder / "other_decoder.onnx"
    onnx.save(encoder, paths[0])
    onnx.save(decoder, paths[1])
    return paths


def test_hugging_face_gives_the_masks_of_sam(folder: Path) -> None:
    encoder, decoder = _saved(folder, positioned(), hugging_face())
    part = part_of(decoder)
    assert (part.family, part.role) == ("prompted", Role.DECODER)
    assert part.outputs == {IOU: "iou_scores", LOW_RES_MASKS: "pred_masks"}
    known, other = SamPredictor(folder / "encoder.onnx", folder / "decoder.onnx"), SamPredictor(encoder, decoder)
    for predictor in (known, other):
        predictor.set_image(RGB)
    # the tiny decoder counts a padding point, which Hugging Face adds inside and this one does not
    assert known._set is not None
    coords = known._encoder.image.coords(POINT, *RGB.shape[:2])[None]
    feed = known._decoder.prompt(known._set[0], coords, np.ones((1, 1), np.float32), None, RGB.shape[:2])
    expected = known._decoder.answer(known._session, feed, known._outputs, RGB.shape[:2])
    masks, iou, low_res = other.predict(POINT, np.ones(1))
    assert masks.shape == (3, *RGB.shape[:2])
    np.testing.assert_allclose(iou, expected[1][0, 1:], atol=1e-5)
    np.testing.assert_allclose(low_res, expected[2][0, 1:], atol=1e-4)
    best = other.predict(POINT, np.ones(1), multimask_output=False)
    np.testing.assert_array_equal(best[2][0], low_res[iou.argmax()])
    with pytest.raises(UserError, match="takes points and no boxes; prompt with points"):
        other.predict(box=BOX)
    with pytest.raises(UserError, match="takes no mask as a prompt"):
        other.predict(POINT, np.ones(1), mask_input=np.zeros((1, LOW_RES, LOW_RES)))


def test_padding_and_corners_are_no_points_of_hugging_face(folder: Path) -> None:
    decoder = hugging_face()
    boxes = helper.make_tensor_value_info("input_boxes", 1, [1, "boxes", 4])
    decoder.graph.input.append(boxes)
    _, path = _saved(folder, positioned(), decoder)
    part = part_of(path)
    embedding = (np.zeros((1, 16, 4, 4), np.float32),) * 2
    coords = np.array([[[1, 2], [3, 4], [5, 6], [0, 0]]], np.float32)
    feed = part.prompt(embedding, coords, np.array([[2.0, 3.0, 1.0, -1.0]]), None, (64, 64))
    np.testing.assert_array_equal(feed["input_boxes"], [[[1, 2, 3, 4]]])
    np.testing.assert_array_equal(feed["input_points"], [[[[5, 6]]]])
    np.testing.assert_array_equal(feed["input_labels"], [[[1]]])
    feed = part.prompt(embedding, coords[:, :2], np.array([[2.0, 3.0]]), None, (64, 64))
    np.testing.assert_array_equal(feed["input_labels"], [[[NEVER]]])
    feed = part.prompt(embedding, coords[:, 2:], np.array([[1.0, -1.0]]), None, (64, 64))
    assert feed["input_boxes"].shape == (1, 0, 4) and feed["input_points"].shape == (1, 1, 1, 2)


def test_high_resolution_features_and_stretched_images(folder: Path) -> None:
    encoder, decoder = _saved(folder, pyramid(), high_resolution())
    made = part_of(encoder)
    assert made.role is Role.ENCODER and made.outputs == {EMBEDDING: "image_embeddings"}
    assert made.image is not None and made.image.stretched
    feed = made.image.feed(RGB)["image"]
    np.testing.assert_array_equal(feed, images.stretch(RGB, tiny.SIDE))
    np.testing.assert_allclose(made.image.coords(np.array([[320.0, 200.0]]), 200, 320), [[64, 64]])
    part = part_of(decoder)
    assert [port.name for port in part.embeddings] == ["image_embed", "high_res_feats_1", "high_res_feats_0"]
    assert part.outputs == {IOU: "iou_predictions", LOW_RES_MASKS: "masks"}
    predictor = SamPredictor(encoder, decoder)
    predictor.set_image(RGB)
    masks, _, low_res = predictor.predict(box=BOX)
    np.testing.assert_array_equal(masks, bilinear(low_res, *RGB.shape[:2]) > 0)
    assert open_session(decoder).run(None, part.sample_feed())


def test_points_in_pixels_of_the_image(folder: Path) -> None:
    _, decoder = _saved(folder, tiny.encoder(), in_pixels())
    part = part_of(decoder)
    assert part.outputs == {MASKS: "output_masks", IOU: "iou_of_three"} and part.takes_boxes
    height, width = RGB.shape[:2]
    embedding = (np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32),)
    places = np.array([[[12.0, 40.0], [50.0, 60.0]]])  # in the square
    for labels in ([2.0, 3.0], [1.0, 1.0]):
        feed = part.prompt(embedding, places, np.array([labels]), None, (height, width))
        np.testing.assert_allclose(
            feed["batched_point_coords"][0], places * [width / tiny.SIDE, height / tiny.SIDE], rtol=1e-6
        )
        np.testing.assert_array_equal(feed["batched_point_labels"], [[labels]])
        np.testing.assert_array_equal(feed["orig_im_size"], [height, width])
        masks, iou, low_res = part.answer(open_session(decoder), feed, part.answers(tiny.SIDE), (height, width))
        plain = part_of(folder / "decoder.onnx")
        expected = plain.answer(
            open_session(folder / "decoder.onnx"),
            plain.prompt(embedding, places, np.array([labels]), None, (tiny.SIDE, tiny.SIDE)),
            plain.answers(tiny.SIDE),
            (tiny.SIDE, tiny.SIDE),
        )
        np.testing.assert_allclose(iou[0, 1:], expected[1][0, 1:], atol=1e-5)
        np.testing.assert_allclose(masks[0, 1:], bilinear(expected[2][0, 1:], height, width), atol=1e-3)
        np.testing.assert_array_equal(low_res, bilinear(masks, LOW_RES, LOW_RES))
        np.testing.assert_array_equal(masks[0, 0], masks[0, 1 + iou[0, 1:].argmax()])


def test_intermediate_embeddings(folder: Path) -> None:
    encoder, decoder = _saved(folder, *intermediate())
    part = part_of(decoder)
    assert part.family == "prompted"
    assert part.outputs == {MASKS: "masks", IOU: "iou_predictions", LOW_RES_MASKS: "low_res_masks"}
    assert_same(answers(folder / "encoder.onnx", folder / "decoder.onnx"), answers(encoder, decoder))


@pytest.mark.parametrize("kind", ["hugging face", "high resolution", "in pixels", "intermediate"])
def test_it_is_calibrated_on_its_encoder(folder: Path, kind: str) -> None:
    pairs = {
        "hugging face": lambda: (positioned(), hugging_face()),
        "high resolution": lambda: (pyramid(), high_resolution()),
        "in pixels": lambda: (tiny.encoder(), in_pixels()),
        "intermediate": intermediate,
    }
    encoder, decoder = _saved(folder, *pairs[kind]())
    assert quantizes(decoder, "--encoder", encoder)
    predictor = SamPredictor(encoder, folder / "quantized.onnx")
    predictor.set_image(RGB)
    assert np.isfinite(predictor.predict(POINT, np.ones(1))[2]).all()


def _whole() -> onnx.ModelProto:
    """An encoder and a decoder of Hugging Face in one file."""
    encoder, decoder = tiny.encoder(), hugging_face()
    joined = onnx.compose.add_prefix(encoder, "e_"), onnx.compose.add_prefix(decoder, "d_")
    model = onnx.compose.merge_models(
        *joined,
        io_map=[("e_image_embeddings", "d_image_embeddings")],
    )
    _held(model, d_positions=np.zeros((1, 16, 4, 4), np.float32))
    for node in model.graph.node:
        node.input[:] = ["d_positions" if name == "d_image_positional_embeddings" else name for name in node.input]
    kept = [value for value in model.graph.input if "positional" not in value.name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_encoder_and_decoder_in_one_file(folder: Path) -> None:
    path = folder / "whole.onnx"
    onnx.save(_whole(), path)
    part = part_of(path)
    assert (part.family, part.role) == ("prompted", Role.WHOLE)
    assert part.outputs == {IOU: "d_iou_scores", LOW_RES_MASKS: "d_pred_masks"}
    assert open_session(path).run(None, part.sample_feed())
    with pytest.raises(UserError, match="is no SAM decoder; leave out --encoder"):
        part.sample_feed(encoder=folder / "encoder.onnx")
    feeds = part.feeds(Calibration(folder_of_images(folder)), None, "whole")
    assert len(feeds) == 2 and {name for feed in feeds for name in feed} == {
        "e_image", "d_input_points", "d_input_labels",
    }  # fmt: skip
    assert not np.array_equal(feeds[0]["d_input_points"], feeds[1]["d_input_points"])
    assert quantizes(path)


def folder_of_images(folder: Path) -> Path:
    """With one of them."""
    made = folder / "images"
    made.mkdir()
    Image.fromarray(RGB).save(made / "one.png")
    return made


def test_what_is_no_decoder_is_left_to_others(folder: Path) -> None:
    model = hugging_face()
    model.graph.input[0].name = "somewhere"  # no name of points
    for node in model.graph.node:
        node.input[:] = ["somewhere" if name == "input_points" else name for name in node.input]
    onnx.save(model, folder / "other.onnx")
    assert part_of(folder / "other.onnx").role is Role.GENERIC
    assert part_of(folder / "decoder.onnx").family == "segment_anything"


def test_outputs_that_cannot_be_told_are_named(folder: Path) -> None:
    encoder, decoder = _saved(folder, positioned(), hugging_face())
    model = onnx.load(decoder)
    model.graph.node.append(helper.make_node("Identity", ["iou_scores"], ["other_scores"]))
    model.graph.output.append(helper.make_tensor_value_info("other_scores", 1, [1, 1, 3]))
    onnx.save(model, decoder)
    with pytest.raises(UserError, match="which output is iou cannot be told"):
        SamPredictor(encoder, decoder)


def test_masks_are_brought_to_the_image() -> None:
    random = np.random.default_rng(0)
    maps = random.standard_normal((1, 2, 16, 16)).astype(np.float32)
    for height, width in ((40, 64), (64, 64), (5, 7), (16, 16)):
        graph = helper.make_graph(
            [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")],
            "resize",
            [helper.make_tensor_value_info("x", 1, list(maps.shape))],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(np.array([1, 2, height, width], np.int64), "sizes")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (expected,) = open_session(model.SerializeToString()).run(None, {"x": maps})
        np.testing.assert_allclose(bilinear(maps, height, width), expected, atol=1e-5)
    assert to_image(maps, 64, (30, 60), stretched=True).shape == (1, 2, 30, 60)
    padded = to_image(maps, 64, (30, 60), stretched=False)
    np.testing.assert_allclose(padded, bilinear(bilinear(maps, 64, 64)[..., :32, :], 30, 60))
