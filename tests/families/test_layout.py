# SPDX-License-Identifier: Apache-2.0
"""Images are fed as a file has them: any order of axes, free sides, batches, types, and what people say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import samq_onnx
from samq_onnx import images
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import Hints
from samq_onnx.images import PIXEL_MEAN, PIXEL_STD
from samq_onnx.predictor import SamPredictor
from tests.families.exports import BOX, RGB, behind, part_of, quantizes
from tests.fuzz import tiny

SIDE = tiny.SIDE


def _declare(model: onnx.ModelProto, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
    del model.graph.value_info[:]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", dtype, shape))


def _constant(model: onnx.ModelProto, name: str, values: object) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _channels_last(model: onnx.ModelProto) -> None:
    behind(model, "image", [helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])], "nchw")
    _declare(model, [1, SIDE, SIDE, 3])


def _channels_first(model: onnx.ModelProto) -> None:
    axes = _constant(model, "batch_axis", np.array([0]))
    behind(model, "image", [helper.make_node("Unsqueeze", ["image", axes], ["nchw"])], "nchw")
    _declare(model, [3, SIDE, SIDE])


def _picture(model: onnx.ModelProto, shape: Sequence[int | str], dtype: int) -> None:
    """Pixels of any size [H, W, 3], normalised and padded inside."""
    axes = _constant(model, "batch_axis", np.array([0]))
    sides = [_constant(model, "sides", np.array([0, 1])), _constant(model, "wanted", np.array([SIDE, SIDE]))]
    zeros = _constant(model, "zeros", np.array([0, 0, 0, 0, 0]))
    mean, std = _constant(model, "mean", PIXEL_MEAN), _constant(model, "std", PIXEL_STD)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", mean], ["centred"]),
        helper.make_node("Div", ["centred", std], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["chw"], perm=[2, 0, 1]),
        helper.make_node("Shape", ["image"], ["dims"]),
        helper.make_node("Gather", ["dims", sides[0]], ["given"]),
        helper.make_node("Sub", [sides[1], "given"], ["missing"]),
        helper.make_node("Concat", [zeros, "missing"], ["pads_back"], axis=0),
        helper.make_node("Gather", ["pads_back", _constant(model, "order", np.array([0, 1, 2, 3, 5, 6]))], ["pads"]),
        helper.make_node("Pad", ["chw", "pads"], ["square"]),
        helper.make_node("Unsqueeze", ["square", axes], ["nchw"]),
    ]
    behind(model, "image", nodes, "nchw")
    _declare(model, shape, dtype)


def _free(model: onnx.ModelProto) -> None:
    _declare(model, ["batch", "channels", "height", "width"])


def _free_sides(model: onnx.ModelProto) -> None:
    _declare(model, [1, 3, "height", "width"])


def _any_floats(model: onnx.ModelProto) -> None:
    _picture(model, ["height", "width", 3], TensorProto.FLOAT)


def _any_bytes(model: onnx.ModelProto) -> None:
    _picture(model, ["height", "width", 3], TensorProto.UINT8)


def _bytes(model: onnx.ModelProto) -> None:
    _picture(model, [SIDE, SIDE, 3], TensorProto.UINT8)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (_channels_last, 1e-4),
        (_channels_first, 1e-4),
        (_free, 1e-4),
        (_free_sides, 1e-4),
        (_any_floats, 1e-4),
        (_any_bytes, 0.3),
        (_bytes, 0.3),
    ],
)
def test_an_encoder_is_fed_as_its_image_lies(
    folder: Path, change: Callable[[onnx.ModelProto], None], tolerance: float
) -> None:
    model = tiny.encoder()
    change(model)
    onnx.save(model, folder / "other.onnx")
    expected, actual = (Encoder(folder / name).embed(RGB) for name in ("encoder.onnx", "other.onnx"))
    np.testing.assert_allclose(actual[0], expected[0], atol=tolerance)
    assert quantizes(folder / "other.onnx")
    quantized = onnx.load(folder / "quantized.onnx")
    assert quantized.graph.input == model.graph.input and quantized.graph.output == model.graph.output
    assert any("Attention" in node.op_type for node in quantized.graph.node)
    predictor = SamPredictor(folder / "quantized.onnx", folder / "decoder.onnx")
    predictor.set_image(RGB)
    assert predictor.predict(box=BOX)[0].shape[1:] == RGB.shape[:2]


def _brought_to_the_square(model: onnx.ModelProto) -> None:
    """Images of any sides, stretched inside to those of the model, as EfficientSAM does."""
    sides, wanted = _constant(model, "two", np.array([2])), _constant(model, "square", np.array([SIDE, SIDE]))
    nodes = [
        helper.make_node("Shape", ["image"], ["dims"]),
        helper.make_node("Slice", ["dims", _constant(model, "nought", np.array([0])), sides], ["leading"]),
        helper.make_node("Concat", ["leading", wanted], ["sizes"], axis=0),
        helper.make_node("Resize", ["image", "", "", "sizes"], ["stretched"], mode="linear"),
    ]
    behind(model, "image", nodes, "stretched")
    _declare(model, ["batch", 3, "height", "width"])


def test_an_encoder_that_brings_images_to_its_square_gets_stretched_ones(folder: Path) -> None:
    model = tiny.encoder()
    _brought_to_the_square(model)
    onnx.save(model, folder / "other.onnx")
    image = Encoder(folder / "other.onnx").image
    assert image.size == SIDE and image.stretched
    np.testing.assert_array_equal(image.feed(RGB)["image"], images.stretch(RGB, SIDE))
    assert quantizes(folder / "other.onnx")
    assert Encoder(folder / "other.onnx", Hints(SIDE)).image == image  # what is said changes nothing
    with pytest.raises(UserError, match=f"takes images of {SIDE} pixels; leave out --input-size {2 * SIDE}"):
        Encoder(folder / "other.onnx", Hints(2 * SIDE))
    _free_sides(model := tiny.encoder())
    onnx.save(model, folder / "padded.onnx")
    image = Encoder(folder / "padded.onnx").image  # positions tell its size, and nothing stretches
    assert image.size == SIDE and not image.stretched
    with pytest.raises(UserError, match=f"takes images of {SIDE} pixels; leave out --input-size {2 * SIDE}"):
        Encoder(folder / "padded.onnx", Hints(2 * SIDE))


POOLED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, h, w] image) => (float[1, 8, 1, 1] y) { c = Conv (image, weight)
  y = GlobalAveragePool (c) }"""


