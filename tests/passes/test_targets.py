# SPDX-License-Identifier: Apache-2.0
"""Targets compute the same from one plan; qdq needs standard operators alone, and its products run in integers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samq_onnx import ops
from samq_onnx.codes import RowCodes
from samq_onnx.errors import UserError
from samq_onnx.evaluate import overlap
from samq_onnx.fusion import fusion_report
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.verify import sqnr
from tests.conftest import Feed, run_model
from tests.passes.plans import Lowered, planned, quantized
from tests.passes.test_unusual import END, PLAIN, attention, feed_of

PARTS = ["encoder", "decoder"]
MASK_BOUND = 0.99  # mean IoU, of one embedding; an encoder answers one grey level of one pixel with more
SITE_BOUND = 45.0  # dB between targets of what one quantized site makes of float activations
INTEGER_SHARE = {"encoder": 0.95, "decoder": 0.75}  # of all MACs; the first and last layers stay float


@pytest.fixture(scope="module")
def lowered(nano: Path, encoder_feed: Feed, decoder_feed: Feed) -> dict[tuple[str, str], Lowered]:
    """SAM-Nano at W8A8 for both targets."""
    feeds = {"encoder": encoder_feed, "decoder": decoder_feed}
    return {
        (target, part): quantized(nano / f"{part}.onnx", [feeds[part]], target)
        for target in ("samq", "qdq")
        for part in PARTS
    }


@pytest.mark.parametrize("part", PARTS)
def test_qdq_is_standard_and_runs_in_integers(lowered, part: str, tmp_path: Path, request) -> None:  # type: ignore[no-untyped-def]
    model = lowered["qdq", part].model
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in model.graph.all_nodes()} == {""} and not model.functions
    feed = request.getfixturevalue(f"{part}_feed")
    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert all(np.isfinite(value).all() for value in plain.run(None, dict(feed)))
    assert fusion_report(path, feed).integer_share > INTEGER_SHARE[part]
    assert not lowered["qdq", part].refused


def test_masks_of_both_targets_agree(lowered, decoder_feed: Feed) -> None:  # type: ignore[no-untyped-def]
    found = []
    for place in np.linspace(60, 450, 9, dtype=np.float32):
        points = np.array([[[place, 510 - place], [0, 0]]], np.float32)
        feed = {**decoder_feed, "point_coords": points}
        one, two = (run_model(lowered[target, "decoder"].model, feed)[0][0] > 0 for target in ("samq", "qdq"))
        assert one.any()
        found += [overlap(a, b)[0] for a, b in zip(one, two, strict=True)]
    assert np.mean(found) >= MASK_BOUND


@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_site_of_the_encoder_is_the_same_in_both(nano: Path, encoder_feed: Feed, index: int) -> None:
    """Quantized alone, before codes that fall to the other side make the next ones do so too."""
    found = []
    for target in ("samq", "qdq"):
        lifted, plan = planned(nano / "encoder.onnx", [encoder_feed])
        site = lifted.attentions[index]
        assert site.q is not None
        plan.attentions = {site.name: plan.attentions[site.name]}
        plan.linears = {site.q.linear.name: plan.linears[site.q.linear.name]}
        TARGETS[target].lower(lifted, plan)
        found.append(run_model(lifted.model, encoder_feed)[0])
    assert sqnr(*found) > SITE_BOUND


@pytest.mark.parametrize("target", ["samq", "qdq"])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_no_number_reaches_the_outputs(lowered, target: str, part: str, request) -> None:  # type: ignore[no-untyped-def]
    feed = {name: value.copy() for name, value in request.getfixturevalue(f"{part}_feed").items()}
    next(iter(feed.values())).flat[7] = np.nan
    assert all(np.isnan(value).any() for value in run_model(lowered[target, part].model, feed))


@pytest.mark.parametrize("bits", [4, 6])
def test_qdq_of_few_bits_is_near_samq(nano: Path, decoder_feed: Feed, bits: int) -> None:
    one, two = (
        run_model(quantized(nano / "decoder.onnx", [decoder_feed], target, bits).model, decoder_feed)
        for target in ("samq", "qdq")
    )
    assert all(sqnr(a, b) > 20 for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("target", ["samq", "qdq"])
def test_operands_of_several_widths(tmp_path: Path, target: str) -> None:
    path = attention(tmp_path, f"{PLAIN} {END}")
    feed = feed_of(path)
    expected = run_model(path, feed)[0]
    lifted, plan = planned(path, [feed])
    ((name, site),) = plan.attentions.items()
    k = dataclasses.replace(site.k, bits=6, scale=site.k.scale * 4.1, zero_point=site.k.zero_point // 4)
    plan.attentions[name] = dataclasses.replace(site, k=k)
    TARGETS[target].lower(lifted, plan)
    assert sqnr(expected, run_model(lifted.model, feed)[0]) > 20


def test_operands_of_several_widths_are_told(nano: Path, encoder_feed: Feed) -> None:
    lifted, plan = planned(nano / "encoder.onnx", [encoder_feed])
    name, site = next(iter(plan.attentions.items()))
    k = dataclasses.replace(site.k, bits=7, scale=site.k.scale * 2.1, zero_point=site.k.zero_point // 2)
    plan.attentions[name] = dataclasses.replace(site, k=k)
    before = run_model(lifted.model, encoder_feed)
    linear = lifted.attentions[0].q.linear  # type: ignore[union-attr]
    refused = [line for report in TARGETS["samq"].lower(lifted, plan) for line in report.refused]
    assert refused == [
        f"codes for attention at {linear.name}: q, k, v quantized apart from their linear: "
        "their codes have different widths"
    ]
    assert sqnr(before[0], run_model(lifted.model, encoder_feed)[0]) > 15


def test_codes_that_a_target_does_not_take_are_refused(tmp_path: Path) -> None:
    path = attention(tmp_path, f"{PLAIN} {END}")
    lifted, plan = planned(path, [feed_of(path)])
    ((name, site),) = plan.attentions.items()
    plan.attentions[name] = dataclasses.replace(site, probabilities=RowCodes(2, 8))
    with pytest.raises(UserError, match="target qdq takes no post-softmax codes of the kind row"):
        TARGETS["qdq"].lower(lifted, plan)


@pytest.mark.parametrize("part", PARTS)
def test_attention_that_stays_float_is_standard_too(nano: Path, part: str, request) -> None:  # type: ignore[no-untyped-def]
    feed = request.getfixturevalue(f"{part}_feed")
    lifted, plan = planned(nano / f"{part}.onnx", [feed])
    expected = run_model(lifted.model, feed)
    plan.attentions.clear()
    plan.linears.clear()
    TARGETS["qdq"].lower(lifted, plan)
    TARGETS["qdq"].check(lifted.model)
    assert all(sqnr(a, b) > 80 for a, b in zip(expected, run_model(lifted.model, feed), strict=True))


def test_checks_find_what_must_not_be_there(lowered) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no standard operator"):
        TARGETS["qdq"].check(lowered["samq", "encoder"].model)
    model = lowered["samq", "decoder"].model.clone()
    model.functions.clear()
    with pytest.raises(ValueError, match="no function body"):
        TARGETS["samq"].check(model)
    assert ops.DOMAIN in lowered["samq", "decoder"].model.opset_imports
