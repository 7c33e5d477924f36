# SPDX-License-Identifier: Apache-2.0
"""The default method on a small SAM with what makes large ones hard to quantize planted in it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx import assets
from samq_onnx.api import Result
from samq_onnx.data import Calibration
from samq_onnx.families import identify
from samq_onnx.methods import Widths, auto, configured
from samq_onnx.methods.steps import BestCodes, KeepBetter, LearnUnits, Spare
from samq_onnx.models import load_model
from samq_onnx.plan_file import read_plans, write_plans
from tests.conftest import relative_error, run_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BITS = "w6a6"


@pytest.fixture(scope="module")
def hard_sam(tiny_sam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard") / "sam"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        importlib.import_module("pathology").plant(tiny_sam, folder)
    return folder


@pytest.fixture(scope="module")
def result(hard_sam: Path, calibration: Path) -> Result:
    """By the default method."""
    return samq_onnx.quantize(hard_sam, calibration, bits=BITS)


def _error(hard_sam: Path, model: ir.Model) -> float:
    """Of the embedding, on images that were not calibrated on."""
    path = hard_sam / "encoder.onnx"
    feeds = identify(load_model(path), "encoder").feeds(Calibration(assets.demo_images()), None, "encoder")
    return max(relative_error(run_model(path, feeds[index]), run_model(model, feeds[index])) for index in (0, 1))


def test_outliers_cost_it_little(hard_sam: Path, calibration: Path, result: Result) -> None:
    plain = samq_onnx.quantize(hard_sam / "encoder.onnx", calibration, method="omse", bits=BITS)
    assert _error(hard_sam, result.parts["encoder"].model) < 0.25 * _error(hard_sam, plain.model)


def test_reports_say_what_each_choice_was_worth(result: Result) -> None:
    for name, part in result.parts.items():
        reports = {report.name: report for report in part.reports}
        folds = reports["folds"]
        assert {"as it is", "balanced operands"} <= set(folds.facts)
        assert folds.done == [min(folds.facts, key=lambda one: folds.facts[one])]
        assert ("rotated" in folds.facts) == (name == "encoder")
        assert "share of products in float" in reports[Spare.name].facts
        assert all(folds.facts.values())
    encoder, decoder = ({report.name: report for report in part.reports} for part in result.parts.values())
    assert "rotated" in encoder["folds"].done[0] and encoder["rotation of the stream"].done
    sites = decoder[BestCodes.name]
    counts = [value for name, value in sites.facts.items() if name.startswith("sites with")]
    assert sum(counts) == len(sites.done) > 20


def test_its_plan_replays_byte_for_byte(hard_sam: Path, result: Result, tmp_path: Path) -> None:
    write_plans(tmp_path / "plan.json", result.plans)
    again = samq_onnx.lower(hard_sam, read_plans(tmp_path / "plan.json"))
    for name, part in result.parts.items():
        one, two = (
            ir.to_proto(made).SerializeToString(deterministic=True) for made in (part.model, again.parts[name].model)
        )
        assert one == two


def test_a_strict_scheme_gets_its_widths(hard_sam: Path, calibration: Path) -> None:
    encoder = hard_sam / "encoder.onnx"
    plan = samq_onnx.quantize(encoder, calibration, bits=BITS, strict=True).plan
    found = identify(load_model(encoder), "encoder")
    widths = Widths.parse(BITS)
    kept = [name for name, reason in plan.kept_float.items() if "costs" in reason]
    assert not kept and len(plan.attentions) == 1
    for codes in plan.linears.values():
        assert (codes.weight.bits, codes.input.bits) == (widths.weight, widths.activation)
        assert codes.output is None or codes.output.bits == widths.activation
    assert configured("auto").widths(found, widths) == widths


@pytest.mark.slow
def test_given_minutes_it_keeps_the_best_of_learning_and_not(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = LearnUnits(dataclasses.replace(auto.UNITS, iterations=10))
    monkeypatch.setattr(auto, "LEARN", KeepBetter({"learned by units": [short]}))
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(4)]
    parts = samq_onnx.quantize(tiny_sam, images, bits="w4a4", minutes=60, settings={"decoder_float": "0"}).parts
    for name, part in parts.items():
        learning = next(report for report in part.reports if report.name == "learning")
        way = "learned by units" if name == "encoder" else "learned as a whole"
        assert set(learning.facts) == {"as it is", way}
        assert learning.done in (["as it is"], [min(learning.facts, key=lambda one: learning.facts[one])])
