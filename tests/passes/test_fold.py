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
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model

EXACT = 1e-5  # relative; float rounding only
PARTS = ["encoder", "decoder"]


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, nano: Path) -> tuple[ir.Model, Lifted, Feed, list[np.ndarray]]:
    """A lifted model, its structure, an input and its outputs before any fold."""
    path = nano / f"{request.param}.onnx"
    feed = request.getfixturevalue(f"{request.param}_feed")
    model = load_model(path)
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    return model, structure, feed, run_model(model, feed)


def _random_means(structure: Lifted) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {site.name: random.normal(0, 0.5, (site.heads, site.head_dim)) for site in structure.attentions}


def test_attention_scale(part) -> None:  # type: ignore[no-untyped-def]
    model, structure, feed, expected = part
    report = fold_attention_scale(structure)
    assert len(report.done) == len(structure.attentions) and not report.refused
    assert all(site.scale == 1.0 for site in structure.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT
    assert not fold_attention_scale(structure).done


def test_key_centring_accepts_any_offset(part) -> None:  # type: ignore[no-untyped-def]
    model, structure, feed, expected = part
    report = fold_key_centre(structure, _random_means(structure))
    assert len(report.done) == len(structure.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_signs(part) -> None:  # type: ignore[no-untyped-def]
    model, structure, feed, expected = part
    before = {site.name: constant(site.k.linear.weight).copy() for site in structure.attentions}
    means = _random_means(structure)
    report = fold_sign(structure, means, dict.fromkeys(means, True))
    assert len(report.done) == len(structure.attentions)
    assert any((constant(site.k.linear.weight) != before[site.name]).any() for site in structure.attentions)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_signs_leave_unimodal_keys_alone(part) -> None:  # type: ignore[no-untyped-def]
    _, structure, _, _ = part
    means = _random_means(structure)
    assert not fold_sign(structure, means, dict.fromkeys(means, False)).done


def test_all_folds_in_sequence(part) -> None:  # type: ignore[no-untyped-def]
    model, structure, feed, expected = part
    means = _random_means(structure)
    fold_attention_scale(structure)
    fold_sign(structure, means, dict.fromkeys(means, True))
    fold_key_centre(structure, means)
    assert relative_error(expected, run_model(model, feed)) < EXACT


def test_shared_projection_is_refused(part) -> None:  # type: ignore[no-untyped-def]
    model, structure, feed, expected = part
    site = structure.attentions[0]
    leak = ir.node("Abs", [site.q.linear.output])
    model.graph.append(leak)
    report = fold_attention_scale(structure)
    assert site.name not in report.done
    assert any(site.name in line and "more than attention" in line for line in report.refused)
    assert relative_error(expected, run_model(model, feed)) < EXACT


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
