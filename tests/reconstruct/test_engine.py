# SPDX-License-Identifier: Apache-2.0
"""Units are learned one after the other: what the engine says of them is what the model that runs does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx.calibrate.blocks import extract
from samq_onnx.calibrate.stream import open_block
from samq_onnx.calibrate.two_streams import quantized_copy
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Gptq, GptqSettings, Ranges, Reconstruct, Select
from samq_onnx.models import load_model
from samq_onnx.passes.graph import constant, held_constants
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.plan_file import plan_to_json
from samq_onnx.reconstruct import engine, trainer
from samq_onnx.reconstruct.drop import Dropped
from samq_onnx.reconstruct.effort import Effort
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.reconstruction import UnitLoss
from samq_onnx.reconstruct.rounding import AdaRoundWeight
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.reconstruct.torch_ops import OPERATORS
from samq_onnx.reconstruct.units import find_units

Feed = Mapping[str, np.ndarray]
RECIPE = Recipe("module", (Phase(20_000, rounding=True, scales=True, drop=0.5, mix=0.5),), 25)


def planned(tiny_sam: Path, bits: str = "w4a4", images: int = 3) -> Work:
    model = load_model(tiny_sam / "encoder.onnx")
    part = identify(model, "the model")
    (port,) = part.signature.inputs
    random = np.random.default_rng(0)
    feeds = [{port.name: random.standard_normal(port.shape).astype(np.float32)} for _ in range(images)]  # type: ignore
    prepared = Preparation(model, 4)
    work = begin(prepared, part, feeds, Scheme(Widths.parse(bits)), target="samq", label="encoder")
    work.run([Select(), Ranges("avg_minmax", "mse", "uniform")], work)
    return work


def learned(work: Work, recipe: Recipe = RECIPE) -> list[UnitLoss]:
    return engine.reconstruct_units(
        work.lifted, work.plan, recipe, work.feeds, work.feeds, exact=work.exact, label="encoder"
    )


def losses_that_run(work: Work, recipe: Recipe = RECIPE) -> list[float]:
    """Of each unit, in the quantized model as ONNX Runtime runs it."""
    found = []
    floats = work.model.clone()
    for name, held in work.exact.items():
        floats.graph.initializers[name].const_value = held
    for unit in find_units(work.lifted, work.plan, recipe.level):
        names = [value.name or "" for value in unit.outputs]
        inputs = [value.name or "" for value in work.model.graph.inputs]
        exact, rounded = (extract(model, inputs, names) for model in (floats, work.model))
        quantized = quantized_copy(rounded, work.plan, held_constants(work.model.graph))
        sessions = open_block(exact), open_block(quantized)
        errors = []
        for feed in work.feeds:
            one, two = (session.run(names, dict(feed)) for session in sessions)
            errors.append(sum(float(np.square(a - b).mean()) * a.shape[1] for a, b in zip(one, two, strict=True)))
        found.append(float(np.mean(errors)))
    return found


def first_layer_alone(simulation: Simulation) -> None:
    """What PTQ4SAM's code does: the layers behind the first keep weights between their codes."""
    harden(simulation)
    for weight in list(simulation.kinds(AdaRoundWeight))[1:]:
        weight.hard = False


def drops_stay(simulation: Simulation) -> None:
    """What PTQ4SAM's code does: what linears read stays half float."""
    harden(simulation)
    for codes in simulation.kinds(Dropped):
        codes.dropping, codes.probability = True, 0.5


harden = engine.harden


def test_units_come_nearer_to_float_as_the_model_runs(tiny_sam: Path) -> None:
    work = planned(tiny_sam)
    before = losses_that_run(work)
    found = learned(work)
    after = losses_that_run(work)
    assert [unit.after for unit in found] == pytest.approx(after, rel=0.01)
    assert all(unit.after < unit.before for unit in found)
    assert after[-1] < 0.99 * before[-1]
    for linear in work.linears:
        weight, codes = constant(linear.weight), work.plan.linears[linear.name].weight
        np.testing.assert_array_equal(weight, codes.decode(codes.encode(weight, linear.out_axis), linear.out_axis))


def test_learning_goes_on_from_weights_and_biases_that_were_moved(tiny_sam: Path) -> None:
    work = planned(tiny_sam)
    work.run([Gptq(GptqSettings())], work)
    before = losses_that_run(work)
    found = learned(work)
    assert [found[0].before, found[-1].after] == pytest.approx([before[0], losses_that_run(work)[-1]], rel=0.01)


@pytest.mark.parametrize("defect", [first_layer_alone, drops_stay])
def test_published_defects_would_be_seen(defect: object, tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that stay soft, or half float, have losses that no model has that runs."""
    monkeypatch.setattr(engine, "harden", defect)
    work = planned(tiny_sam)
    found = learned(work)
    told, real = np.array([unit.after for unit in found]), np.array(losses_that_run(work))
    assert np.abs(told / real - 1).max() > 0.05


def test_a_unit_that_would_be_worse_stays_as_it_was(tiny_sam: Path) -> None:
    work = planned(tiny_sam)
    before = copy.deepcopy(plan_to_json(work.plan)), held_constants(work.model.graph)
    worse = Recipe("module", (Phase(10, scales=True, zeros=True, scale_rate=1e3),), 5)
    found = learned(work, worse)
    assert [unit.after for unit in found] == [unit.before for unit in found]
    assert (plan_to_json(work.plan), held_constants(work.model.graph)) == before


def test_the_same_bits_come_out_again(tiny_sam: Path) -> None:
    outcomes = []
    for _ in range(2):
        work = planned(tiny_sam)
        learned(work, Recipe("module", RECIPE.phases, 5))
        outcomes.append((plan_to_json(work.plan), _arrays(work)))
    assert outcomes[0] == outcomes[1]


def _arrays(work: Work) -> dict[str, bytes]:
    found: dict[str, ir.TensorProtocol | None] = held_constants(work.model.graph)
    return {name: held.numpy().tobytes() for name, held in found.items() if held is not None}


def test_an_operator_without_gradient_is_named(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = planned(tiny_sam)
    monkeypatch.delitem(engine.Simulation.__init__.__globals__["OPERATORS"], "Erf")
    found: Sequence[UnitLoss] = learned(work, Recipe("module", RECIPE.phases, 2))
    assert [unit.refused for unit in found] == ["", "no gradient for Erf", ""]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["units", "whole"])
def test_products_may_be_bfloat16(method: str, tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: codes and judgement stay float32, products do not, and it still gets better."""
    kinds: list[torch.dtype] = []
    multiply = OPERATORS["MatMul"]

    def seen(node: ir.Node, x: Sequence[torch.Tensor]) -> torch.Tensor:
        made: torch.Tensor = multiply(node, x)
        kinds.append(made.dtype)
        return made

    monkeypatch.setitem(OPERATORS, "MatMul", seen)
    monkeypatch.setattr(Effort, "narrow", property(lambda self: True))
    work = planned(tiny_sam)
    if method == "units":
        found = learned(work)
        assert all(unit.after < unit.before for unit in found)
        assert [unit.after for unit in found] == pytest.approx(losses_that_run(work), rel=0.01)
    else:
        monkeypatch.setitem(trainer.TOGETHER, "cpu", 0.0)  # as of a large model
        work.run([Reconstruct()], work)
        facts = work.reports[-1].facts
        assert facts["loss_after"] < facts["loss_before"]
    assert set(kinds) == {torch.bfloat16, torch.float32}
    for linear in work.linears:
        assert np.isfinite(constant(linear.weight)).all()
