# SPDX-License-Identifier: Apache-2.0
"""Scales of an attention's operands go into the linears around it, and the float function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.models import load_model
from samq_onnx.passes.fold import balanced, fold_key_scale, fold_value_scale
from samq_onnx.passes.graph import tap
from samq_onnx.passes.lift import AttentionSite, Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model

EXACT = 1e-5  # relative; float rounding only


@pytest.fixture(params=["encoder", "decoder"])
def part(request: pytest.FixtureRequest, nano: Path) -> tuple[ir.Model, Lifted, Feed]:
    model = load_model(nano / f"{request.param}.onnx")
    simplify(model)
    lifted = lift(model)
    ops.add_functions(model)
    return model, lifted, request.getfixturevalue(f"{request.param}_feed")


def _scale(site: AttentionSite, seed: int = 0) -> np.ndarray:
    """Of each head, or of all where they share tables; some channels a hundred times the others."""
    random = np.random.default_rng(seed)
    scale = np.exp(2 * random.normal(size=(site.heads, site.head_dim)))
    return np.broadcast_to(scale[:1], scale.shape) if site.tables else scale


def _operands(model: ir.Model, site: AttentionSite, feed: Feed) -> list[np.ndarray]:
    """q, k and v."""
    tapped = model.clone()
    tapped.graph.outputs.clear()
    tap(tapped, site.operand_names)
    return run_model(tapped, feed)


def _grown(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how much each channel of each head grew, [heads, head_dim]."""
    norms = [np.sqrt(np.square(x.astype(np.float64)).sum(axis=-2)) for x in (before, after)]
    return (norms[1] / norms[0]).reshape(-1, *norms[0].shape[-2:])[0]


def test_keys(part: tuple[ir.Model, Lifted, Feed]) -> None:
    model, lifted, feed = part
    site = lifted.attentions[-1]
    expected, before = run_model(model, feed), _operands(model, site, feed)
    scales = {one.name: _scale(one, seed) for seed, one in enumerate(lifted.attentions)}
    report = fold_key_scale(lifted, scales)
    assert report.done == list(scales) and not report.refused
    assert relative_error(expected, run_model(model, feed)) < EXACT
    q, k, v = (_grown(one, two) for one, two in zip(before, _operands(model, site, feed), strict=True))
    np.testing.assert_allclose(q[: site.heads], scales[site.name][: len(q)], rtol=1e-3)
    np.testing.assert_allclose(k[: site.heads], 1 / scales[site.name][: len(k)], rtol=1e-3)
    np.testing.assert_allclose(v, 1, rtol=1e-3)


def test_values(part: tuple[ir.Model, Lifted, Feed]) -> None:
    model, lifted, feed = part
    site = lifted.attentions[-1]
    expected, before = run_model(model, feed), _operands(model, site, feed)
    random = np.random.default_rng(0)
    scales = {one.name: np.exp(2 * random.normal(size=(one.heads, one.head_dim))) for one in lifted.attentions}
    report = fold_value_scale(lifted, scales)
    assert report.done == list(scales) and not report.refused
    assert relative_error(expected, run_model(model, feed)) < EXACT
    q, k, v = (_grown(one, two) for one, two in zip(before, _operands(model, site, feed), strict=True))
    np.testing.assert_allclose(v, scales[site.name][: len(v)], rtol=1e-3)
    np.testing.assert_allclose([q, k], 1, rtol=1e-3)


def test_sites_that_are_not_named_stay(part: tuple[ir.Model, Lifted, Feed]) -> None:
    model, lifted, _ = part
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    for fold in (fold_key_scale, fold_value_scale):
        report = fold(lifted, {})
        assert not report.done and not report.refused
    assert all(value.const_value is held[name] for name, value in model.graph.initializers.items())


def test_what_others_see_is_left_alone(part: tuple[ir.Model, Lifted, Feed]) -> None:
    model, lifted, feed = part
    first, second = lifted.attentions[:2]
    assert first.q and first.v and second.out
    for value in (first.q.linear.output, second.out.linear.weight):
        model.graph.append(ir.node("Abs", [value]))
    expected = run_model(model, feed)
    scales = {site.name: _scale(site) for site in lifted.attentions}
    keys, values = fold_key_scale(lifted, scales), fold_value_scale(lifted, scales)
    assert first.name not in keys.done and second.name not in values.done
    assert any(f"{first.name}: the output of the linear that makes q is read" in line for line in keys.refused)
    assert any(f"{second.name}: {second.out.linear.weight.name} is shared" in line for line in values.refused)
    assert second.name in keys.done
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize("shared", [True, False])
def test_tables_of_all_heads(shared: bool, nano: Path, encoder_feed: Feed) -> None:
    """Scales that differ between heads, or tables that another node reads too."""
    model = load_model(nano / "encoder.onnx")
    simplify(model)
    lifted = lift(model)
    ops.add_functions(model)
    site = lifted.attentions[0]
    assert site.tables is not None
    scale = _scale(site).copy()
    if shared:
        model.graph.append(ir.node("Abs", [site.tables[1]]))
    else:
        scale[1, 0] *= 2
    expected = run_model(model, encoder_feed)
    report = fold_key_scale(lifted, {site.name: scale})
    reason = "tables are shared with another node" if shared else "share the relative position tables, and their scales"
    assert not report.done and reason in report.refused[0]
    assert fold_value_scale(lifted, {site.name: scale}).done  # which read no tables
    assert relative_error(expected, run_model(model, encoder_feed)) < EXACT


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_scale(wrong: float, part: tuple[ir.Model, Lifted, Feed]) -> None:
    _, lifted, _ = part
    site = lifted.attentions[0]
    scale = _scale(site).copy()
    scale[0, 0] = wrong
    for fold in (fold_key_scale, fold_value_scale):
        with pytest.raises(ValueError, match="above 0"):
            fold(lifted, {site.name: scale})


def test_balanced_channels_are_alike() -> None:
    random = np.random.default_rng(0)
    ours, theirs = np.exp(random.normal(size=(2, 3, 8)))
    factor = balanced(ours, theirs)
    assert np.exp(np.log(factor).mean()) == pytest.approx(1)
    ratio = ours * factor / (theirs / factor)
    np.testing.assert_allclose(ratio, ratio[0, 0])
    np.testing.assert_allclose(ours * factor * (theirs / factor), ours * theirs)


def test_balanced_for_all_heads() -> None:
    random = np.random.default_rng(0)
    ours, theirs = np.exp(random.normal(size=(2, 3, 8)))
    factor = balanced(ours, theirs, shared=True)
    np.testing.assert_array_equal(factor, np.broadcast_to(factor[:1], factor.shape))
    ratio = ours.max(axis=0) * factor[0] / (theirs.max(axis=0) / factor[0])
    np.testing.assert_allclose(ratio, ratio[0])


@pytest.mark.parametrize("empty", ["ours", "theirs", "both"])
def test_balanced_channels_that_are_always_zero(empty: str) -> None:
    ours, theirs = np.ones((2, 4)), np.ones((2, 4))
    for name, array in (("ours", ours), ("theirs", theirs)):
        if empty in (name, "both"):
            array[0, 1] = 0
    for one, two in ((ours, theirs), (np.zeros((2, 4)), np.zeros((2, 4)))):
        factor = balanced(one, two)
        assert np.isfinite(factor).all() and (factor > 0).all()
