# SPDX-License-Identifier: Apache-2.0
"""Learned decoders: the simulation computes what the lowered graph computes, and learning brings it nearer to float."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx import assets, data, ops, pipeline
from samq_onnx.codes import LogCodes, RowCodes, UniformCodes, WeightCodes
from samq_onnx.codes.row import row_weights
from samq_onnx.evaluate import overlap
from samq_onnx.families import identify
from samq_onnx.models import load_model
from samq_onnx.passes.lift import Structure, lift, simplify
from samq_onnx.passes.lower import lower, raise_opset
from samq_onnx.plan import QuantPlan
from samq_onnx.recipe import recipe
from samq_onnx.reconstruct import NotLearnable, learn
from samq_onnx.reconstruct.fake_quant import ActivationCodes, WeightCodes, probability_codes
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.runtime import open_session
from samq_onnx.verify import sqnr

LOGITS = "low_res_masks"


@pytest.fixture(scope="module")
def feeds() -> list[Mapping[str, np.ndarray]]:
    """One box and one point on each of two images."""
    nano = assets.nano_dir()
    decoder = identify(load_model(nano / "decoder.onnx"), "decoder.onnx")
    prompts = decoder.feeds(data.Calibration(assets.calibration_images()), nano / "encoder.onnx", "decoder")
    return [prompts[index] for index in (0, 1, 32, 33)]


def _planned(bits: str, feeds: list[Mapping[str, np.ndarray]]) -> tuple[ir.Model, Structure, QuantPlan]:
    chosen = recipe("samq", bits)
    model = load_model(assets.nano_dir() / "decoder.onnx")
    raise_opset(model, chosen.weight_bits)
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    linears, _ = pipeline.split_linears(structure)
    return model, structure, pipeline._calibrate(model, structure, linears, feeds, chosen, "decoder")


def _lowered(model: ir.Model, structure: Structure, plan: QuantPlan, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    lower(model, structure, plan)
    session = open_session(ir.to_proto(model).SerializeToString())
    return session.run([LOGITS], dict(feed))[0]


def _overlap(wanted: np.ndarray, made: np.ndarray) -> float:
    """IoU of masks given as logits, all taken together."""
    return overlap(wanted > 0, made > 0)[0]


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_simulation_computes_what_the_lowered_graph_computes(
    bits: str, feeds: list[Mapping[str, np.ndarray]], tmp_path: Path
) -> None:
    """Codes at rounding ties may differ by one, which 4 bits show more than 8."""
    model, structure, plan = _planned(bits, feeds)
    outputs = {value.name: value for value in model.graph.outputs}
    simulation = Simulation(model.graph, structure, plan, [outputs[LOGITS]])
    assert not simulation.unknown
    assert len(simulation.zeros()) >= 3 * len(structure.attentions)
    given = learn._Spill([value.name or "" for value in simulation.inputs], tmp_path)
    pipeline.run(model, feeds[:1], [given], label="inputs")
    with torch.no_grad():
        (made,) = simulation(dict(zip(simulation.inputs, given[0], strict=True)))
    assert sqnr(_lowered(model, structure, plan, feeds[0]), made.numpy()) > {"w8a8": 35, "w4a4": 20}[bits]


def test_learning_brings_the_masks_nearer_to_float(
    feeds: list[Mapping[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = learn._lesson(load_model(assets.nano_dir() / "decoder.onnx"))
    monkeypatch.setattr(learn, "_lesson", lambda model: dataclasses.replace(lesson, epochs=60, rate=1e-4))
    wanted = open_session(assets.nano_dir() / "decoder.onnx").run([LOGITS], dict(feeds[0]))[0]
    model, structure, plan = _planned("w4a4", feeds)
    before = _overlap(wanted, _lowered(model, structure, plan, feeds[0]))
    model, structure, plan = _planned("w4a4", feeds)
    learned = learn.learn(model, structure, plan, feeds, feeds, label="decoder")
    assert learned.inputs == len(feeds)
    assert learned.loss_after < 0.85 * learned.loss_before
    assert 1 - _overlap(wanted, _lowered(model, structure, plan, feeds[0])) < 0.75 * (1 - before)


def test_a_decoder_with_other_outputs_is_refused(feeds: list[Mapping[str, np.ndarray]]) -> None:
    model, structure, plan = _planned("w8a8", feeds[:1])
    before = plan.to_json()
    for value in model.graph.outputs:
        value.name = f"my_{value.name}"
    with pytest.raises(NotLearnable, match="neither one embedding nor low_res_masks"):
        learn.learn(model, structure, plan, feeds, feeds, label="decoder")
    assert plan.to_json() == before


class TestCodes:
    def test_activations_round_and_clip(self) -> None:
        codes = ActivationCodes(UniformCodes(0.5, 3, 3))
        x = torch.tensor([-9.0, -1.5, -0.26, 0.0, 0.3, 1.9, 2.0, 9.0])
        assert codes(x).tolist() == [-1.5, -1.5, -0.5, 0.0, 0.5, 2.0, 2.0, 2.0]
        assert codes.learned() == UniformCodes(0.5, 3, 3)

    def test_gradients_are_those_of_lsq(self) -> None:
        """Inside the range y - x over the scale, outside the code; the zero point moves what is outside."""
        codes = ActivationCodes(UniformCodes(0.5, 3, 3))
        for value, to_x, to_scale, to_zero in (
            (0.3, 1.0, 1 - 0.6, 0.0),
            (9.0, 0.0, 4.0, -0.5),
            (-9.0, 0.0, -3.0, -0.5),
        ):
            codes.zero_grad()
            x = torch.tensor([value], requires_grad=True)
            codes(x).sum().backward()
            assert x.grad is not None and codes.log_scale.grad is not None and codes.zero.grad is not None
            assert x.grad.item() == to_x
            assert codes.log_scale.grad.item() == pytest.approx(0.5 * to_scale)
            assert codes.zero.grad.item() == pytest.approx(to_zero)

    def test_weights_have_a_scale_per_channel(self) -> None:
        weight = np.array([[0.11, -3.0], [0.24, 0.9]], np.float32)
        codes = WeightCodes(weight, WeightCodes((0.1, 1.0), 4), out_axis=1)
        assert codes().detach().numpy() == pytest.approx(np.array([[0.1, -3.0], [0.2, 1.0]]))
        assert codes.learned().scale == pytest.approx((0.1, 1.0))

    @pytest.mark.parametrize("codes", [LogCodes(0.5, 2, 4), UniformCodes(1 / 15, 0, 4), RowCodes(2, 4), RowCodes(0, 4)])
    def test_probabilities_stay_on_their_codes(self, codes: LogCodes | UniformCodes | RowCodes) -> None:
        p = torch.tensor([0.5, 0.3, 0.19, 0.01, 0.0], requires_grad=True)
        made = probability_codes(codes)(p)
        if isinstance(codes, LogCodes):
            levels = codes.scale * 2.0 ** (-np.arange(16) / codes.tau)
        elif isinstance(codes, UniformCodes):
            levels = codes.scale * np.arange(16.0)
        else:
            assert made.sum().item() == pytest.approx(1)
            levels = row_weights(codes.tau, 4) / 2.0**14 if codes.tau else np.arange(16.0) / 15
            levels *= made.max().item()
        distance = np.abs(made.detach().numpy()[:, None] - levels).min(axis=1)
        assert distance.max() < 1e-6
        made.sum().backward()  # type: ignore[no-untyped-call]
