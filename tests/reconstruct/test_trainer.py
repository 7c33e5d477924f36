# SPDX-License-Identifier: Apache-2.0
"""Learned decoders: the simulation computes what the lowered graph computes, and learning brings it nearer to float."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx import assets
from samq_onnx.calibrate.stream import run
from samq_onnx.codes import HybridCodes, LogCodes, RowCodes, UniformCodes, WeightCodes
from samq_onnx.codes.row import row_weights
from samq_onnx.data import Calibration
from samq_onnx.evaluate import overlap
from samq_onnx.families import Part, identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Ranges, Select
from samq_onnx.models import load_model
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.plan_file import plan_to_json
from samq_onnx.reconstruct import trainer
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.effort import Effort
from samq_onnx.reconstruct.fake_quant import (
    FakeQuantActivation,
    FakeQuantHybrid,
    FakeQuantWeight,
    fake_quant_probabilities,
)
from samq_onnx.reconstruct.objectives import objective_of, relative_error
from samq_onnx.reconstruct.reconstruction import NotReconstructable
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.runtime import open_session
from samq_onnx.verify import sqnr

LOGITS = "low_res_masks"


@pytest.fixture(scope="module")
def decoder() -> Part:
    file = assets.nano_dir() / "decoder.onnx"
    return identify(load_model(file), str(file))


@pytest.fixture(scope="module")
def feeds(decoder: Part) -> list[Mapping[str, np.ndarray]]:
    """One box and one point on each of two images."""
    encoder = assets.nano_dir() / "encoder.onnx"
    prompts = decoder.feeds(Calibration(assets.calibration_images()), encoder, "embeddings")
    return [prompts[index] for index in (0, 1, 32, 33)]


def _planned(bits: str, feeds: list[Mapping[str, np.ndarray]], decoder: Part) -> Work:
    widths = dataclasses.replace(Widths.parse(bits), activation=8)
    prepared = Preparation(load_model(assets.nano_dir() / "decoder.onnx"), widths.weight)
    work = begin(prepared, decoder, feeds, Scheme(widths), target="samq", label="decoder")
    work.run([Select(), Ranges("l4", "mse", "row")], work)
    return work


def _lowered(work: Work, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    TARGETS["samq"].lower(work.lifted, work.plan)
    session = open_session(ir.to_proto(work.model).SerializeToString())
    return session.run([LOGITS], dict(feed))[0]


def _overlap(wanted: np.ndarray, made: np.ndarray) -> float:
    """IoU of masks given as logits, all taken together."""
    return overlap(wanted > 0, made > 0)[0]


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_simulation_computes_what_the_lowered_graph_computes(
    bits: str, feeds: list[Mapping[str, np.ndarray]], decoder: Part, tmp_path: Path
) -> None:
    """Codes at rounding ties may differ by one, which 4 bits show more than 8."""
    work = _planned(bits, feeds, decoder)
    outputs = {value.name: value for value in work.model.graph.outputs}
    simulation = Simulation(work.lifted, work.plan, [outputs[LOGITS]])
    assert not simulation.unknown
    assert len(simulation.zeros()) >= 3 * len(work.lifted.attentions)
    given = ActivationCache([value.name or "" for value in simulation.inputs], tmp_path)
    run(work.model, feeds[:1], [given], label="inputs")
    with torch.no_grad():
        (made,) = simulation(dict(zip(simulation.inputs, given[0], strict=True)))
    assert sqnr(_lowered(work, feeds[0]), made.numpy()) > {"w8a8": 35, "w4a4": 20}[bits]


def test_learning_brings_the_masks_nearer_to_float(
    feeds: list[Mapping[str, np.ndarray]], decoder: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(decoder, load_model(assets.nano_dir() / "decoder.onnx"))
    longer = dataclasses.replace(objective, epochs=60, rate=1e-4)
    monkeypatch.setattr(trainer, "objective_of", lambda part, model: longer)
    wanted = open_session(assets.nano_dir() / "decoder.onnx").run([LOGITS], dict(feeds[0]))[0]
    before = _overlap(wanted, _lowered(_planned("w4a4", feeds, decoder), feeds[0]))
    work = _planned("w4a4", feeds, decoder)
    found = trainer.reconstruct(work.lifted, work.plan, decoder, feeds, feeds, label="decoder")
    assert found.inputs == len(feeds)
    assert found.loss_after < 0.85 * found.loss_before
    assert 1 - _overlap(wanted, _lowered(work, feeds[0])) < 0.75 * (1 - before)


@pytest.fixture(scope="module")
def training(
    decoder: Part, feeds: list[Mapping[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> trainer._Training:
    """Of a decoder at W4A4, on two boxes."""
    work, folder = _planned("w4a4", feeds, decoder), tmp_path_factory.mktemp("caches")
    objective = objective_of(decoder, work.model)
    outputs = {value.name: value for value in work.model.graph.outputs}
    simulation = Simulation(work.lifted, work.plan, [outputs[name] for name in objective.outputs])
    given, wanted = (
        ActivationCache([value.name or "" for value in values], folder)
        for values in (simulation.inputs, simulation.outputs)
    )
    run(work.model, feeds[::2], [given, wanted], label="inputs")
    return trainer._Training(simulation, objective, given, wanted, "cpu", Effort())


def _learned_from(training: trainer._Training, together: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of a step, and its gradients."""
    training._together = together
    loss = training.backward([0, 1, 0, 1])
    found = {name: one.grad.clone() for name, one in training.simulation.named_parameters() if one.grad is not None}
    training.simulation.zero_grad()
    return loss, found


