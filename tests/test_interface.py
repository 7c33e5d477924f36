# SPDX-License-Identifier: Apache-2.0
"""Models of other exporters are fed as they want it: types, shapes, pixels, and outputs in any order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samq_onnx import assets, data, images, quantize
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.feeds import sample_feed
from samq_onnx.images import PIXEL_MEAN, PIXEL_STD
from samq_onnx.models import read_model
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests.fuzz import tiny

RGB = images.load(data.image_paths(assets.demo_images())[0])[:200]
BOX = np.array([20.0, 30.0, 150.0, 120.0])
POINT = np.array([[60.0, 70.0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny SAM, encoder.onnx and decoder.onnx."""
    onnx.save(tiny.encoder(), tmp_path / "encoder.onnx")
    onnx.save(tiny.decoder(), tmp_path / "decoder.onnx")
    return tmp_path


def _behind(model: onnx.ModelProto, name: str, nodes: list[onnx.NodeProto], made: str) -> None:
    """Put nodes between an input and all that reads it; they read it and make ``made``."""
    for node in model.graph.node:
        node.input[:] = [made if value == name else value for value in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    del model.graph.value_info[:]


def _retyped(model: onnx.ModelProto, name: str, dtype: int) -> onnx.ModelProto:
    _behind(model, name, [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT)], f"{name}_float")
    value = next(value for value in model.graph.input if value.name == name)
    value.type.tensor_type.elem_type = dtype
    return model


def _answers(encoder: Path, decoder: Path) -> list[np.ndarray]:
    predictor = SamPredictor(encoder, decoder)
    predictor.set_image(RGB)
    return [*predictor.predict(box=BOX), *predictor.predict(POINT, np.ones(1))]


def _same(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    for expected, actual in zip(one, two, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def _quantizes(source: Path, *more: str | Path) -> bool:
    output = source.with_name("quantized.onnx")
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--method", "minmax", *more]
    with contextlib.suppress(FileNotFoundError):
        output.unlink()
    return quantize.main([str(argument) for argument in arguments]) == 0 and output.is_file()


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_each_input_gets_its_own_type(folder: Path, dtype: int) -> None:
    expected = _answers(folder / "encoder.onnx", folder / "decoder.onnx")
    model = tiny.decoder()
    for name in ("orig_im_size", "point_labels", "has_mask_input"):
        _retyped(model, name, dtype)
    onnx.save(model, folder / "typed.onnx")
    _same(expected, _answers(folder / "encoder.onnx", folder / "typed.onnx"))
    session = open_session(folder / "typed.onnx")
    assert session.run(None, sample_feed(read_model(folder / "typed.onnx")))
    assert _quantizes(folder / "typed.onnx", "--encoder", folder / "encoder.onnx")
    assert session.get_inputs()[2].type == open_session(folder / "quantized.onnx").get_inputs()[2].type
    _answers(folder / "encoder.onnx", folder / "quantized.onnx")


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
    _same(list(padded), list(predictor.predict(POINT, np.ones(1))))
    predictor.predict(np.repeat(POINT, 3, axis=0), np.ones(3))  # without the point of padding it fits
    with pytest.raises(UserError, match="the decoder takes 3 points, the prompt has 4"):
        predictor.predict(np.repeat(POINT, 2, axis=0), np.ones(2), box=BOX)
    assert _quantizes(folder / "three.onnx", "--encoder", folder / "encoder.onnx")


def test_a_batch_of_two_is_filled(folder: Path) -> None:
    model = tiny.encoder()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    _behind(model, "image", [helper.make_node("Gather", ["image", "first"], ["one"], axis=0)], "one")
    model.graph.node.append(helper.make_node("Concat", ["image_embeddings"] * 2, ["both"], axis=0))
    model.graph.output[0].name = "both"
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, folder / "two.onnx")
    expected = _answers(folder / "encoder.onnx", folder / "decoder.onnx")
    _same(expected, _answers(folder / "two.onnx", folder / "decoder.onnx"))
    assert _quantizes(folder / "two.onnx")


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
    expected = _answers(folder / "encoder.onnx", folder / "decoder.onnx")
    model = _with_scores(order)
    if not named:
        for number, value in enumerate(model.graph.output):
            model.graph.node.append(helper.make_node("Identity", [value.name], [f"output_{number}"]))
            value.name = f"output_{number}"
            value.type.tensor_type.ClearField("shape")
    onnx.save(model, folder / "scores.onnx")
    _same(expected, _answers(folder / "encoder.onnx", folder / "scores.onnx"))


def test_outputs_that_cannot_be_told_apart_are_named(folder: Path) -> None:
    model = tiny.decoder()
    model.graph.node.append(helper.make_node("Neg", ["iou_predictions"], ["other_iou"]))
    model.graph.output.append(helper.make_tensor_value_info("other_iou", 1, [1, 4]))
    onnx.save(model, folder / "twice.onnx")
    with pytest.raises(UserError, match=r"several outputs may be the predicted IoUs: .*other_iou float32 \[1, 4\]"):
        SamPredictor(folder / "encoder.onnx", folder / "twice.onnx")
    del model.graph.output[1:]
    onnx.save(model, folder / "twice.onnx")
    with pytest.raises(UserError, match="no output is the predicted IoUs"):
        SamPredictor(folder / "encoder.onnx", folder / "twice.onnx")


def _constant(model: onnx.ModelProto, name: str, values: object, shape: tuple[int, ...] = (1, 3, 1, 1)) -> str:
    array = np.broadcast_to(np.asarray(values, np.float32).reshape(-1), (3,)).reshape(shape)
    model.graph.initializer.append(numpy_helper.from_array(array.copy(), name))
    return name


def _sub_div(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Sub", ["image", _constant(model, "mean", PIXEL_MEAN)], ["centred"]),
        helper.make_node("Div", ["centred", _constant(model, "std", PIXEL_STD)], ["ready"]),
    ]
    _behind(model, "image", nodes, "ready")


def _mul_add(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Mul", [_constant(model, "factor", 1 / PIXEL_STD), "image"], ["scaled"]),
        helper.make_node("Add", ["scaled", _constant(model, "offset", -PIXEL_MEAN / PIXEL_STD)], ["ready"]),
    ]
    _behind(model, "image", nodes, "ready")


def _batch_norm(model: onnx.ModelProto) -> None:
    held = {"ones": 1, "zeros": 0, "mean": PIXEL_MEAN, "variance": PIXEL_STD**2}
    names = [_constant(model, name, values, (3,)) for name, values in held.items()]
    _behind(
        model, "image", [helper.make_node("BatchNormalization", ["image", *names], ["ready"], epsilon=0.0)], "ready"
    )


def _from_bytes(model: onnx.ModelProto) -> None:
    _sub_div(model)
    _retyped(model, "image", TensorProto.UINT8)


def _unit(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Sub", ["image", _constant(model, "mean", PIXEL_MEAN / 255)], ["centred"]),
        helper.make_node("Div", ["centred", _constant(model, "std", PIXEL_STD / 255)], ["ready"]),
    ]
    _behind(model, "image", nodes, "ready")


@pytest.mark.parametrize(
    ("change", "said", "tolerance"),
    [
        (_sub_div, "from 0 to 255", 1e-4),
        (_mul_add, "from 0 to 255", 1e-4),
        (_batch_norm, "from 0 to 255", 1e-4),
        (_from_bytes, "from 0 to 255", 0.3),
        (_unit, "from 0 to 1", 1e-4),
    ],
)
def test_pixels_are_never_normalised_twice(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[onnx.ModelProto], None],
    said: str,
    tolerance: float,
) -> None:
    model = tiny.encoder()
    change(model)
    onnx.save(model, folder / "inside.onnx")
    expected = Encoder(folder / "encoder.onnx").embed(RGB)
    for source in (folder / "inside.onnx", open_session(folder / "inside.onnx")):
        np.testing.assert_allclose(Encoder(source).embed(RGB), expected, atol=tolerance)  # padding is SAM's, too
    SamPredictor(folder / "inside.onnx", folder / "decoder.onnx")
    assert f"inside.onnx: normalises inside, so it is fed pixels {said}\n" in capsys.readouterr().err
    (feed,) = sample_feed(read_model(folder / "inside.onnx")).values()
    assert feed.max() <= 255 and feed.min() >= 0 and (feed.max() > 2) == (said == "from 0 to 255")
    assert _quantizes(folder / "inside.onnx")
    assert said in capsys.readouterr().out
    assert Encoder(folder / "quantized.onnx").image.pixels is Encoder(folder / "inside.onnx").image.pixels


