# SPDX-License-Identifier: Apache-2.0
"""Plans as files: what is written is read again, and nothing else is taken for a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samq_onnx.codes import LogCodes, RowCodes, UniformCodes, WeightCodes
from samq_onnx.errors import UserError
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.plan_file import constants_path, read_plans, write_plans


def _plan() -> QuantPlan:
    x = UniformCodes(0.1 + 1e-9, 3, 8)
    plan = QuantPlan("qdq", 4, metadata={"samq_onnx.recipe": "{}"})
    plan.linears["a/b"] = LinearPlan(x, WeightCodes((0.5, 1e-8), 4))
    plan.linears["conv"] = LinearPlan(x, WeightCodes((0.25,), 2), x)
    plan.attentions["log"] = AttentionPlan(x, x, x, LogCodes(0.9, 4, 6))
    plan.attentions["row"] = AttentionPlan(x, x, x, RowCodes(0, 8))
    plan.attentions["uniform"] = AttentionPlan(x, x, x, UniformCodes(1 / 255, 0, 8))
    plan.kept_float["head"] = "last layer"
    plan.constants["w/1"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    return plan


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plans = {"encoder": _plan(), "decoder": QuantPlan(metadata={"a": "b"})}
    write_plans(file, plans)
    found = read_plans(file)
    assert list(found) == ["encoder", "decoder"]
    np.testing.assert_array_equal(found["encoder"].constants["w/1"], plans["encoder"].constants["w/1"])
    for plan in (*plans.values(), *found.values()):
        plan.constants.clear()
    assert found == plans


def test_a_plan_without_moved_constants_is_one_file(tmp_path: Path) -> None:
    write_plans(tmp_path / "plan.json", {"model": QuantPlan()})
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert read_plans(tmp_path / "plan.json") == {"model": QuantPlan()}


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split("|")
        for key in parents:
            document = document[key]
        document[last] = value

    return change


MODEL = "parts|model"
WRONG = {
    "of this version": _set("format", "samq_onnx.plan/0"),
    "parts": _set("parts", {}),
    "linears": _set(f"{MODEL}|linears", []),
    "a/b.input.scale: wanted": _set(f"{MODEL}|linears|a/b|input|scale", "1"),
    "above 0 and finite": _set(f"{MODEL}|linears|a/b|input|scale", -1.0),
    "zero point": _set(f"{MODEL}|linears|a/b|input|zero_point", 256),
    "codes of 9 bits": _set(f"{MODEL}|linears|a/b|weight|bits", 9),
    "weight.scale": _set(f"{MODEL}|linears|a/b|weight|scale", []),
    "kind": _set(f"{MODEL}|attentions|log|probabilities|kind", "sine"),
    "tau": _set(f"{MODEL}|attentions|log|probabilities|tau", 3),
    "q": _set(f"{MODEL}|attentions|log|q", None),
    "metadata": _set(f"{MODEL}|metadata", {"a": 1}),
    "target": _set(f"{MODEL}|target", True),
    "constants": _set(f"{MODEL}|constants", ["w/1", "w/2"]),
    "different names": _set(f"{MODEL}|constants", ["w/1", "w/1"]),
    "is not the file": _set("constants|sha256", "0" * 64),
    "no such file": _set("constants|file", "../../etc/passwd"),
    "no name of a file": _set("constants|file", "y" * 5000),
    "extra: unknown": _set("extra", 1),
    "constants.extra: unknown": _set("constants|extra", 1),
    "model.extra: unknown": _set(f"{MODEL}|extra", 1),
    "conv.extra: unknown": _set(f"{MODEL}|linears|conv|extra", 1),
    "weight.extra: unknown": _set(f"{MODEL}|linears|conv|weight|extra", 1),
    "output.extra: unknown": _set(f"{MODEL}|linears|conv|output|extra", 1),
    "log.extra: unknown": _set(f"{MODEL}|attentions|log|extra", 1),
    "probabilities.zero_point: unknown": _set(f"{MODEL}|attentions|log|probabilities|zero_point", 0),
    "in float32": _set(f"{MODEL}|linears|conv|input|scale", 1e39),
    "finite, with what its codes stand for": _set(f"{MODEL}|linears|conv|input|scale", 3e38),
    "above 0": _set(f"{MODEL}|linears|conv|input|scale", 1e-46),
    "too large": _set(f"{MODEL}|linears|conv|input|scale", 10**400),
    "not JSON": _set(f"{MODEL}|metadata", {"a": "\ud800"}),
    "no number of JSON": _set(f"{MODEL}|linears|conv|input|scale", float("nan")),
    "...": _set(f"{MODEL}|linears", {"y" * 5000: 3}),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_plan_is_named(message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plans(file, {"model": _plan()})
    document = json.loads(file.read_text())
    WRONG[message](document)
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match="plan") as caught:
        read_plans(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 3}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(UserError, match="quantize --plan-out"):
        read_plans(file)


def test_constants_of_other_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = _plan()
    for array in (np.zeros(3), np.array([np.nan], np.float32)):
        plan.constants["w/1"] = array
        write_plans(file, {"model": plan})
        with pytest.raises(UserError, match="no finite float32"):
            read_plans(file)
    constants_path(file).unlink()
    with pytest.raises(UserError, match="no such file"):
        read_plans(file)


def test_a_plan_says_everything_once(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plans(file, {"model": _plan()})
    text = file.read_text()
    for key in ('"bits":', '"linears":', '"parts":'):
        file.write_text(text.replace(key, f"{key} 7, {key}", 1))
        with pytest.raises(UserError, match=f"{key[:-1]} is there twice".replace('"', "'")):
            read_plans(file)
    for gone, key in ((f"{MODEL}|linears|a/b", "output"), ("", "constants")):
        document = json.loads(text)
        parent = document
        for step in filter(None, gone.split("|")):
            parent = parent[step]
        del parent[key]
        file.write_text(json.dumps(document))
        with pytest.raises(UserError, match=key):
            read_plans(file)


def test_constants_that_no_part_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plans(file, {"model": QuantPlan()})
    document = json.loads(file.read_text())
    for value in ({"file": "x", "sha256": ""}, 0, "gone"):
        document["constants"] = value
        file.write_text(json.dumps(document))
        with pytest.raises(UserError, match="wanted null"):
            read_plans(file)
