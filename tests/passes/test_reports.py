# SPDX-License-Identifier: Apache-2.0
"""Lowering tells what it could not make fast and why, and nothing where all is as it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from samq_onnx.verify import sqnr
from tests.conftest import run_model
from tests.passes.plans import quantized

BLOCK = """
<ir_version: 9, opset_import: ["" : 20]>
block (float[SHAPE] x FURTHER) => (float[SHAPE] y GIVEN)
<float[8] gain, float[8] offset, float[8, 16] w1, float[16, 8] w2, float[1, 1, 8] row>
{
    n = LayerNormalization <axis = -1> (x, gain, offset)
    BETWEEN
    u = MatMul (INPUT, w1)
    g = Gelu (u)
    d = MatMul (g, w2)
    y = Add (d, OTHER)
}
"""
PLAIN = {"SHAPE": "1, 300, 8", "FURTHER": "", "GIVEN": "", "BETWEEN": "", "INPUT": "n", "OTHER": "x"}


def _block(folder: Path, changes: dict[str, str]) -> Path:
    text = BLOCK
    for name, words in {**PLAIN, **changes}.items():
        text = text.replace(name, words)
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weight = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.output[0]}{index}"
    del model.graph.value_info[:]
    onnx.save(model, folder / "block.onnx")
    return folder / "block.onnx"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"GIVEN": ", float[1, 300, 16] g"}, ["tables of GELU at u1: GELU stays float: something else reads it than"]),
        ({"GIVEN": ", float[1, 300, 16] u"}, ["tables of GELU at u1: GELU stays float: something else reads what"]),
        ({"GIVEN": ", float[1, 300, 8] n"}, ["norms that give codes at n0: stays float: something else reads it"]),
        ({"GIVEN": ", float[1, 300, 8] d"}, ["fusion at y4: the addition stays apart from its linear: something else"]),
        ({"OTHER": "row"}, ["fusion at y4: the addition stays apart from its linear: the other summand broadcasts"]),
        ({"SHAPE": "A, B, 8"}, []),
        (
            {"SHAPE": "A, B, 8", "FURTHER": ", float[C, D, 8] z", "OTHER": "z"},
            ["fusion at y4: the addition stays apart from its linear: the other summand broadcasts"],
        ),
        ({"SHAPE": "1, 20, 8", "GIVEN": ", float[1, 20, 8] n, float[1, 20, 16] g"}, []),  # few rows
        (
            {"FURTHER": ", int64[R] s", "BETWEEN": "t = Reshape (n, s)", "INPUT": "t"},
            ["linears at u2: stays QDQ: the number of its rows is not known", "linears at d4: stays QDQ: the number"],
        ),
    ],
    ids=["none", "gelu given", "linear given", "norm given", "product given", "row", "free", "freely", "few", "rank"],
)
def test_losses_are_told(tmp_path: Path, changes: dict[str, str], told: list[str]) -> None:
    path = _block(tmp_path, changes)
    rows = 20 if changes.get("SHAPE", "").startswith("1, 20") else 300
    feed = {"x": np.random.default_rng(1).standard_normal((1, rows, 8)).astype(np.float32)}
    if changes.get("OTHER") == "z":
        feed["z"] = feed["x"]
    if "BETWEEN" in changes:
        feed["s"] = np.array([1, 300, 8], np.int64)
    lowered = quantized(path, [feed])
    assert len(lowered.refused) == len(told)
    assert all(line.startswith(start) for line, start in zip(lowered.refused, told, strict=True))
    assert sqnr(run_model(path, feed)[0], run_model(lowered.model, feed)[0]) > 30


def test_every_pass_reports(tmp_path: Path) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((1, 300, 8)).astype(np.float32)}
    done = {report.name: report.done for report in quantized(_block(tmp_path, {}), [feed]).reports}
    assert len(done["linears"]) == 2 and len(done["tables of GELU"]) == 1 and len(done["norms that give codes"]) == 1
    assert len(done["fusion"]) == 1 and done["NaN carried"] == ["y"]
