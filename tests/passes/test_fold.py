# SPDX-License-Identifier: Apache-2.0
"""Every fold leaves the float function as it is, on real activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.models import load_model
from samq_onnx.passes.fold import fold_attention_scale, fold_key_centre, fold_sign, is_bimodal
from samq_onnx.passes.fold.edit import shift_outputs
from samq_onnx.passes.graph import constant, tap
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model

EXACT = 1e-5  # relative; float rounding only
PARTS = ["encoder", "decoder"]


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, nano: Path) -> tuple[ir.Model, Lifted, Feed, list[np.ndarray]]:
    """A lifted model, its lifted, an input and its outputs before any fold."""
    path = nano / f"{request.param}.onnx"
    feed = request.getfixturevalue(f"{request.param}_feed")
    model = load_model(path)
    simplify(model)
    lifted = lift(model)
    ops.add_functions(model)
    return model, lifted, feed, run_model(model, feed)


def _random_means(lifted: Lifted) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {site.name: random.normal(0, 0.5, (site.heads, site.head_dim)) for site in lifted.attentions}


def test_attention_scale(part) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    report = fold_attention_scale(lifted)
    assert len(report.done) == len(lifted.attentions) and not report.refused
    assert all(site.scale == 1.0 for site in lifted.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT
    assert not fold_attention_scale(lifted).done


def test_key_centring_accepts_any_offset(part) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    report = fold_key_centre(lifted, _random_means(lifted))
    assert len(report.done) == len(lifted.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_signs(part) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    before = {site.name: constant(site.k.linear.weight).copy() for site in lifted.attentions}
    means = _random_means(lifted)
    report = fold_sign(lifted, means, dict.fromkeys(means, True))
    assert len(report.done) == len(lifted.attentions)
    assert any((constant(site.k.linear.weight) != before[site.name]).any() for site in lifted.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_signs_leave_unimodal_keys_alone(part) -> None:  # type: ignore[no-untyped-def]
    _, lifted, _, _ = part
    means = _random_means(lifted)
    assert not fold_sign(lifted, means, dict.fromkeys(means, False)).done


def test_all_folds_in_sequence(part) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    means = _random_means(lifted)
    fold_attention_scale(lifted)
    fold_sign(lifted, means, dict.fromkeys(means, True))
    fold_key_centre(lifted, means)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_shared_projection_is_refused(part) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    site = lifted.attentions[0]
    leak = ir.node("Abs", [site.q.linear.output])
    model.graph.append(leak)
    report = fold_attention_scale(lifted)
    assert site.name not in report.done
    assert any(site.name in line and "more than attention" in line for line in report.refused)
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize("centred", [True, False])
def test_keys_on_either_side_of_zero_are_centred_or_else_flipped(part, centred: bool) -> None:  # type: ignore[no-untyped-def]
    model, lifted, feed, expected = part
    random, planted = np.random.default_rng(0), {}
    for site in lifted.attentions:
        planted[site.name] = np.where(random.random(site.k.channels.shape) < 0.46, 8.0, -8.0)
        shift_outputs(site.k.linear, site.k.channels, planted[site.name])
    before = _bimodal(lifted, feed)
    report = fold_key_centre(lifted, planted) if centred else fold_sign(lifted, planted, before)
    encoder = [site.name for site in lifted.attentions if site.tables]
    assert all(before[name] for name in encoder) and set(report.done) >= set(encoder)
    if centred:
        assert not any(_bimodal(lifted, feed)[name] for name in encoder)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def _bimodal(lifted: Lifted, feed: Feed) -> dict[str, bool]:
    """Whether the keys of each site have two peaks."""
    model, names = lifted.model.clone(), {site.name: site.node.inputs[1].name for site in lifted.attentions}
    model.graph.outputs.clear()
    tap(model, names.values())
    return {name: is_bimodal(keys) for name, keys in zip(names, run_model(model, feed), strict=True)}


@pytest.mark.parametrize("spread", [1.0, 2.0, 3.0, 4.0, 5.0])
def test_two_peaks_are_found(spread: float) -> None:
    random = np.random.default_rng(1)
    keys = np.where(random.random(40_000) < 0.461, 8.0, -8.0) + spread * random.normal(size=40_000)
    assert is_bimodal(keys)


def test_outliers_do_not_hide_two_peaks() -> None:
    random = np.random.default_rng(1)
    keys = np.where(random.random(40_000) < 0.461, 8.0, -8.0) + 2 * random.normal(size=40_000)
    keys[:10] = 100.0
    assert is_bimodal(keys)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "trimodal", "one_sided"])
def test_other_shapes_are_not_bimodal(name: str) -> None:
    random = np.random.default_rng(2)
    size = 40_000
    keys = {
        "normal": random.normal(size=size),
        "laplace": random.laplace(size=size),
        "uniform": random.uniform(-1, 1, size),
        "trimodal": random.choice([-8.0, 0.0, 8.0], size) + random.normal(size=size),
        "one_sided": np.where(random.random(size) < 0.05, 8.0, -8.0) + random.normal(size=size),
    }[name]
    assert not is_bimodal(keys)
