# SPDX-License-Identifier: Apache-2.0
"""What prompts make of a unit's outputs, as an objective (prompt-aware reconstruction of SAQ-SAM, AAAI 2026).

* A stage of an encoder: its output skips the stages behind it, goes through the float neck, and through the float
  two-way layers of a decoder with prompts of the image. The squared error of the image tokens that come out counts, a
  sum over channels, the mean over tokens and prompts.
* A two-way layer of a decoder: 0.01 of the squared error of its tokens, all of that of its image tokens, and that of
  the tokens behind the last attention, which the quantized rest of the decoder makes of both.
* Any other unit: its own outputs.

The paper's target of a stage comes from the float stage on quantized inputs; here it comes from the float model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from samq_onnx import ops
from samq_onnx.calibrate.stream import Feed, run
from samq_onnx.families import Part, Role
from samq_onnx.families.decoder import decoder_of
from samq_onnx.families.image import ImageInput
from samq_onnx.feeds import prompts_of
from samq_onnx.intake import Intake
from samq_onnx.models import load_model
from samq_onnx.opened import Opened
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.passes.lower import raise_opset
from samq_onnx.plan import QuantPlan
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.objectives import Sight, Tensors, unit_loss
from samq_onnx.reconstruct.reconstruction import NotReconstructable
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, find_units
from samq_onnx.samples import Sample

__all__ = ["DecoderResponse", "EncoderResponse", "decoder_response", "encoder_response"]

PROMPTS = 16  # of an image that are kept, as in the paper
AT_ONCE = 2  # of these that an iteration sees
TOKENS = 0.01  # weight of the error of a layer's tokens
FIXED = Twins(free=False)


def squared(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error, summed over the last axis, averaged over the others."""
    return (made - wanted).square().sum(-1).mean()


class _Extras:
    """Tensors that a part of a graph reads beside those that a unit gives it, input by input."""

    def __init__(self, lifted: Lifted, values: Sequence[ir.Value], feeds: Sequence[Feed], folder: Path) -> None:
        self._values = list(values)
        self._cache = ActivationCache([value.name or "" for value in self._values], folder)
        if self._values:
            run(lifted.model, feeds, [self._cache], label="response")

    def of(self, index: int, wanted: Sequence[ir.Value], device: torch.device) -> dict[ir.Value, torch.Tensor]:
        held = dict(zip(self._values, self._cache[index], strict=True)) if self._values else {}
        return {v: held[v].to(device) if held[v].is_floating_point() else held[v] for v in wanted if v in held}


