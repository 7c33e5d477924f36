# SPDX-License-Identifier: Apache-2.0
"""Units are found by topology, cover every quantized linear once, and compute what the graph computes."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx import assets
from samq_onnx.calibrate.stream import run
from samq_onnx.codes import LogCodes, UniformCodes, WeightCodes
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Select
from samq_onnx.models import load_model
from samq_onnx.passes.graph import constant
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.sampled import sampled
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import LEVELS, Unit, find_units
from tests.nets import build

KINDS = {
    ("encoder", "module"): ["attention (encoder window)", "MLP"] * 2 + ["attention (encoder global)", "MLP"],
    ("encoder", "block"): ["block"] * 6 + ["neck"],
    ("encoder", "stage"): ["stage", "stage", "neck"],
    ("decoder", "block"): ["two-way layer", "two-way layer", "attention (decoder final)"],
}


@functools.cache
def work_of(file: Path) -> Work:
    """A model before the first step behind the choice of linears."""
    model = load_model(file)
    part = identify(model, str(file))
    work = begin(Preparation(model, 8), part, [part.sample_feed()], Scheme(Widths(8, 8)), target="samq")
    work.run([Select()], work)
    work.plan.linears.update(dict.fromkeys([linear.name for linear in work.linears]))  # type: ignore[arg-type]
    work.plan.attentions.update(dict.fromkeys([site.name for site in work.lifted.attentions]))  # type: ignore[arg-type]
    return work


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_units_of_sam(part: str, level: str) -> None:
    work = work_of(assets.nano_dir() / f"{part}.onnx")
    units = find_units(work.lifted, work.plan, level)
    found = [unit.kind for unit in units]
    expected = KINDS.get((part, level), [])
    assert found[: len(expected)] == expected or found == expected
    linears = {linear.node for linear in work.linears}
    taken = [node for unit in units for node in unit.nodes if node in linears]
    assert len(taken) == len(linears) == len(set(taken))
    made: set[ir.Value] = set()  # by units before: what a unit reads depends on no later one
    later = [set(unit.nodes) & linears for unit in units]
    for number, unit in enumerate(units):
        pending, seen = [value.producer() for value in unit.inputs], set()
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending.extend(node.predecessors())
        assert not seen & set().union(*later[number:])
        made.update(unit.outputs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_units_without_codes_compute_what_the_graph_computes(
    part: str, level: str, tiny_sam: Path, tmp_path: Path
) -> None:
    work = work_of(tiny_sam / f"{part}.onnx")
    units = find_units(work.lifted, work.plan, level)
    caches = [ActivationCache(unit.tensors, tmp_path) for unit in units]
    run(work.model, work.feeds, caches, label="x")
    for unit, cache in zip(units, caches, strict=True):
        simulation = Simulation(work.lifted, QuantPlan(), unit.outputs, unit.inputs, Twins(free=False))
        assert simulation.inputs == list(unit.inputs) and not simulation.unknown
        count = len(unit.inputs)
        made = simulation(dict(zip(unit.inputs, cache[0][:count], strict=True)))
        for one, two in zip(made, cache[0][count:], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_rows_of_an_mlp_do_not_depend_on_each_other_and_those_of_an_attention_do() -> None:
    work = work_of(assets.nano_dir() / "encoder.onnx")
    units = find_units(work.lifted, work.plan, "module")
    assert [unit.rowwise for unit in units] == [False, True] * 6 + [False]
    assert units[1].work == 2 * 32 * 32 * 192 * 768
    assert units[0].work > 4 * 32 * 32 * 192 * 192


@pytest.mark.parametrize(("level", "number"), [("module", 0), ("module", 4), ("block", 0), ("block", 2)])
def test_few_windows_and_few_queries_are_what_they_are_among_all(level: str, number: int, tmp_path: Path) -> None:
    """Of a windowed attention whose windows are padded, and of a global one, alone and with the rest of a block."""
    work = work_of(assets.nano_dir() / "encoder.onnx")
    unit = find_units(work.lifted, work.plan, level)[number]
    cache = ActivationCache(unit.tensors, tmp_path)
    run(work.model, work.feeds, [cache], label="x")
    inside = set(unit.nodes)
    plan = QuantPlan()
    for linear in work.linears:
        if linear.node in inside:
            x = UniformCodes.of_range(-3, 3, 8)
            scales = np.abs(constant(linear.weight)).max(axis=1 - linear.out_axis) / 127
            plan.linears[linear.name] = LinearPlan(x, WeightCodes(tuple(scales.tolist()), 8))
    for site in work.lifted.attentions:
        codes = UniformCodes.of_range(-6, 6, 8)
        plan.attentions[site.name] = AttentionPlan(codes, codes, codes, LogCodes(1.0, 4, 8))
    simulation = Simulation(work.lifted, plan, unit.outputs, unit.inputs, Twins(free=False))
    few = sampled(work.lifted, simulation, unit)
    assert few is not None
    x = cache[0][0]
    with torch.no_grad():
        whole = simulation({unit.inputs[0]: x})[0].flatten(0, -2)
        for rows in (100, 300):
            choice = few.draw(np.random.default_rng(0), rows)
            assert choice is not None and 0.3 * rows < len(choice.rows) <= rows
            assert len(choice.tokens) <= 300 or number > 0
            made = few(x.flatten(0, -2)[choice.tokens][None], choice)[0]
            torch.testing.assert_close(made, whole[choice.rows], rtol=1e-3, atol=1e-3)
    assert few.draw(np.random.default_rng(0), 10_000) is None


@pytest.mark.parametrize("net", ["convolutional", "transformer_mlp"])
def test_networks_without_attention_have_units_too(net: str) -> None:
    work = _of_proto(net)
    for level in LEVELS:
        units: list[Unit] = find_units(work.lifted, work.plan, level)
        inside = [node for unit in units for node in unit.nodes]
        assert {linear.node for linear in work.linears} <= set(inside) and len(inside) == len(set(inside))


def _of_proto(net: str) -> Work:
    model = ir.from_proto(build(net))
    part = identify(model, net)
    work = begin(Preparation(model, 8), part, [part.sample_feed()], Scheme(Widths(8, 8)), target="samq")
    work.run([Select()], work)
    work.plan.linears.update(dict.fromkeys([linear.name for linear in work.linears]))  # type: ignore[arg-type]
    return work


def test_equal_activations_are_kept_once_and_on_disk_where_memory_ends(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    cache = ActivationCache(["a", "b"], tmp_path, memory=array.nbytes)
    cache.update(array, array + 1)
    cache.update(array, array + 2)
    assert len(list(tmp_path.iterdir())) == 2  # of four, one is in memory, twice
    for index in range(2):
        assert [one.tolist() for one in cache[index]] == [array.tolist(), (array + 1 + index).tolist()]
    cache.clear()
    assert not len(cache) and not list(tmp_path.iterdir())