def test_a_map_of_one_size_made_of_any_image(folder: Path) -> None:
    """Pooled to two by two cells, whatever the image: what is said counts."""
    text = POOLED.replace("1, 8, 1, 1", "1, 8, 2, 2").replace(
        "GlobalAveragePool (c)", 'Resize <mode = "linear"> (c,,, s)'
    )
    model = onnx.parser.parse_model(text)
    _constant(model, "weight", np.ones((8, 3, 3, 3), np.float32))
    _constant(model, "s", np.array([1, 8, 2, 2]))
    onnx.save(model, folder / "pooled.onnx")
    assert Encoder(folder / "pooled.onnx", Hints(SIDE)).image.size == SIDE


def test_one_cell_tells_no_size(folder: Path) -> None:
    model = onnx.parser.parse_model(POOLED)
    _constant(model, "weight", np.ones((8, 3, 3, 3), np.float32))
    onnx.save(model, folder / "pooled.onnx")
    with pytest.raises(UserError, match="give --input-size SIDE"):
        Encoder(folder / "pooled.onnx")
    assert Encoder(folder / "pooled.onnx", Hints(SIDE)).image.size == SIDE


CONVOLUTION = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, h, w] image) => (float[1, 8, a, b] y) { c = Conv (image, weight)
  y = Relu (c) }"""


@pytest.fixture
def convolution(tmp_path: Path) -> Path:
    """A network that takes images of any size, which its graph does not tell."""
    model = onnx.parser.parse_model(CONVOLUTION)
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_size_that_no_graph_tells_is_asked_for(
    convolution: Path, one_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not quantizes(convolution)
    assert "takes image float32 [1, 3, h, w], an image of free sides; give --input-size SIDE" in capsys.readouterr().err
    result = samq_onnx.quantize(convolution, one_image, method="minmax", input_size=48)
    result.save(convolution.with_name("quantized.onnx"))
    part = part_of(convolution.with_name("quantized.onnx"))  # which remembers
    assert part.image is not None and part.image.size == 48
    assert part_of(convolution).image is None
    again = samq_onnx.lower(convolution, result.plans)
    assert again.model.metadata_props["samq_onnx.input_size"] == "48"


def test_a_size_that_the_file_denies(folder: Path, one_image: Path) -> None:
    with pytest.raises(UserError, match=r"takes images of 64 pixels; leave out --input-size 128"):
        samq_onnx.quantize(folder / "encoder.onnx", one_image, method="minmax", input_size=128)


def test_pixels_are_those_that_are_said(folder: Path, one_image: Path) -> None:
    result = samq_onnx.quantize(folder / "encoder.onnx", one_image, method="minmax", preprocess="unit")
    sample = result.parts["model"].sample
    assert sample is not None and sample["image"].min() > -1e-6 and 0.5 < sample["image"].max() <= 1
    result.save(folder / "quantized.onnx")
    assert part_of(folder / "quantized.onnx").image.pixels.name == "UNIT"  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "pixels"), [(0, None), (1 << 20, None), (None, "bgr")])
def test_hints_that_cannot_be(size: int | None, pixels: str | None) -> None:
    with pytest.raises(UserError, match="must be"):
        Hints.of(size, pixels)
    assert Hints.read({"samq_onnx.input_size": str(size), "samq_onnx.preprocess": str(pixels)}) == Hints()
