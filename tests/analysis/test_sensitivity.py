# SPDX-License-Identifier: Apache-2.0
"""Errors of single sites are those of models in which that site alone is quantized."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import api
from samq_onnx.analysis.judge import OutputJudge, relative_error
from samq_onnx.analysis.sensitivity import ALL, Sensitivity, sensitivity_of_plan
from samq_onnx.analysis.sites import attention_through_codes
from samq_onnx.analysis.subject import Subject, by_method, by_plan
from samq_onnx.codes import LogCodes, RowCodes
from samq_onnx.families import Part, identify
from samq_onnx.methods import Scheme, Widths, configured
from samq_onnx.models import load_model
from samq_onnx.pipeline import lower_model
from tests.conftest import Feed, run_model


@dataclasses.dataclass(eq=False)
class Held:
    """A subject, its part and inputs."""

    path: Path
    part: Part
    feeds: list[Feed]
    subject: Subject

    @functools.lru_cache(maxsize=2)  # noqa: B019 - of a few objects
    def measured(self, seconds: float = 1e9) -> Sensitivity:
        return sensitivity_of_plan(
            self.subject.lifted, self.subject.plan, self.subject.rounded, self.feeds, OutputJudge(self.part),
            label="test", seconds=seconds,
        )  # fmt: skip


def _held(path: Path, method: str, bits: str) -> Iterator[Held]:
    model = load_model(path)
    part = identify(model, str(path))
    feeds = [part.sample_feed()]
    with by_method(model, part, feeds, configured(method), Scheme(Widths.parse(bits)), "samq", label="test") as subject:
        yield Held(path, part, feeds, subject)


@pytest.fixture(scope="module", params=["encoder minmax", "decoder minmax", "encoder ahcptq-s", "decoder ptq4sam-s"])
def held(request: pytest.FixtureRequest, tiny_sam: Path) -> Iterator[Held]:
    part, method = request.param.split()
    yield from _held(tiny_sam / f"{part}.onnx", method, "w4a5")


@pytest.fixture(scope="module")
def compensated(tiny_sam: Path) -> Iterator[Held]:
    yield from _held(tiny_sam / "encoder.onnx", "samq", "w6a6")


def test_a_site_costs_what_a_model_with_it_alone_quantized_loses(held: Held) -> None:
    found = held.measured()
    plan = held.subject.plan
    assert not found.weighted and set(found.losses) == {*plan.linears, *plan.attentions}
    (output,) = OutputJudge(held.part).outputs
    place = [port.name for port in held.part.signature.outputs].index(output)
    reference = run_model(held.path, held.feeds[0])[place]
    for site in found.losses:
        alone = dataclasses.replace(
            plan,
            linears={name: codes for name, codes in plan.linears.items() if name == site},
            attentions={name: codes for name, codes in plan.attentions.items() if name == site},
        )
        lowered = lower_model(load_model(held.path), alone, label="alone").model
        lost = relative_error(reference, run_model(lowered, held.feeds[0])[place])
        assert found.losses[site][ALL].error == pytest.approx(lost, rel=0.15, abs=1e-9), site


def test_a_site_costs_no_more_than_its_roles_together(held: Held) -> None:
    found = held.measured().losses
    for site, tried in found.items():
        roles = {name: loss.error for name, loss in tried.items() if name != ALL}
        assert set(roles) in ({"input", "weight"}, {"input", "weight", "output"}, {"q", "k", "v", "probabilities"})
        assert all(error > 0 for error in roles.values())
        assert tried[ALL].error ** 0.5 < 1.5 * sum(error**0.5 for error in roles.values()), site  # as lengths add up


def test_flips_are_counted_where_masks_come_out(held: Held) -> None:
    flips = [tried[ALL].flips for tried in held.measured().losses.values()]
    if held.path.stem == "decoder":
        assert all(flip is not None and 0 <= flip <= 1 for flip in flips) and any(flips)
    else:
        assert set(flips) == {None}


def test_at_ends_of_blocks_errors_are_weighted(compensated: Held) -> None:
    exact, quick = compensated.measured(), compensated.measured(seconds=0)
    assert quick.weighted and not exact.weighted
    ratios = [quick.losses[site][ALL].error / loss[ALL].error for site, loss in exact.losses.items()]
    assert all(0.2 < ratio < 5 for ratio in ratios)
    assert any(ratio != 1 for ratio in ratios)  # it is another measure


def test_the_float_model_is_what_folds_left_and_the_codes_are_of_moved_weights(compensated: Held) -> None:
    subject = compensated.subject
    (expected,) = run_model(compensated.path, compensated.feeds[0])
    (found,) = run_model(subject.lifted.model, compensated.feeds[0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    moved = {linear.weight.name for linear in subject.lifted.linears if linear.name in subject.plan.linears}
    assert moved & set(subject.rounded)
    assert any(not np.array_equal(subject.rounded[n], _held_by(subject, n)) for n in moved & set(subject.rounded))
    assert all(tried["weight"].error > 0 for tried in compensated.measured().losses.values() if "weight" in tried)


def _held_by(subject: Subject, name: str) -> np.ndarray:
    tensor = subject.lifted.model.graph.initializers[name].const_value
    assert isinstance(tensor, ir.TensorProtocol)
    return tensor.numpy()


def test_weights_that_a_plan_holds_rounded_cost_nothing(tiny_sam: Path, one_image: Path) -> None:
    path = tiny_sam / "encoder.onnx"
    plan = api.quantize(path, one_image, method="samq", bits="w6a6").plan
    model = load_model(path)
    part = identify(model, str(path))
    with by_plan(model, plan, label="test") as subject:
        held = Held(path, part, [part.sample_feed()], subject)
        linears = [linear for linear in subject.lifted.linears if linear.name in plan.linears]
        products = [linear.name for linear in linears if linear.node.op_type != "Conv"]
        found = held.measured()
    assert products and all(found.losses[name]["weight"].error < 1e-9 for name in products)
    assert all(found.losses[name]["input"].error > 1e-7 for name in products)


@pytest.mark.parametrize("codes", [LogCodes(1.0, 2, 4), RowCodes(4, 4), RowCodes(0, 8)])
def test_a_map_goes_through_its_codes_row_by_row(codes: LogCodes | RowCodes) -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 3, 16, 8)).astype(np.float32) for _ in range(3))
    first, second = (random.standard_normal((4, 4, 8)).astype(np.float32) for _ in range(2))
    tables = (first, second)
    grid = q.reshape(2, 3, 4, 4, 8)
    logits = np.einsum("abqd,abkd->abqk", q, k).reshape(2, 3, 4, 4, 4, 4)
    logits = logits + np.einsum("abywd,yhd->abywh", grid, tables[0])[..., None]
    logits = logits + np.einsum("abywd,wxd->abywx", grid, tables[1])[..., None, :]
    p = np.exp(logits.reshape(2, 3, 16, 16))
    p /= p.sum(axis=-1, keepdims=True)
    expected = codes.fake_quantize(p.astype(np.float32)) @ v
    found = attention_through_codes(q, k, v, 1.0, tables, codes)
    assert relative_error(expected, found) < 1e-4
    assert relative_error(p @ v, attention_through_codes(q, k, v, 1.0, tables, None)) < 1e-10
