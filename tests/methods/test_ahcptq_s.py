# SPDX-License-Identifier: Apache-2.0
"""Hybrid codes by the paper's formula, on their grid and in models; groups of channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx.codes import ChannelGroupCodes, HybridCodes, UniformCodes
from samq_onnx.errors import UserError
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.ahcptq_s import GroupChannels, grouped
from samq_onnx.methods.steps import HybridInputs, Ranges, Select
from samq_onnx.methods.steps.hybrid import best_hybrid, output_error
from samq_onnx.models import load_model
from samq_onnx.passes.lower.build import Builder, CodeType
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.plan_file import read_plans, write_plans
from tests.conftest import Feed, relative_error, run_model

BITS = 4

# HLUQ of 4 bits, low -0.17, range 1, alpha 0.3, beta 1/4
X = np.array([-0.17, -0.12, 0, 0.13, 0.40, 0.83])
Y = [-0.17, -0.1325, -0.02, 0.13, 0.3789, 0.8144]
# range 12, alpha 0.1: values that the released kernel sends to the end of the logarithm
WIDE_X, WIDE_Y = np.array([5.83, 11.83]), [5.83, 11.59]


def post_gelu(rows: int, width: int) -> np.ndarray:
    """As SAM-B's: most of it just below zero, and a sparse tail."""
    random = np.random.default_rng(0)
    tail = random.random((rows, width)) < 0.05
    found: np.ndarray = np.where(
        tail, random.exponential(0.4, (rows, width)), -0.17 * random.random((rows, width)) ** 2
    )
    return found.astype(np.float32)


def test_the_worked_numbers() -> None:
    codes = HybridCodes.of_range(-0.17, 0.83, BITS, log_range=0.3, log_share=0.25)
    assert codes.fake_quantize(X) == pytest.approx(Y, abs=1e-4)
    wide = HybridCodes.of_range(-0.17, 11.83, BITS, log_range=0.1, log_share=0.25)
    assert wide.fake_quantize(WIDE_X) == pytest.approx(WIDE_Y, abs=0.01)


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("share", [1 / 8, 1 / 4, 1 / 2])
def test_there_are_as_many_values_as_codes(bits: int, share: float) -> None:
    codes = HybridCodes.of_range(-0.2, 3.0, bits, log_range=0.3, log_share=share)
    made = np.unique(np.round(codes.fake_quantize(np.linspace(-1, 4, 200_001)), 9))
    assert len(made) <= 2**bits
    assert (made[0], made[-1]) == (pytest.approx(-0.2), pytest.approx(codes.high))
    assert len(np.unique(codes.table())) <= 2**bits


def test_on_the_grid_values_are_as_by_the_formula_but_for_its_steps() -> None:
    codes = HybridCodes.of_range(-0.17, 0.83, BITS, log_range=0.3, log_share=0.25)
    x = np.random.default_rng(0).uniform(-0.4, 1.0, 10_000)
    near = np.abs(codes.on_grid(x) - codes.fake_quantize(x)) <= 1.01 * codes.grid.scale
    assert near.mean() > 0.95  # others lie at the edge between two codes
    np.testing.assert_array_equal(codes.on_grid(codes.on_grid(x)), codes.on_grid(x))


@pytest.mark.parametrize("numbers", [{"log_codes": 0}, {"log_codes": 16}, {"low": float("nan")}, {"log_scale": 0.0}])
def test_numbers_that_no_codes_have_are_refused(numbers: dict[str, float]) -> None:
    codes = HybridCodes.of_range(-0.17, 0.83, BITS, log_range=0.3, log_share=0.25)
    with pytest.raises(ValueError):
        dataclasses.replace(codes, **numbers)  # type: ignore[arg-type]


def test_they_lose_less_than_uniform_codes_where_most_values_are_small() -> None:
    rows = post_gelu(200, 64)
    weight = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    low, high = float(rows.min()), float(rows.max())
    codes = best_hybrid(rows, weight, low, high, BITS)
    uniform = UniformCodes.of_range(low, high, BITS)
    assert output_error(codes.on_grid(rows), rows, weight) < 0.7 * output_error(
        uniform.fake_quantize(rows), rows, weight
    )


@pytest.mark.parametrize("dtype", [ir.DataType.UINT8, ir.DataType.INT8])
def test_a_model_looks_them_up(dtype: ir.DataType) -> None:
    codes = HybridCodes.of_range(-0.17, 0.83, BITS, log_range=0.3, log_share=0.25)
    x = ir.val("x", ir.DataType.FLOAT, [None, 4])
    first = ir.node("Relu", [x])
    first.outputs[0].name, first.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [first.outputs[0]], nodes=[first], opset_imports={"": 21})
    builder = Builder(graph, CodeType(dtype))
    graph.outputs[0] = builder.dequantize(builder.quantize(first.outputs[0], codes))
    values = np.random.default_rng(0).uniform(-0.5, 1.2, (50, 4)).astype(np.float32)
    made = run_model(ir.Model(graph, ir_version=10), {"x": values})[0]
    np.testing.assert_allclose(made, codes.on_grid(np.maximum(values, 0)), atol=1e-6)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("target", ["samq", "qdq"])
