# SPDX-License-Identifier: Apache-2.0
"""Pixels are fed as a model wants them, also where it normalises them itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samq_onnx.encoder import Encoder
from samq_onnx.images import PIXEL_MEAN, PIXEL_STD
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests.families.exports import RGB, behind, part_of, quantizes, retyped
from tests.fuzz import tiny


def _constant(model: onnx.ModelProto, name: str, values: object, shape: tuple[int, ...] = (1, 3, 1, 1)) -> str:
    array = np.broadcast_to(np.asarray(values, np.float32).reshape(-1), (3,)).reshape(shape)
    model.graph.initializer.append(numpy_helper.from_array(array.copy(), name))
    return name


def _sub_div(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Sub", ["image", _constant(model, "mean", PIXEL_MEAN)], ["centred"]),
        helper.make_node("Div", ["centred", _constant(model, "std", PIXEL_STD)], ["ready"]),
    ]
    behind(model, "image", nodes, "ready")


def _mul_add(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Mul", [_constant(model, "factor", 1 / PIXEL_STD), "image"], ["scaled"]),
        helper.make_node("Add", ["scaled", _constant(model, "offset", -PIXEL_MEAN / PIXEL_STD)], ["ready"]),
    ]
    behind(model, "image", nodes, "ready")


def _batch_norm(model: onnx.ModelProto) -> None:
    held = {"ones": 1, "zeros": 0, "mean": PIXEL_MEAN, "variance": PIXEL_STD**2}
    names = [_constant(model, name, values, (3,)) for name, values in held.items()]
    behind(model, "image", [helper.make_node("BatchNormalization", ["image", *names], ["ready"], epsilon=0.0)], "ready")


def _from_bytes(model: onnx.ModelProto) -> None:
    _sub_div(model)
    retyped(model, "image", TensorProto.UINT8)


def _unit(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Sub", ["image", _constant(model, "mean", PIXEL_MEAN / 255)], ["centred"]),
        helper.make_node("Div", ["centred", _constant(model, "std", PIXEL_STD / 255)], ["ready"]),
    ]
    behind(model, "image", nodes, "ready")


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
    part = part_of(folder / "inside.onnx")
    assert part.notes == (f"{folder / 'inside.onnx'}: normalises inside, so it is fed pixels {said}",)
    (feed,) = part.sample_feed().values()
    assert feed.max() <= 255 and feed.min() >= 0 and (feed.max() > 2) == (said == "from 0 to 255")
    assert quantizes(folder / "inside.onnx")
    assert said in capsys.readouterr().out
    assert Encoder(folder / "quantized.onnx").image.pixels is Encoder(folder / "inside.onnx").image.pixels


def test_arithmetic_that_is_no_normalisation_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.encoder()
    behind(model, "image", [helper.make_node("Mul", ["image", _constant(model, "gain", 1.2)], ["ready"])], "ready")
    onnx.save(model, folder / "gain.onnx")
    SamPredictor(folder / "gain.onnx", folder / "decoder.onnx")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "multiplies its image by 1.2 and adds 0" in told and "check that they fit" in told