def test_arithmetic_that_is_no_normalisation_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.encoder()
    _behind(model, "image", [helper.make_node("Mul", ["image", _constant(model, "gain", 1.2)], ["ready"])], "ready")
    onnx.save(model, folder / "gain.onnx")
    SamPredictor(folder / "gain.onnx", folder / "decoder.onnx")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "multiplies its image by 1.2 and adds 0" in told and "check that they fit" in told


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ([64, 64, 3], TensorProto.UINT8, "image uint8 [64, 64, 3]"),
        ([1, 3, "height", "width"], TensorProto.FLOAT, "image float32 [1, 3, height, width]"),
        ([1, 3, 64, 32], TensorProto.FLOAT, "image float32 [1, 3, 64, 32]"),
        ([1, 3, 64, 64], TensorProto.BFLOAT16, "image bfloat16 [1, 3, 64, 64]"),
    ],
)
def test_other_images_are_refused_by_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: list[int | str], dtype: int, said: str
) -> None:
    node = helper.make_node("Cast", ["image"], ["y"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("image", dtype, shape)]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert not _quantizes(tmp_path / "m.onnx")
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and said in errors[-1] and "[1, 3, S, S]" in errors[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_decoder_that_takes_more_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.decoder()
    model.graph.input.append(helper.make_tensor_value_info("interm_embeddings", 1, [1, 4, 4, 16]))
    onnx.save(model, folder / "hq.onnx")
    assert not _quantizes(folder / "hq.onnx", "--encoder", folder / "encoder.onnx")
    assert "also takes interm_embeddings float32 [1, 4, 4, 16]" in capsys.readouterr().err
    with pytest.raises(UserError, match="also takes interm_embeddings"):
        SamPredictor(folder / "encoder.onnx", folder / "hq.onnx")


def test_a_model_that_gives_no_numbers_is_told(folder: Path) -> None:
    model = tiny.encoder()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full_like(numpy_helper.to_array(model.graph.initializer[0]), np.nan), "w0")
    )
    onnx.save(model, folder / "nan.onnx")
    predictor = SamPredictor(folder / "nan.onnx", folder / "decoder.onnx")
    with pytest.raises(UserError, match=r"nan\.onnx: its output image_embeddings is not finite"):
        predictor.set_image(RGB)
