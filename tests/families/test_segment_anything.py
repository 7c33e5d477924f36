# SPDX-License-Identifier: Apache-2.0
"""Exports with segment-anything's interface are fed as they want it: types, shapes, and outputs in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import EMBEDDING, IOU, LOW_RES_MASKS, MASKS, Role
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests import nets
from tests.families.exports import BOX, POINT, RGB, answers, assert_same, behind, part_of, quantizes, retyped
from tests.fuzz import tiny


def test_an_encoder_and_a_decoder(nano: Path) -> None:
    encoder, decoder = (part_of(nano / f"{name}.onnx") for name in ("encoder", "decoder"))
    assert (encoder.family, encoder.role) == ("segment_anything", Role.ENCODER)
    assert encoder.image is not None and encoder.image.size == 512 and encoder.notes == ()
    assert encoder.outputs == {EMBEDDING: "image_embeddings"}
    assert (decoder.family, decoder.role, decoder.image) == ("segment_anything", Role.DECODER, None)
    assert decoder.outputs == {MASKS: "masks", IOU: "iou_predictions", LOW_RES_MASKS: "low_res_masks"}


def test_an_encoder_is_told_by_its_embedding(tmp_path: Path) -> None:
    onnx.save(nets.build("convolutional"), tmp_path / "classifier.onnx")
    assert part_of(tmp_path / "classifier.onnx").role is Role.GENERIC
    model = tiny.encoder()
    model.graph.node.append(helper.make_node("GlobalAveragePool", ["image_embeddings"], ["pooled"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("pooled", 1, [1, 16, 1, 1]))
    onnx.save(model, tmp_path / "two.onnx")
    assert part_of(tmp_path / "two.onnx").outputs == {EMBEDDING: "image_embeddings"}
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "two.onnx")
    assert part_of(tmp_path / "two.onnx").role is Role.ENCODER  # as far as is known


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_each_input_gets_its_own_type(folder: Path, dtype: int) -> None:
    expected = answers(folder / "encoder.onnx", folder / "decoder.onnx")
    model = tiny.decoder()
    for name in ("orig_im_size", "point_labels", "has_mask_input"):
        retyped(model, name, dtype)
    onnx.save(model, folder / "typed.onnx")
    assert_same(expected, answers(folder / "encoder.onnx", folder / "typed.onnx"))
    session = open_session(folder / "typed.onnx")
    assert session.run(None, part_of(folder / "typed.onnx").sample_feed())
    assert quantizes(folder / "typed.onnx", "--encoder", folder / "encoder.onnx")
    assert session.get_inputs()[2].type == open_session(folder / "quantized.onnx").get_inputs()[2].type
    answers(folder / "encoder.onnx", folder / "quantized.onnx")


def test_a_fixed_number_of_points_is_filled(folder: Path) -> None:
    model = tiny.decoder()
    for value in model.graph.input[1:3]:
        value.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, folder / "three.onnx")
    predictor = SamPredictor(folder / "encoder.onnx", folder / "three.onnx")
    free = SamPredictor(folder / "encoder.onnx", folder / "decoder.onnx")
    for one in (predictor, free):
        one.set_image(RGB)
    padded = free.predict(np.concatenate([POINT, [[0, 0]]]), np.array([1, -1]))
    assert_same(list(padded), list(predictor.predict(POINT, np.ones(1))))
    predictor.predict(np.repeat(POINT, 3, axis=0), np.ones(3))  # without the point of padding it fits
    with pytest.raises(UserError, match="the decoder takes 3 points, the prompt has 4"):
        predictor.predict(np.repeat(POINT, 2, axis=0), np.ones(2), box=BOX)
    assert quantizes(folder / "three.onnx", "--encoder", folder / "encoder.onnx")


def test_a_batch_of_two_is_filled(folder: Path) -> None:
    model = tiny.encoder()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    behind(model, "image", [helper.make_node("Gather", ["image", "first"], ["one"], axis=0)], "one")
    model.graph.node.append(helper.make_node("Concat", ["image_embeddings"] * 2, ["both"], axis=0))
    model.graph.output[0].name = "both"
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, folder / "two.onnx")
    expected = answers(folder / "encoder.onnx", folder / "decoder.onnx")
    assert_same(expected, answers(folder / "two.onnx", folder / "decoder.onnx"))
    assert quantizes(folder / "two.onnx")


def _with_scores(order: list[str]) -> onnx.ModelProto:
    """A decoder that also scores its masks, outputs in this order."""
    model = tiny.decoder()
    nodes = [
        helper.make_node("Sigmoid", ["masks"], ["soft"]),
        helper.make_node("ReduceMean", ["soft"], ["stability"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceSum", ["masks", "sides"], ["areas"], keepdims=0),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "sides"))
    values = {value.name: value for value in model.graph.output}
    values |= {name: helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("stability", "areas")}
    del model.graph.output[:]
    model.graph.output.extend(values[name] for name in order)
    return model


@pytest.mark.parametrize(
    "order",
    [
        ["masks", "iou_predictions", "stability", "areas", "low_res_masks"],
        ["areas", "low_res_masks", "stability", "masks", "iou_predictions"],
        ["low_res_masks", "iou_predictions", "masks"],
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_outputs_are_found_wherever_they_are(folder: Path, order: list[str], named: bool) -> None:
    expected = answers(folder / "encoder.onnx", folder / "decoder.onnx")
    model = _with_scores(order)
    if not named:
        for number, value in enumerate(model.graph.output):
            model.graph.node.append(helper.make_node("Identity", [value.name], [f"output_{number}"]))
            value.name = f"output_{number}"
            value.type.tensor_type.ClearField("shape")
    names = dict(zip(order, (value.name for value in model.graph.output), strict=True))
    onnx.save(model, folder / "scores.onnx")
    told = {MASKS: "masks", IOU: "iou_predictions", LOW_RES_MASKS: "low_res_masks"}
    assert part_of(folder / "scores.onnx").outputs == {role: names[name] for role, name in told.items()}
    assert_same(expected, answers(folder / "encoder.onnx", folder / "scores.onnx"))


def test_outputs_that_cannot_be_told_apart_are_named(folder: Path) -> None:
    model = tiny.decoder()
    model.graph.node.append(helper.make_node("Neg", ["iou_predictions"], ["other_iou"]))
    model.graph.output.append(helper.make_tensor_value_info("other_iou", 1, [1, 4]))
    onnx.save(model, folder / "twice.onnx")
    assert part_of(folder / "twice.onnx").outputs == {MASKS: "masks", LOW_RES_MASKS: "low_res_masks"}
    with pytest.raises(UserError, match=r"several outputs may be the predicted IoUs: .*other_iou float32 \[1, 4\]"):
        SamPredictor(folder / "encoder.onnx", folder / "twice.onnx")
    del model.graph.output[1:]
    onnx.save(model, folder / "twice.onnx")
    with pytest.raises(UserError, match="no output is the predicted IoUs"):
        SamPredictor(folder / "encoder.onnx", folder / "twice.onnx")


def test_a_decoder_that_takes_more_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.decoder()
    model.graph.input.append(helper.make_tensor_value_info("clip_features", 1, [4, 16]))
    onnx.save(model, folder / "hq.onnx")
    assert not quantizes(folder / "hq.onnx", "--encoder", folder / "encoder.onnx")
    assert "also takes clip_features float32 [4, 16]" in capsys.readouterr().err
    with pytest.raises(UserError, match="also takes clip_features"):
        SamPredictor(folder / "encoder.onnx", folder / "hq.onnx")
    part = part_of(folder / "hq.onnx")
    assert part.role is Role.DECODER
    with pytest.raises(UserError, match="also takes clip_features"):
        part.feeds(Calibration(folder), folder / "encoder.onnx", "decoder")
    open_session(folder / "hq.onnx").run(None, part.sample_feed())  # what no role is known for is random


def test_outputs_are_told_before_the_graph_is_changed(folder: Path) -> None:
    part = part_of(folder / "decoder.onnx")
    model = part.signature.graph()
    assert model is not None
    for value in model.graph.outputs:
        value.name = f"other_{value.name}"
    assert part.outputs[IOU] == "iou_predictions"


def test_a_decoder_of_many_prompts(folder: Path) -> None:
    model = tiny.decoder()
    for value in model.graph.input[1:3]:
        value.type.tensor_type.shape.dim[0].dim_param = "prompts"
    onnx.save(model, folder / "many.onnx")
    feed = part_of(folder / "many.onnx").sample_feed(prompts=3)
    assert [array.shape for array in feed.values()][1:3] == [(3, 2, 2), (3, 2)]
    assert len({tuple(point) for point in feed["point_coords"][:, 0].tolist()}) == 3


def test_a_decoder_that_does_not_run_has_no_outputs_by_role(folder: Path) -> None:
    """Its outputs can only be told by what they do."""
    model = _with_scores(["areas", "masks", "iou_predictions", "stability", "low_res_masks"])
    model.graph.node.append(helper.make_node("Reshape", ["iou_predictions", "sides"], ["broken"]))  # 4 numbers, not 6
    model.graph.output.append(helper.make_tensor_value_info("broken", 1, [2, 3]))
    onnx.save(model, folder / "broken.onnx")
    part = part_of(folder / "broken.onnx")
    assert (part.role, part.outputs) == (Role.DECODER, {})
    with pytest.raises(UserError, match=r"broken\.onnx: does not run"):
        SamPredictor(folder / "encoder.onnx", folder / "broken.onnx")
