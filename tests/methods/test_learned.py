# SPDX-License-Identifier: Apache-2.0
"""Methods that learn by units: their starts by numbers, and what each makes of a small SAM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx.api import Result
from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.feeds import Selection
from samq_onnx.methods.lsq import first_step, first_steps
from samq_onnx.methods.lsq_plus import three_deviations
from samq_onnx.methods.pq_sam_l import RememberedGroups
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, KeepBetter, LearnScales, Ranges, keep_better
from samq_onnx.passes.graph import constant, held_constants, replace_constant
from samq_onnx.passes.report import Report
from samq_onnx.plan_file import plan_to_json
from samq_onnx.reconstruct import trainer
from samq_onnx.reconstruct.effort import Effort
from tests.conftest import relative_error, run_model
from tests.reconstruct.test_engine import planned

SETTINGS: list[tuple[str, dict[str, str]]] = [
    ("adaround", {}),
    ("brecq", {}),
    ("brecq", {"fisher": "true"}),
    ("qdrop", {}),
    ("lsq", {}),
    ("lsq+", {"weights": "true"}),
    ("ptq4sam-l", {}),
    ("pq-sam-l", {}),
    ("saq-sam", {}),
    ("ahcptq", {}),
]


def test_lsq_begins_with_twice_the_mean_over_the_root_of_the_largest_code() -> None:
    stats = TensorStats("x")
    stats.update(np.array([0.0, 1.0, 2.0, 5.0], np.float32))
    assert first_step(stats, 4).scale == pytest.approx(2 * 2 / np.sqrt(15), rel=2e-3)
    assert first_step(stats, 4).zero_point == 0
    stats.update(np.array([-1.0, -1.0, -1.0, -1.0], np.float32))
    signed = first_step(stats, 4)
    assert (signed.scale, signed.zero_point) == (pytest.approx(2 * 1.5 / np.sqrt(7), rel=5e-3), 8)
    rows = np.array([[1.0, -3.0], [0.0, 0.5]])
    assert first_steps(rows, 4) == pytest.approx([4 / np.sqrt(7), 0.5 / np.sqrt(7)])


def test_lsq_plus_begins_with_three_deviations() -> None:
    rows = np.array([[0.0, 2.0], [-3.0, -3.0]])  # mean 1, deviation 1; mean -3, deviation 0
    assert three_deviations(rows, 4) == pytest.approx([4 / 8, 3 / 8])


def _quantized(tiny_sam: Path, images: Path, method: str, settings: Mapping[str, str]) -> Result:
    return samq_onnx.quantize(tiny_sam, images, method=method, bits="w4a4", settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), SETTINGS)
def test_a_learned_model_runs_and_says_what_each_unit_lost(
    method: str, settings: dict[str, str], tiny_sam: Path, one_image: Path
) -> None:
    result = _quantized(tiny_sam, one_image, method, {"iterations": "10", **settings})
    for name, part in result.parts.items():
        found = next(one for one in part.reports if one.name in ("reconstruction by units", "learned scales"))
        assert not any("gradient" in line for line in found.refused)
        if method != "pq-sam-l":
            assert found.facts["loss of a unit, as a share of that before"] <= 1
        expected = run_model(tiny_sam / f"{name}.onnx", part.sample or {})
        assert relative_error(expected, run_model(part.model, part.sample or {})) < 1.2
    lowered = samq_onnx.lower(tiny_sam, result.plans)
    for name, part in lowered.parts.items():
        sample = result.parts[name].sample or {}
        for one, two in zip(run_model(part.model, sample), run_model(result.parts[name].model, sample), strict=True):
            np.testing.assert_array_equal(one, two)


def test_scales_that_would_be_worse_stay_as_they_were(tiny_sam: Path) -> None:
    work = planned(tiny_sam)
    work.run([CentreKeys(), grouping := RememberedGroups(10.0, 0.25), Ranges("omse", "tensor-mse", "uniform")], work)
    work.run([LearnScales(grouping.labels, 1, 0.0)], work)  # scales of weights are one for a tensor from here on
    before = plan_to_json(work.plan), held_constants(work.model.graph)
    work.run([LearnScales(grouping.labels, 3, 5.0)], work)
    report = work.reports[-1]
    assert not report.done and "learning brought it no nearer to float" in report.refused[0]
    assert report.facts["loss_after"] == report.facts["loss_before"]
    assert (plan_to_json(work.plan), held_constants(work.model.graph)) == before
    work.run([LearnScales(grouping.labels, 20, 1e-3)], work)
    report = work.reports[-1]
    assert report.done[0] == "encoder" and report.facts["loss_after"] < report.facts["loss_before"]
    assert plan_to_json(work.plan) != before[0]


@pytest.mark.slow
def test_a_model_learned_as_a_whole_is_not_learned_again(
    tiny_sam: Path, one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it learns the decoder: the encoder is as it was, and the outcome is that of a run in one piece."""
    descents: list[str] = []

    def counted(*arguments: Any, label: str, **more: Any) -> Any:
        descents.append(label)
        if len(descents) == dies_at:
            raise KeyboardInterrupt
        return trainer_descend(*arguments, label=label, **more)

    trainer_descend, dies_at = trainer.descend, 0
    monkeypatch.setattr(trainer, "descend", counted)

    def made(stats: Path | None) -> list[bytes]:
        descents.clear()
        result = samq_onnx.quantize(
            tiny_sam, one_image, method="pq-sam-l", bits="w4a4", settings={"iterations": "5"}, stats=stats
        )
        return [ir.to_proto(part.model).SerializeToString(deterministic=True) for part in result.parts.values()]

    whole = made(None)
    assert descents == ["encoder: learning", "decoder: learning"]
    dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stats.npz")
    dies_at = 0
    assert made(tmp_path / "stats.npz") == whole and descents == ["decoder: learning"]
    assert made(tmp_path / "stats.npz") == whole and not descents


