# SPDX-License-Identifier: Apache-2.0
"""Groups of channels that are clustered anew while a unit is learned: exact at every step, and folded in the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from samq_onnx.calibrate.stream import run
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Ranges
from samq_onnx.passes.fold import NormReaders, fold_norm_affine
from samq_onnx.passes.graph import constant, held_constants
from samq_onnx.plan_file import plan_to_json
from samq_onnx.reconstruct import engine
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.clusters import clustered
from samq_onnx.reconstruct.drop import Dropped
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.regrouping import Regrouping, groupable, segments
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, find_units
from tests.reconstruct.test_engine import learned, losses_that_run, planned
from tests.reconstruct.test_pace import Memory

COUNTS = (12, 8, 6, 4)
RECIPE = Recipe(
    "module", (Phase(20_000, rounding=True, scales=True, drop=0.5, mix=0.5),), 40, groups=COUNTS, features="log"
)


def unequal(tiny_sam: Path, bits: str = "w4a4") -> Work:
    """A planned encoder whose norms give channels of unequal reach, which weights make good."""
    work = planned(tiny_sam, bits)
    random = np.random.default_rng(0)
    affine = {}
    for _, readers in _units(work):
        factor, offset = np.exp(random.normal(0, 1.5, readers.channels)), random.normal(size=readers.channels)
        affine[readers.norm.name] = 1 / factor, offset
    assert len(fold_norm_affine(work.lifted, affine).done) == 2
    work.exact = held_constants(work.model.graph)
    work.statistics.clear()
    work.run([Ranges("avg_minmax", "mse", "uniform")], work)
    return work


def _units(work: Work) -> list[tuple[Unit, NormReaders]]:
    found = [(unit, groupable(work.lifted, unit)) for unit in find_units(work.lifted, work.plan, "module")]
    return [(unit, readers) for unit, readers in found if readers is not None]


def test_segments_are_fifths_and_the_last_one_has_two_halves() -> None:
    assert segments(100, (32, 16, 8, 4)) == [(20, None), (20, 32), (20, 16), (20, 8), (10, 4), (10, None)]
    assert sum(steps for steps, _ in segments(7, (32, 16, 8, 4))) == 7


def test_clusters_are_means_of_what_is_alike() -> None:
    scale, point = np.array([1.0, 1.0, 4.0, 4.0]), np.array([3.0, 5.0, 9.0, 9.0])
    made = clustered(scale, point, 2, "plain")
    np.testing.assert_allclose(made, [[1, 1, 4, 4], [4, 4, 9, 9]])
    made = clustered(np.array([1.0, 4.0, 100.0]), np.array([2.0, 0.5, 50.0]), 2, "log")
    np.testing.assert_allclose(made[0], [2, 2, 100])
    np.testing.assert_allclose(made[1], [1, 1, 50])  # of scale times zero point, 2 for both
    assert clustered(scale, point, 4, "log") == (scale, point)


def test_groups_leave_the_function_what_it_is(tiny_sam: Path, tmp_path: Path) -> None:
    """With activations in float and weights of 8 bits: at the beginning, after a clustering, and folded."""
    work = unequal(tiny_sam, "w8a8")
    found = _units(work)
    assert {unit.kind.split()[0] for unit, _ in found} == {"attention", "MLP"}
    for unit, readers in found:
        floats = [ActivationCache(unit.tensors, tmp_path) for _ in range(2)]
        run(work.model, work.feeds, floats[:1], label="x")
        twins = Twins(rounds=True, wrap=lambda codes: Dropped(codes, 0.0), free=False)
        simulation = Simulation(work.lifted, work.plan, unit.outputs, unit.inputs, twins)
        x, expected = floats[0][0]

        def error(simulation: Simulation, x: torch.Tensor, expected: torch.Tensor) -> float:
            with torch.no_grad():
                (made,) = simulation({simulation.inputs[0]: x})
            return float((made - expected).norm() / expected.norm())

        assert error(simulation, x, expected) < 0.05  # weights of unequal channels are clipped
        groups = Regrouping(work.lifted, simulation, readers, [floats[0][n][0] for n in range(3)], "log")
        assert error(simulation, x, expected) < 5e-3
        with torch.no_grad():
            groups._grouped.log_factor += 0.2 * torch.randn(len(groups._grouped.log_factor))
        assert error(simulation, x, expected) < 5e-3
        groups.cluster(2)
        assert error(simulation, x, expected) < 5e-3 and len(groups._grouped.log_factor) == 2
        groups.fix()
        groups.fold()
        run(work.model, work.feeds, floats[1:], label="x")
        torch.testing.assert_close(floats[1][0][1], expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(floats[1][0][0], x)


@pytest.mark.slow
def test_what_is_learned_is_what_runs(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = unequal(tiny_sam)
    counts: list[int] = []
    cluster = Regrouping.cluster

    def counted(this: Regrouping, count: int) -> None:
        cluster(this, count)
        counts.append(len(this._grouped.log_factor))

    monkeypatch.setattr(Regrouping, "cluster", counted)
    norms = {readers.norm.name: constant(readers.norm.scale) for _, readers in _units(work)}
    before = losses_that_run(work)
    found = learned(work, RECIPE)
    assert [unit.after for unit in found[:2]] == pytest.approx(losses_that_run(work)[:2], rel=0.01)
    assert found[0].before == pytest.approx(before[0], rel=0.01)
    assert found[0].after < 0.5 * found[0].before
    assert len(counts) == 4 * len(norms) and all(count <= most for count, most in zip(counts, COUNTS * 2, strict=True))
    for norm in work.lifted.norms:
        if norm.name in norms:
            factors = norms[norm.name] / constant(norm.scale)
            assert len(np.unique(np.round(np.log(factors), 4))) <= COUNTS[-1]
    for linear in work.linears:
        weight, codes = constant(linear.weight), work.plan.linears[linear.name].weight
        np.testing.assert_array_equal(weight, codes.decode(codes.encode(weight, linear.out_axis), linear.out_axis))


def test_a_unit_that_is_known_brings_its_norm(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, recipe = Memory(), dataclasses.replace(RECIPE, iterations=10)

    def made() -> tuple[object, dict[str, bytes]]:
        work = unequal(tiny_sam)
        engine.reconstruct_units(
            work.lifted, work.plan, recipe, work.feeds, work.feeds, exact=work.exact, label="x", kept=kept
        )
        held = {name: one.numpy().tobytes() for name, one in held_constants(work.model.graph).items() if one}
        return plan_to_json(work.plan), held

    first = made()
    monkeypatch.setattr(engine._Stage, "_learn", None)  # not called again
    assert made() == first