def test_inputs_computed_at_once_teach_the_same(training: trainer._Training) -> None:
    """Sums of float32 in another order: 1e-3 of the longest gradient, as a few roundings fall elsewhere."""
    loss, gradients = _learned_from(training, True)
    assert training._together
    one_by_one, wanted = _learned_from(training, False)
    assert loss == pytest.approx(one_by_one, rel=1e-4)
    assert gradients.keys() == wanted.keys()
    longest = max(one.norm() for one in wanted.values())
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() < 1e-3 * longest, name


def test_inputs_of_unlike_shapes_make_a_step(training: trainer._Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.given, "shapes", ["one", "another"])
    loss, _ = _learned_from(training, True)
    assert training._together and loss == pytest.approx(_learned_from(training, False)[0], rel=1e-4)


def test_what_has_no_version_for_a_batch_is_learned_one_by_one_to_the_bit(
    training: trainer._Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run that goes on finds it out in its first step, and one that measures steps before."""
    distance = training.objective.loss

    def refusing(made: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        made[0].sum().item()
        return distance(made, wanted)

    monkeypatch.setattr(training, "objective", dataclasses.replace(training.objective, loss=refusing))
    loss, gradients = _learned_from(training, True)
    assert not training._together
    one_by_one, wanted = _learned_from(training, False)
    assert loss == one_by_one
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_few_steps_are_learned_too(steps: int, feeds: list[Mapping[str, np.ndarray]], decoder: Part) -> None:
    work = _planned("w4a4", feeds, decoder)
    learns = trainer.Learns(iterations=steps)
    found = trainer.reconstruct(work.lifted, work.plan, decoder, feeds, feeds, label="decoder", learns=learns)
    assert found.loss_after <= found.loss_before


def test_a_decoder_also_learns_from_what_its_layers_give(
    feeds: list[Mapping[str, np.ndarray]], decoder: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else counts, the tokens and the image behind both layers come nearer to float."""
    objective = objective_of(decoder, load_model(assets.nano_dir() / "decoder.onnx"))
    assert objective.inside > 0
    alone = dataclasses.replace(objective, epochs=30, inside=1.0, loss=lambda made, wanted: 0.0 * made[0].sum())
    monkeypatch.setattr(trainer, "objective_of", lambda part, model: alone)
    errors: list[float] = []

    def noted(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        error = relative_error(made, wanted)
        errors.append(error.item())
        return error

    monkeypatch.setattr(trainer, "relative_error", noted)
    work = _planned("w4a4", feeds, decoder)
    trainer.reconstruct(work.lifted, work.plan, decoder, feeds, feeds, label="decoder")
    of_inputs = np.array(errors).reshape(-1, 4).sum(axis=1)
    assert len(of_inputs) >= 30 * len(feeds)
    assert of_inputs[-len(feeds) :].mean() < 0.9 * of_inputs[: len(feeds)].mean()


def test_a_decoder_whose_outputs_are_not_known_is_refused(
    feeds: list[Mapping[str, np.ndarray]], decoder: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _planned("w8a8", feeds[:1], decoder)
    before = plan_to_json(work.plan)
    monkeypatch.setitem(decoder.__dict__, "outputs", {})
    with pytest.raises(NotReconstructable, match="cannot be told"):
        trainer.reconstruct(work.lifted, work.plan, decoder, feeds, feeds, label="decoder")
    assert plan_to_json(work.plan) == before


class TestCodes:
    def test_activations_round_and_clip(self) -> None:
        codes = FakeQuantActivation(UniformCodes(0.5, 3, 3))
        x = torch.tensor([-9.0, -1.5, -0.26, 0.0, 0.3, 1.9, 2.0, 9.0])
        assert codes(x).tolist() == [-1.5, -1.5, -0.5, 0.0, 0.5, 2.0, 2.0, 2.0]
        assert codes.current() == UniformCodes(0.5, 3, 3)

    def test_gradients_are_those_of_lsq(self) -> None:
        """Inside the range y - x over the scale, outside the code; the zero point moves what is outside."""
        codes = FakeQuantActivation(UniformCodes(0.5, 3, 3))
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
        codes = FakeQuantWeight(weight, WeightCodes((0.1, 1.0), 4), out_axis=1)
        assert codes().detach().numpy() == pytest.approx(np.array([[0.1, -3.0], [0.2, 1.0]]))
        assert codes.current().scale == pytest.approx((0.1, 1.0))

    def test_hybrid_codes_are_those_that_run_and_their_scales_learn(self) -> None:
        codes = HybridCodes.of_range(-0.17, 0.83, 4, log_range=0.3, log_share=0.25)
        twin = FakeQuantHybrid(codes)
        x = np.concatenate([np.linspace(-0.4, 1.2, 641), [-0.17, -0.12, 0, 0.13, 0.40, 0.83]]).astype(np.float32)
        made = twin(torch.tensor(x))
        np.testing.assert_allclose(made.detach().numpy(), codes.on_grid(x), atol=1e-5)
        (made[-2] + made[-5]).backward()
        assert twin.log_scale.grad is not None and (twin.log_scale.grad != 0).all()
        assert twin.current().log_codes == codes.log_codes

    @pytest.mark.parametrize("codes", [LogCodes(0.5, 2, 4), UniformCodes(1 / 15, 0, 4), RowCodes(2, 4), RowCodes(0, 4)])
    def test_probabilities_stay_on_their_codes(self, codes: LogCodes | UniformCodes | RowCodes) -> None:
        p = torch.tensor([0.5, 0.3, 0.19, 0.01, 0.0], requires_grad=True)
        made = fake_quant_probabilities(codes)(p)
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