def test_both_parts_and_targets_take_them(
    part: str, target: str, tiny_sam: Path, one_image: Path, tmp_path: Path
) -> None:
    settings = {"groups": "false"}
    result = samq_onnx.quantize(tiny_sam, one_image, method="ahcptq-s", bits="w8a6", target=target, settings=settings)
    linears = result.plans[part].linears.values()
    assert any(linear.hybrid is not None and linear.input.bits == 8 for linear in linears)
    found = result.parts[part]
    assert found.sample is not None
    expected = run_model(tiny_sam / f"{part}.onnx", found.sample)
    assert relative_error(expected, run_model(found.model, found.sample)) < (0.1 if part == "encoder" else 0.4)
    write_plans(tmp_path / "plan.json", result.plans)
    assert read_plans(tmp_path / "plan.json")[part].linears == result.plans[part].linears


def test_a_plan_whose_grid_is_another_is_refused(tiny_sam: Path, one_image: Path) -> None:
    settings = {"groups": "false"}
    plans = samq_onnx.quantize(tiny_sam, one_image, method="ahcptq-s", bits="w8a6", settings=settings).plans
    name, held = next((n, one) for n, one in plans["encoder"].linears.items() if one.hybrid is not None)
    other = dataclasses.replace(held.input, scale=held.input.scale * 2)
    plans["encoder"].linears[name] = dataclasses.replace(held, input=other)
    with pytest.raises(UserError, match="not the grid of its hybrid codes"):
        samq_onnx.lower(tiny_sam, plans)


def test_codes_of_8_bits_stay_uniform(nano: Path, encoder_feed: Feed) -> None:
    model = load_model(nano / "encoder.onnx")
    work = begin(Preparation(model, 8), identify(model, "encoder"), [encoder_feed], Scheme(Widths(8, 8)), target="samq")
    work.run([Select(), Ranges("minmax", "minmax", "uniform"), HybridInputs(always=True)], work)
    report = work.reports[-1]
    assert not report.done and "uniform codes of 8 bits" in report.refused[0]
    assert all(linear.hybrid is None for linear in work.plan.linears.values())


@pytest.mark.parametrize("bits", [4, 6])
def test_where_uniform_codes_are_better_they_can_stay(bits: int, nano: Path, encoder_feed: Feed) -> None:
    model = load_model(nano / "encoder.onnx")
    scheme = Scheme(Widths(bits, bits))
    work = begin(Preparation(model, bits), identify(model, "encoder"), [encoder_feed], scheme, target="samq")
    work.run([Select(), Ranges("omse", "minmax", "uniform")], work)
    before = dict(work.plan.linears)
    work.run([HybridInputs(always=False)], work)
    done = work.reports[-1].done
    assert bool(done) == (bits == 4)
    assert all((work.plan.linears[name] == held) == (name not in done) for name, held in before.items())


@pytest.mark.parametrize("features", ["log", "plain"])
def test_channels_of_one_kind_share_a_group(features: str) -> None:
    random = np.random.default_rng(0)
    kinds = random.integers(0, 4, 200)
    scale = np.array([0.1, 0.5, 2.0, 8.0])[kinds] * np.exp(0.01 * random.normal(size=200))
    point = np.array([0, 5, 10, 15])[kinds].astype(float)
    made, zero = grouped(scale, point, BITS, features)
    assert len(np.unique(made)) == 4
    for kind in range(4):
        assert len(np.unique(made[kinds == kind])) == 1
        assert made[kinds == kind][0] == pytest.approx([0.1, 0.5, 2.0, 8.0][kind], rel=0.05)
        assert zero[kinds == kind][0] == [0, 5, 10, 15][kind]


def test_groups_by_logarithms_do_not_mind_the_unit() -> None:
    random = np.random.default_rng(1)
    scale, point = np.exp(random.normal(size=100)), np.rint(random.uniform(0, 15, 100))
    first, second = grouped(scale, point, BITS)[0], grouped(1000 * scale, point, BITS)[0]
    np.testing.assert_allclose(second, 1000 * first, rtol=1e-9)


def test_groups_lose_less_than_one_scale_and_more_than_one_each() -> None:
    random = np.random.default_rng(2)
    rows = random.normal(size=(500, 96)) * np.exp(random.normal(size=96)) + 3 * random.normal(size=96)
    low, high = rows.min(axis=0), rows.max(axis=0)
    scale = (high - low) / 15
    point = np.rint(-low / scale)
    errors = []
    for codes in (
        UniformCodes.of_range(low.min(), high.max(), BITS),
        ChannelGroupCodes(tuple(grouped(scale, point, BITS)[0]), tuple(grouped(scale, point, BITS)[1]), BITS),
        ChannelGroupCodes(tuple(scale), tuple(point), BITS),
    ):
        errors.append(np.square(codes.fake_quantize(rows) - rows).sum())
    assert errors[0] > 1.2 * errors[1] and errors[1] > 1.2 * errors[2]


def test_norms_take_groups_and_the_function_stays(nano: Path, encoder_feed: Feed) -> None:
    model = load_model(nano / "encoder.onnx")
    prepared = Preparation(model, BITS)
    expected = run_model(model, encoder_feed)
    work = begin(prepared, identify(model, "encoder"), [encoder_feed], Scheme(Widths(BITS, BITS)), target="samq")
    work.run([Select(), GroupChannels("log")], work)
    assert work.reports[-1].done
    assert relative_error(expected, run_model(model, encoder_feed)) < 1e-4
