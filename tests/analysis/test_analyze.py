# SPDX-License-Identifier: Apache-2.0
"""The page says what is wrong, and nothing is loaded to show it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import samq_onnx
from samq_onnx import analyze
from samq_onnx.analysis.facts import _channels
from samq_onnx.analysis.verdict import cause, grade
from samq_onnx.plan_file import write_plans


class _Page(HTMLParser):
    """Tags of a page, which must be balanced, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def outlier_encoder(tiny_sam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, one channel of whose MLP's input is a hundred times as wide; the MLP makes up for it."""
    model = onnx.load(tiny_sam / "encoder.onnx")
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    reader = next(node for node in model.graph.node if node.op_type == "MatMul" and node.input[0] == norm.output[0])
    for name, factor in ((norm.input[1], 100.0), (norm.input[2], 100.0), (reader.input[1], 0.01)):
        array = onnx.numpy_helper.to_array(held[name]).copy()
        array[3] *= factor
        held[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("outlier") / "encoder.onnx"
    onnx.save(model, path)
    return path


def _analyzed(model: Path, images: Path, folder: Path, *more: object) -> tuple[dict[str, Any], _Page]:
    words = [model, "--calib", images, "-o", folder / "page.html", "--json", folder / "page.json", *more]
    assert analyze.main([str(word) for word in words]) == 0
    return json.loads((folder / "page.json").read_text()), _Page((folder / "page.html").read_text())


def test_outlier_channels_are_named_as_the_cause(outlier_encoder: Path, one_image: Path, tmp_path: Path) -> None:
    report, page = _analyzed(outlier_encoder, one_image, tmp_path, "--method", "minmax")
    part = report["parts"]["model"]
    worst = part["sites"][0]
    seen = worst["tensors"][0]["channels"]["after"]
    assert seen["outliers"] == 1 and seen["ratio"] > 50
    assert worst["losses"]["input"]["error"] > 3 * worst["losses"]["weight"]["error"]
    assert cause(worst)[0] == "outlier channels"
    assert any("outlier channels: 1 of 16 channels of input reaches" in line for line in part["verdict"])
    assert all(line in page.words for line in part["verdict"])


def test_the_page_of_a_folder_is_one_file_with_all_sites(tiny_sam: Path, one_image: Path, tmp_path: Path) -> None:
    report, page = _analyzed(tiny_sam, one_image, tmp_path, "--method", "ptq4sam-s", "--bits", "w4a4")
    assert set(report["parts"]) == {"encoder", "decoder"}
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    for part in report["parts"].values():
        errors = [site["losses"]["all"]["error"] for site in part["sites"]]
        assert errors == sorted(errors, reverse=True) and part["loss"]["error"] > 0
        assert sum(len(site["losses"]) > 1 for site in part["sites"]) == min(10, len(errors))
        for site in part["sites"]:
            assert site["site"] in page.words
            for tensor in site["tensors"]:
                assert sum(tensor["after"]) > 0 and sum(tensor["before"]) > 0
                assert 3 < tensor["sqnr_db"] < 60
                assert tensor["edges"][0] <= tensor["seen"][0] <= tensor["seen"][1] <= tensor["edges"][1]
    maps = [one for part in report["parts"].values() for s in part["sites"] for one in s["tensors"] if "tau" in one]
    assert maps and all(one["tau"]["chosen"] == min(one["tau"]["curve"], key=lambda point: point[1])[0] for one in maps)
    assert sum(tag == "details" for tag, _ in page.tags) == sum(len(p["sites"]) for p in report["parts"].values())


def test_a_plan_is_looked_at_as_it_is(tiny_sam: Path, one_image: Path, nano: Path, tmp_path: Path) -> None:
    encoder = tiny_sam / "encoder.onnx"
    write_plans(tmp_path / "plan.json", samq_onnx.quantize(encoder, one_image, method="minmax", bits="w5a6").plans)
    report, _ = _analyzed(encoder, one_image, tmp_path, "--plan", tmp_path / "plan.json")
    by_method, _ = _analyzed(encoder, one_image, tmp_path, "--method", "minmax", "--bits", "w5a6")
    sites, again = (found["parts"]["model"]["sites"] for found in (report, by_method))
    assert {t["bits"] for site in sites for t in site["tensors"]} == {5, 6, 8}
    assert {s["site"]: pytest.approx(s["losses"]["all"]["error"], rel=1e-3) for s in sites} == {
        s["site"]: s["losses"]["all"]["error"] for s in again
    }
    words = [nano / "encoder.onnx", "--calib", one_image, "-o", tmp_path / "x.html", "--plan", tmp_path / "plan.json"]
    assert analyze.main([str(word) for word in words]) == 2
    assert not (tmp_path / "x.html").exists()


def _site(role: str, **facts: Any) -> dict[str, Any]:
    channels = {"after": _channels(-np.ones(4), np.ones(4))}
    tensor = {
        "role": role,
        "bits": 8,
        "crest": 4.0,
        "channels": channels,
        "bimodal": {"after": False},
        "largest_of_row": 0.2,
        **facts,
    }
    return {"losses": {"all": {"error": 1.0}, role: {"error": 1.0}}, "tensors": [tensor]}


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (_site("k", bimodal={"after": True}), "bimodal keys"),
        (_site("probabilities", largest_of_row=0.9), "sharp softmax"),
        (_site("probabilities", largest_of_row=0.001), "flat softmax"),
        (_site("v", crest=40.0), "heavy tail"),
        (_site("k", channels={"after": _channels(-np.ones(4), np.array([1.0, 1, 1, 9]))}), "outlier channels"),
        (_site("input"), "few bits"),
    ],
)
def test_causes_follow_from_what_was_seen(site: dict[str, Any], name: str) -> None:
    assert cause(site)[0] == name


def test_losses_have_grades() -> None:
    assert [grade(error) for error in (0.5, 0.05, 0.005, 0.0)] == [
        "collapses", "loses a lot", "loses a little", "keeps what the float model gives",
    ]  # fmt: skip