class EncoderResponse:
    """Of stages of an encoder. Made by `encoder_response`."""

    def __init__(
        self,
        neck: Simulation,
        layers: Simulation,
        embedding: ir.Value,
        extras: _Extras,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self._neck, self._layers, self._embedding = neck, layers, embedding
        self._extras, self._prompts = extras, prompts
        self._random = np.random.default_rng(0)

    def __call__(self, unit: Unit, made: Tensors, wanted: Tensors, sight: Sight) -> torch.Tensor:
        if unit.kind != "stage":
            return unit_loss(made, wanted, sight.size)
        mine = self._prompts[sight.index]
        count = min(AT_ONCE, len(mine))
        learning = torch.is_grad_enabled()
        chosen = self._random.choice(len(mine), count, replace=False) if learning else range(count)
        errors = []
        embeddings = [self._embedded(one[0]) for one in (made, wanted)]
        for place in chosen:
            one, two = (self._image_tokens(embedding, mine[int(place)]) for embedding in embeddings)
            errors.append(squared(one, two))
        return torch.stack(errors).mean()

    def _embedded(self, stage: torch.Tensor) -> torch.Tensor:
        (value,) = self._neck.inputs
        found: torch.Tensor = self._neck.to(stage.device)({value: stage})[0]
        return found

    def _image_tokens(self, embedding: torch.Tensor, prompt: int) -> torch.Tensor:
        extras = self._extras.of(prompt, self._layers.inputs, embedding.device)
        found: torch.Tensor = self._layers.to(embedding.device)({**extras, self._embedding: embedding})[0]
        return found


def encoder_response(
    lifted: Lifted, part: Part, reader: str | os.PathLike[str], samples: Sequence[Sample], folder: Path
) -> EncoderResponse:
    """The response of prompts to an encoder.

    Args:
        lifted, part: the float encoder. reader: file of the float decoder. samples: images of the inputs, in order.
        folder: for what the decoder reads beside the embedding.

    Raises:
        NotReconstructable: the graphs have no stages, no layers or operators without gradient.
        UserError: the two do not fit together.
    """
    stages = [unit for unit in find_units(lifted, _everything(lifted), "stage") if unit.kind == "stage"]
    outputs = lifted.model.graph.outputs
    if not stages or len(outputs) != 1 or not isinstance(part.image, ImageInput):
        raise NotReconstructable("it has no stages that end with global attention, or no single embedding")
    neck = Simulation(lifted, QuantPlan(), list(outputs), list(stages[-1].outputs), FIXED)
    _, found = Opened.of(reader, Role.DECODER)
    decoder = decoder_of(found)
    model = load_model(Path(reader))
    raise_opset(model, 8)
    simplify(model)
    theirs = lift(model)
    ops.add_functions(model)
    layers = [unit for unit in find_units(theirs, _everything(theirs), "block") if unit.kind == "two-way layer"]
    decoder.source(part.signature.outputs, decoder.where)
    if not layers or len(decoder.embeddings) != 1:
        raise NotReconstructable("its decoder has no two-way layers, or several embeddings")
    port = decoder.embeddings[0]
    embedding = next(value for value in model.graph.inputs if value.name == port.name)
    simulation = Simulation(theirs, QuantPlan(), [layers[-1].outputs[1]], [embedding], FIXED)
    if unknown := [*neck.unknown, *simulation.unknown]:
        raise NotReconstructable(f"no gradient for {', '.join(unknown)}")
    empty = np.zeros([size if isinstance(size, int) else 1 for size in outputs[0].shape or ()], np.float32)
    feeds: list[Mapping[str, np.ndarray]] = []
    prompts: list[list[int]] = []
    for sample in samples:
        shape = (sample.height, sample.width)
        prompts.append([])
        for coords, labels in islice(prompts_of(sample, Intake()), PROMPTS):
            prompts[-1].append(len(feeds))
            scaled = part.image.coords(coords, *shape)
            feeds.append(decoder.prompt((empty,), scaled[None], labels[None], None, shape))
    extras = _Extras(theirs, [value for value in simulation.inputs if value is not embedding], feeds, folder)
    return EncoderResponse(neck, simulation, embedding, extras, prompts)


class DecoderResponse:
    """Of two-way layers of a decoder. Made by `decoder_response`."""

    def __init__(
        self, lifted: Lifted, plan: QuantPlan, last: ir.Value, targets: ActivationCache, extras: _Extras
    ) -> None:
        self._lifted, self._plan, self._last = lifted, plan, last
        self._targets, self._extras = targets, extras
        self._rest: tuple[str, Simulation] | None = None

    def __call__(self, unit: Unit, made: Tensors, wanted: Tensors, sight: Sight) -> torch.Tensor:
        if unit.kind != "two-way layer":
            return unit_loss(made, wanted, sight.size)
        device = made[0].device
        if self._rest is None or self._rest[0] != unit.name:  # the plan of what follows is what it is by now
            rest = Simulation(self._lifted, self._plan, [self._last], list(unit.outputs), FIXED)
            for parameter in rest.parameters():
                parameter.requires_grad_(False)
            self._rest = unit.name, rest.to(device)
        rest = self._rest[1]
        extras = self._extras.of(sight.index, rest.inputs, device)
        given = {value: tensor for value, tensor in zip(unit.outputs, made, strict=True) if value in rest.inputs}
        (tokens,) = rest({**extras, **given})
        target = self._targets[sight.index][0].to(device)
        near = TOKENS * squared(made[0], wanted[0]) + squared(made[1], wanted[1])
        return near + squared(tokens, target)


def decoder_response(
    lifted: Lifted, plan: QuantPlan, exact_feeds: Sequence[Feed], feeds: Sequence[Feed], folder: Path
) -> DecoderResponse:
    """The response of a decoder's tokens to its layers; arguments as of `samq_onnx.reconstruct.fisher.Fisher`.

    Raises:
        NotReconstructable: it has no two-way layers and last attention, or operators without gradient.
    """
    units = [unit for unit in find_units(lifted, plan, "block") if unit.kind == "two-way layer"]
    final = next((site for site in lifted.attentions if site.kind == "decoder_final" and site.out is not None), None)
    last = None
    if final is not None and final.out is not None:
        sums = {out for node, _ in final.out.linear.output.uses() if node.op_type == "Add" for out in node.outputs}
        last = next((norm.output for norm in lifted.norms if norm.x in sums), None)
    if not units or last is None:
        raise NotReconstructable("it has no two-way layers with an attention behind them")
    beside: dict[ir.Value, None] = {}
    for unit in units:
        rest = Simulation(lifted, plan, [last], list(unit.outputs), FIXED)
        if rest.unknown:
            raise NotReconstructable(f"no gradient for {', '.join(rest.unknown)}")
        beside |= dict.fromkeys(value for value in rest.inputs if value not in unit.outputs)
    targets = ActivationCache([last.name or ""], folder)
    run(lifted.model, exact_feeds, [targets], label="response")
    return DecoderResponse(lifted, plan, last, targets, _Extras(lifted, list(beside), feeds, folder))


def _everything(lifted: Lifted) -> QuantPlan:
    """A plan that names all linears and attentions, for whoever looks for units of a float model."""
    return QuantPlan(
        linears=dict.fromkeys([linear.name for linear in lifted.linears]),  # type: ignore[arg-type]
        attentions=dict.fromkeys([site.name for site in lifted.attentions]),  # type: ignore[arg-type]
    )
