# SPDX-License-Identifier: Apache-2.0
"""Plans that do not fit the model, or themselves: refused by lower with one line, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samq_onnx import lower, quantize

Plan = dict[str, Any]


@pytest.fixture(scope="module")
def planned(tiny_sam: Path, one_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plan of the tiny encoder."""
    folder = tmp_path_factory.mktemp("planned")
    words = [tiny_sam / "encoder.onnx", "--calib", one_image, "-o", folder / "made.onnx", "--method", "minmax"]
    assert quantize.main([str(word) for word in [*words, "--plan-out", folder / "plan.json"]]) == 0
    return folder


def _linear(plan: Plan) -> Plan:
    """One with codes of its output: none is a convolution."""
    linear: Plan = next(one for one in plan["linears"].values() if one["output"] is None)
    return linear


def _attention(plan: Plan) -> Plan:
    site: Plan = next(iter(plan["attentions"].values()))
    return site


def _renamed(kind: str, name: str) -> Callable[[Plan], None]:
    return lambda plan: plan[kind].update({name: next(iter(plan[kind].values()))})


def _as_linear(plan: Plan) -> None:
    plan["linears"][next(iter(plan["attentions"]))] = _linear(plan)


def _as_attention(plan: Plan) -> None:
    plan["attentions"][next(iter(plan["linears"]))] = _attention(plan)


def _uniform(plan: Plan) -> None:
    _attention(plan)["probabilities"] = {"kind": "uniform", "scale": 0.004, "zero_point": 3, "bits": 8}


def _recipe(text: str) -> Callable[[Plan], None]:
    return lambda plan: plan["metadata"].update({"samq_onnx.recipe": text})


WRONG: dict[str, Callable[[Plan], None]] = {
    "there is no linear x here": _renamed("linears", "x"),
    "there is no attention x here": _renamed("attentions", "x"),
    "there is no linear y": lambda plan: plan["kept_float"].update({"y" * 5000: "large"}),
    "is of another model: there is no linear": _as_linear,
    "is of another model: there is no attention": _as_attention,
    "is quantized and kept float": lambda plan: plan["kept_float"].update({next(iter(plan["linears"])): "large"}),
    "has 3 scales of its weight": lambda plan: _linear(plan)["weight"].update({"scale": [0.1, 0.1, 0.1]}),
    "convolutions alone": lambda plan: _linear(plan).update({"output": _linear(plan)["input"]}),
    "weight_bits is 0": lambda plan: plan.update({"weight_bits": 0}),
    "weight_bits is 99": lambda plan: plan.update({"weight_bits": 99}),
    "weight_bits is 8, wanted 1 to 4": lambda plan: _linear(plan)["weight"].update({"bits": 4}),
    "begin below 0": _uniform,
    "does not say how": _recipe("{"),
    "does not say how, and for which target": lambda plan: plan.update({"target": "qdq"}),
    "deep": _recipe("[" * 100_000),
    "unknown target": lambda plan: (plan.update({"target": "x"}), _recipe('{"target": "x"}')(plan))[0],
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_plan_that_does_not_fit_is_refused(
    message: str, planned: Path, tiny_sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((planned / "plan.json").read_text())
    WRONG[message](document["parts"]["model"])
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document))
    (tmp_path / "plan.json.npz").write_bytes((planned / "plan.json.npz").read_bytes())
    output = tmp_path / "out" / "made.onnx"
    assert lower.main([str(tiny_sam / "encoder.onnx"), "--plan", str(file), "-o", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1000
    assert ("does not say how" if message == "deep" else message) in said
    assert not output.parent.exists()


def test_a_plan_of_parts_of_different_runs_is_refused(
    tiny_sam: Path, one_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    words = [tiny_sam, "--calib", one_image, "-o", tmp_path / "made", "--method", "minmax", "--plan-out", file]
    assert quantize.main([str(word) for word in words]) == 0
    document = json.loads(file.read_text())
    document["parts"]["decoder"]["metadata"]["samq_onnx.pair"] = "0" * 64
    file.write_text(json.dumps(document))
    assert lower.main([str(tiny_sam), "--plan", str(file), "-o", str(tmp_path / "again")]) == 2
    assert "parts of different runs" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("text", ["null", "[]", '{"a": {"q": 8}, "a": {"q": 4}}', "{", "NaN"])
def test_files_of_widths_that_are_none_are_refused(
    text: str, tiny_sam: Path, one_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sites.json"
    file.write_text(text)
    words = [tiny_sam / "encoder.onnx", "--calib", one_image, "-o", tmp_path / "made.onnx", "--site-bits", file]
    assert quantize.main([str(word) for word in words]) == 2
    assert "site -> role -> bits" in capsys.readouterr().err
    assert not (tmp_path / "made.onnx").exists()
