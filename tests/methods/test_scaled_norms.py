# SPDX-License-Identifier: Apache-2.0
"""Methods that scale norms: an encoder computes what it did, a decoder is left alone and says why; both run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import samq_onnx
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths, configured
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import ScaleNorms
from samq_onnx.models import load_model
from samq_onnx.passes.graph import constant
from samq_onnx.pipeline import Preparation, begin
from tests.conftest import Feed, relative_error, run_model
from tests.fuzz.tiny import SIDE

STEPS = {
    "smoothquant": "smoothing",
    "repq-vit": "scale reparametrisation",
    "os-plus": "outlier suppression",
    "pq-sam": "grouped channels",
}
EXACT = 1e-5  # relative; float rounding only
CLOSE = {"smoothquant": 0.12, "repq-vit": 0.25, "os-plus": 0.05, "pq-sam": 0.08}  # relative, at W8A8


def _feeds() -> list[Feed]:
    random = np.random.default_rng(0)
    return [{"image": random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(2)]


@pytest.fixture(scope="module")
def uneven_sam(tiny_sam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SAM, in whose encoder's norms channels stand out."""
    folder, random = tmp_path_factory.mktemp("uneven"), np.random.default_rng(1)
    model = onnx.load(tiny_sam / "encoder.onnx")
    held = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            weight = onnx.numpy_helper.to_array(held[node.input[1]])
            spread = np.exp(random.normal(size=weight.shape)).astype(np.float32)
            held[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(weight * spread, node.input[1]))
    onnx.save(model, folder / "encoder.onnx")
    shutil.copy(tiny_sam / "decoder.onnx", folder)
    return folder


def _step(method: str, model_role: object) -> ScaleNorms:
    steps = configured(method).steps(model_role, Scheme(Widths(4, 4)))  # type: ignore[arg-type]
    (step,) = [step for step in steps if isinstance(step, ScaleNorms)]
    return step


@pytest.mark.parametrize("method", STEPS)
def test_an_encoder_computes_what_it_did_and_channels_are_more_alike(method: str, uneven_sam: Path) -> None:
    model, feeds = load_model(uneven_sam / "encoder.onnx"), _feeds()
    part = identify(model, "encoder")
    prepared = Preparation(model, 8)
    expected = run_model(model, feeds[0])
    work = begin(prepared, part, feeds, Scheme(Widths(4, 4)), target="samq")
    work.linears = prepared.lifted.linears
    before = _spread(work)
    work.run([_step(method, part)], work)
    (report,) = [report for report in work.reports if report.name == STEPS[method]]
    assert len(report.done) == 2 and not report.refused
    assert relative_error(expected, run_model(model, feeds[0])) < EXACT
    assert _spread(work) < 0.85 * before


def _spread(work: Work) -> float:
    """How much the weights of norms differ between channels, on a log scale."""
    return float(np.mean([np.log(np.abs(constant(norm.scale)) + 1e-9).std() for norm in work.lifted.norms]))


@pytest.mark.parametrize("method", STEPS)
def test_both_parts_run_quantized_and_a_decoder_says_why_it_is_left_alone(
    method: str, uneven_sam: Path, one_image: Path
) -> None:
    parts = samq_onnx.quantize(uneven_sam, one_image, method=method).parts
    for name, part in parts.items():
        assert part.sample is not None
        expected = run_model(uneven_sam / f"{name}.onnx", part.sample)
        assert relative_error(expected, run_model(part.model, part.sample)) < CLOSE[method]
        (report,) = [report for report in part.reports if report.name == STEPS[method]]
        if name == "encoder":
            assert len(report.done) == 2 and not report.refused
        else:
            assert not report.done and all(line.endswith("reads it too") for line in report.refused)
            assert len(report.refused) >= 2
