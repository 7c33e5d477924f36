# SPDX-License-Identifier: Apache-2.0
"""Quantizing from Python, plans that make the model again, statistics that are used again, and widths of sites."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import samq_onnx
from samq_onnx import api, lower, quantize
from samq_onnx.errors import UserError
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_file import read_plans

FILES = ("encoder.onnx", "decoder.onnx")


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def _command(tiny_sam: Path, one_image: Path, output: Path, *more: object) -> int:
    words = [tiny_sam, "--calib", one_image, "-o", output, "--method", "minmax", *more]
    return quantize.main([str(word) for word in words])


def test_nothing_is_printed(tiny_sam: Path, one_image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = samq_onnx.quantize(tiny_sam, one_image, method="minmax")
    assert capfd.readouterr() == ("", "")
    assert set(result.parts) == {"encoder", "decoder"}
    for part in result.parts.values():
        assert part.plan.linears and part.plan.attentions and part.recipe["method"] == "minmax"
        assert {"attention scale", "key centring", "ranges"} <= {report.name for report in part.reports}
    with pytest.raises(UserError, match="see parts"):
        _ = result.model


def test_the_command_writes_what_the_api_gives(tiny_sam: Path, one_image: Path, tmp_path: Path) -> None:
    assert _command(tiny_sam, one_image, tmp_path / "command") == 0
    samq_onnx.quantize(tiny_sam, one_image, method="minmax").save(tmp_path / "api")
    assert _bytes(tmp_path / "command") == _bytes(tmp_path / "api")


def test_pictures_are_as_good_as_their_folder(tiny_sam: Path, one_image: Path) -> None:
    from PIL import Image

    (file,) = one_image.iterdir()
    pixels = np.asarray(Image.open(file))
    encoder = tiny_sam / "encoder.onnx"
    by_pixels = samq_onnx.quantize(encoder, [pixels], method="minmax")
    by_folder = samq_onnx.quantize(encoder, one_image, method="minmax")
    assert by_pixels.plan.linears == by_folder.plan.linears
    for wrong in (pixels[..., 0], pixels.astype(float)):
        with pytest.raises(UserError, match="image 0: wanted RGB"):
            samq_onnx.quantize(encoder, [wrong], method="minmax")


@pytest.mark.parametrize(
    ("method", "bits", "target"),
    [("minmax", "w8a8", "samq"), ("minmax", "w3a5", "qdq"), ("ptq4sam-s", "w4a4", "samq"), ("samq", "w6a6", "qdq")],
)
def test_a_plan_gives_the_same_bytes_again(
    method: str, bits: str, target: str, tiny_sam: Path, one_image: Path, tmp_path: Path
) -> None:
    words = ["--method", method, "--bits", bits, "--target", target, "--plan-out", tmp_path / "plan.json"]
    assert _command(tiny_sam, one_image, tmp_path / "made", *words) == 0
    again = [tiny_sam, "--plan", tmp_path / "plan.json", "-o", tmp_path / "again"]
    assert lower.main([str(word) for word in again]) == 0
    assert _bytes(tmp_path / "made") == _bytes(tmp_path / "again")


def test_one_plan_for_two_targets(tiny_sam: Path, one_image: Path, tmp_path: Path) -> None:
    for target in ("samq", "qdq"):
        words = ("--target", target, "--plan-out", tmp_path / f"{target}.json")
        assert _command(tiny_sam, one_image, tmp_path / target, *words) == 0
    words = [tiny_sam, "--plan", tmp_path / "samq.json", "--target", "qdq", "-o", tmp_path / "other"]
    assert lower.main([str(word) for word in words]) == 0
    graphs = [onnx.load(tmp_path / folder / FILES[0]).graph for folder in ("other", "qdq")]
    assert graphs[0] == graphs[1]  # a decoder's plan is that of the encoder it was calibrated on
    assert not {node.domain for name in FILES for node in onnx.load(tmp_path / "other" / name).graph.node} - {""}


def test_codes_that_a_target_lacks_are_refused_or_replaced(
    tiny_sam: Path, one_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = samq_onnx.quantize(tiny_sam, one_image, method="ptq4sam-s")
    with pytest.raises(UserError, match="target qdq takes no post-softmax codes of the kind log"):
        api.lower(tiny_sam, result.plans, "qdq")
    replaced = samq_onnx.quantize(tiny_sam, one_image, method="ptq4sam-s", target="qdq")
    for part in replaced.parts.values():
        assert {site.probabilities.kind for site in part.plan.attentions.values()} == {"uniform"}
        assert any("does not take log" in line for report in part.reports for line in report.refused)


@pytest.fixture(scope="module")
def planned(tiny_sam: Path, one_image: Path) -> dict[str, QuantPlan]:
    return samq_onnx.quantize(tiny_sam, one_image, method="minmax").plans


def test_a_plan_of_another_model_is_refused(planned: dict[str, QuantPlan], nano: Path) -> None:
    with pytest.raises(UserError, match="made for another model"):
        api.lower(nano, planned)
    with pytest.raises(UserError, match="the plan is one of encoder and decoder"):
        api.lower(nano / "encoder.onnx", planned)


def test_a_refused_plan_writes_nothing(
    tiny_sam: Path, one_image: Path, nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(tiny_sam, one_image, tmp_path / "made", "--plan-out", tmp_path / "plan.json") == 0
    assert lower.main([str(nano), "--plan", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out")]) == 2
    assert "made for another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_statistics_serve_other_methods_and_widths(tiny_sam: Path, one_image: Path, tmp_path: Path) -> None:
    file = tmp_path / "stats.npz"
    encoder = tiny_sam / "encoder.onnx"
    plain = samq_onnx.quantize(encoder, one_image, method="omse", bits="w4a4")
    samq_onnx.quantize(encoder, one_image, method="minmax", stats=file)
    before = file.read_bytes()
    again = samq_onnx.quantize(encoder, one_image, method="omse", bits="w4a4", stats=file)
    assert file.read_bytes() == before  # nothing had to be collected
    assert again.plan.linears == plain.plan.linears and again.plan.attentions == plain.plan.attentions
    with pytest.raises(UserError, match="statistics of another"):
        samq_onnx.quantize(tiny_sam, one_image, method="omse", stats=file)


def _site_bits(plans: dict[str, QuantPlan]) -> dict[str, Any]:
    encoder = plans["encoder"]
    return {
        "encoder": {
            next(iter(encoder.attentions)): {"q": 8, "k": 6, "v": 4},
            next(iter(encoder.linears)): {"weight": 3},
        }
    }


def test_single_sites_have_other_widths(
    planned: dict[str, QuantPlan], tiny_sam: Path, one_image: Path, tmp_path: Path
) -> None:
    sites, plan = tmp_path / "sites.json", tmp_path / "plan.json"
    sites.write_text(json.dumps(_site_bits(planned)))
    assert _command(tiny_sam, one_image, tmp_path / "out", "--site-bits", sites, "--plan-out", plan) == 0
    found = read_plans(plan)["encoder"]
    attention, linear = next(iter(found.attentions.values())), next(iter(found.linears.values()))
    assert [getattr(attention, role).bits for role in "qkv"] == [8, 6, 4]
    assert linear.weight.bits == 3 and attention.probabilities.bits == 8


def test_strict_is_one_width_everywhere(tiny_sam: Path, one_image: Path) -> None:
    result = samq_onnx.quantize(tiny_sam, one_image, method="samq", bits="w7a5", strict=True)
    for plan in result.plans.values():
        for linear in plan.linears.values():
            assert linear.weight.bits == 7
            assert {codes.bits for codes in (linear.input, linear.output) if codes is not None} == {5}
        for site in plan.attentions.values():
            assert {codes.bits for codes in (site.q, site.k, site.v, site.probabilities)} == {5}
    wide = samq_onnx.quantize(tiny_sam, one_image, method="samq", bits="w7a5", decoder_bits="w6a6").plans["decoder"]
    assert {linear.input.bits for linear in wide.linears.values()} == {6}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"bits": 8}, "unknown width 8"),
        ({"settings": ["a"]}, "settings: wanted name -> value"),
        ({"target": "gpu"}, "unknown target 'gpu'; choose one of qdq, samq"),
        ({"images": []}, "no images to calibrate on"),
        ({"images": None}, "no images to calibrate on"),
        ({"images": [np.zeros((0, 4, 3), np.uint8)]}, "image 0: wanted RGB"),
    ],
)
def test_wrong_arguments_are_named(named: dict[str, Any], message: str, tiny_sam: Path, one_image: Path) -> None:
    with pytest.raises(UserError, match=message):
        samq_onnx.quantize(tiny_sam, **({"images": one_image, "method": "minmax"} | named))


def test_plans_in_python(planned: dict[str, QuantPlan], tiny_sam: Path, tmp_path: Path) -> None:
    samq_onnx.write_plans(tmp_path / "plan.json", planned)
    for target in ("samq", "qdq"):
        samq_onnx.lower(tiny_sam, samq_onnx.read_plans(tmp_path / "plan.json"), target).save(tmp_path / target)
        assert all((tmp_path / target / name).is_file() for name in FILES)
    assert list(inspect.signature(samq_onnx.lower).parameters) == ["model", "plans", "target"]


def test_a_model_that_does_not_load_replaces_nothing(
    planned: dict[str, QuantPlan], tiny_sam: Path, tmp_path: Path
) -> None:
    result = samq_onnx.lower(tiny_sam, planned)
    result.save(tmp_path)
    before = _bytes(tmp_path)
    next(iter(result.parts["decoder"].model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(UserError):
        result.save(tmp_path)
    assert _bytes(tmp_path) == before


def test_widths_of_a_decoder_for_what_is_none_are_refused(tiny_sam: Path, one_image: Path) -> None:
    with pytest.raises(UserError, match="leave out --decoder-bits"):
        samq_onnx.quantize(tiny_sam / "encoder.onnx", one_image, method="minmax", decoder_bits="w8a8")