class _Moved(Step):
    """Changes all weights by a factor."""

    name = "moved"

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen: list[bytes] = []

    def apply(self, work: Work) -> Report:
        self.seen = [next(iter(work.feeds[index].values())).tobytes() for index in range(len(work.feeds))]
        for linear in work.linears:
            replace_constant(linear.weight, constant(linear.weight) * np.float32(self.factor))
        return Report(self.name, ["all"])


def test_the_better_is_kept_on_images_that_no_alternative_saw(tiny_sam: Path) -> None:
    work = planned(tiny_sam, "w8a8", images=8)
    weight = work.linears[0].weight
    before = constant(weight)
    worse, near = _Moved(0.5), _Moved(1.0)
    work.run([KeepBetter({"worse": [worse]})], work)
    assert not work.reports[-1].facts and not worse.seen  # no time is given
    work.effort = Effort.of(10.0)
    work.run([KeepBetter({"worse": [worse], "as good": [near]})], work)
    report = work.reports[-1]
    assert report.done == ["as it is"] and set(report.facts) == {"as it is", "worse", "as good"}
    assert report.facts["worse"] > report.facts["as it is"]
    np.testing.assert_array_equal(constant(weight), before)
    held = [next(iter(work.feeds[index].values())).tobytes() for index in (3, 7)]
    assert len(worse.seen) == 6 and not set(held) & set(worse.seen)
    replace_constant(weight, before * np.float32(0.5))
    mended = [_Mended(before)]
    work.run([KeepBetter({"mended": mended})], work)
    assert work.reports[-1].done == ["mended"]
    np.testing.assert_array_equal(constant(weight), before)


def test_no_image_is_learned_from_and_judged_on(tiny_sam: Path) -> None:
    work = planned(tiny_sam, "w8a8", images=8)
    places = [0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7]
    whole = [work.feeds[place] for place in places]
    work.feeds = Selection(whole, range(len(places)))
    work.feeds.places = places
    seen, held = ([places[index] for index in half] for half in keep_better._halves(work))
    assert set(seen) == {0, 1, 2, 4, 5, 6} and set(held) == {3, 7}


class _Mended(Step):
    """Puts the weights of the first linear back."""

    name = "mended"

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight

    def apply(self, work: Work) -> Report:
        replace_constant(work.linears[0].weight, self.weight)
        return Report(self.name, ["first"])


@pytest.mark.parametrize(
    ("gains", "images", "sure"),
    [
        ((0.1, 0.11, 0.09), (0, 1, 2), True),
        ((1.0, -0.9, 0.2), (0, 1, 2), False),
        ((0.5,), (3,), True),
        ((0.0, 0.0), (0, 1), False),
        ((-0.2, -0.1), (0, 1), False),
        ((0.9, 1.0, 0.9, 1.0, 0.9, -0.5), (0, 0, 0, 0, 0, 1), False),  # prompts of one image say one thing
    ],
)
def test_what_is_learned_has_to_be_better_than_by_chance(
    gains: tuple[float, ...], images: tuple[int, ...], sure: bool
) -> None:
    assert keep_better._surely_positive(np.array(gains), np.array(images)) is sure
