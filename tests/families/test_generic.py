# SPDX-License-Identifier: Apache-2.0
"""Other networks: fed images if they take one, else only random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import OUTPUT, Role
from samq_onnx.runtime import open_session
from tests import nets
from tests.conftest import relative_error
from tests.families.exports import RGB, behind, part_of, quantizes
from tests.fuzz import tiny


def test_one_that_takes_an_image(tmp_path: Path, one_image: Path, nano: Path) -> None:
    onnx.save(nets.build("convolutional"), tmp_path / "net.onnx")
    part = part_of(tmp_path / "net.onnx")
    assert (part.family, part.role, part.outputs) == ("generic", Role.GENERIC, {OUTPUT: "logits"})
    feeds = part.feeds(Calibration(one_image), None, "net")
    assert [sample.path.name for sample in feeds.samples] == ["noise.png"] and feeds.notes == ()
    assert [feed["image"].shape for feed in feeds] == [(1, 3, nets.SIDE, nets.SIDE)]
    for refused in (part.feeds, lambda _, encoder, __: part.sample_feed(encoder=encoder)):
        with pytest.raises(UserError, match=r"net\.onnx: is no SAM decoder; leave out --encoder"):
            refused(Calibration(one_image), nano / "encoder.onnx", "net")


def test_one_of_other_inputs(tmp_path: Path, one_image: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    two (float[n, 4] x, int64[1] index) => (float[1, 4] y, float[n, 4] z) { y = Gather (x, index)
      z = Relu (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    part = part_of(tmp_path / "net.onnx")
    assert (part.role, part.image, part.outputs) == (Role.GENERIC, None, {})
    with pytest.raises(UserError, match=r"cannot make inputs from images; it takes x float32 \[n, 4\], index int64"):
        part.feeds(Calibration(one_image), None, "net")
    feed = part.sample_feed()
    assert feed["x"].shape == (1, 4)
    assert len(open_session(tmp_path / "net.onnx").run(None, feed)) == 2
    np.testing.assert_array_equal(feed["x"], part.sample_feed()["x"])  # always the same


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ([64, 48, 3], TensorProto.UINT8, "image uint8 [64, 48, 3]"),
        ([1, 3, 64, 32], TensorProto.FLOAT, "image float32 [1, 3, 64, 32]"),
    ],
)
def test_other_images_are_refused_by_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: list[int | str], dtype: int, said: str
) -> None:
    node = helper.make_node("Cast", ["image"], ["y"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("image", dtype, shape)]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert not quantizes(tmp_path / "m.onnx")
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and said in errors[-1] and "[1, 3, S, S]" in errors[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_bfloat16_inputs_are_refused_by_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bfloat16[1, 3, 64, 64] image) => (float[1, 3, 64, 64] y) { y = Cast <to = 1> (image) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert not quantizes(tmp_path / "m.onnx")
    said = "its input image bfloat16 [1, 3, 64, 64] is of a type that ONNX Runtime takes from no array"
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_bfloat16_inside_is_quantized(folder: Path) -> None:
    model = tiny.encoder()
    retype = {TensorProto.FLOAT: TensorProto.BFLOAT16}
    for tensor in model.graph.initializer:
        if tensor.data_type in retype:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, array.shape, array.ravel()))
    behind(model, "image", [helper.make_node("Cast", ["image"], ["half"], to=TensorProto.BFLOAT16)], "half")
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if node.output[0] == output.name)
    last.output[0] = "half_made"
    model.graph.node.append(helper.make_node("Cast", ["half_made"], [output.name], to=TensorProto.FLOAT))
    onnx.save(model, folder / "bfloat16.onnx")
    assert quantizes(folder / "bfloat16.onnx")
    expected, actual = (Encoder(folder / name).embed(RGB) for name in ("encoder.onnx", "quantized.onnx"))
    assert relative_error(list(expected), list(actual)) < 0.1
