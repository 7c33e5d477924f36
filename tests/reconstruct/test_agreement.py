# SPDX-License-Identifier: Apache-2.0
"""What is simulated is what runs: in a block of SAM-Nano's encoder and a layer of its decoder, to the last code.

The codes of the file, as ONNX Runtime computes them, take the place of the simulated ones wherever the graph makes
some, so that each is compared behind equal codes. Only ties may differ, and are counted: the float before rounding lies
within `TIE` of the middle between two codes. The floats of both sides are float32 sums in another order, of a few
hundred terms, which differ by less than 1e-6 of their largest, and a code is at most 15: by 1.5e-5 of a step, and `TIE`
leaves room for norms and exponentials between. Codes of post-softmax maps are inside of an operator; what it gives out
tells of them, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from samq_onnx import assets
from samq_onnx.calibrate.blocks import extract
from samq_onnx.calibrate.stream import run
from samq_onnx.calibrate.two_streams import quantized_copy
from samq_onnx.codes import LogCodes, RowCodes, UniformCodes, WeightCodes
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Ranges, Select
from samq_onnx.models import load_model
from samq_onnx.passes.graph import constant, held_constants
from samq_onnx.passes.lift import Linear
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, find_units
from samq_onnx.runtime import open_session

TIE = 1e-4  # of a step, from the middle between two codes
CLOSE = 1e-5  # of the largest of an attention's outputs: double sums there, float ones here
MOST_TIES = 1e-5  # of all codes

Tensors = Mapping[ir.Value, torch.Tensor]


class Compared:
    """A simulation that goes on with the codes that ran, and counts where its own were others."""

    def __init__(self, simulation: Simulation, work: Work, ran: Mapping[str, np.ndarray]) -> None:
        self.codes = self.ties = self.rows = 0
        self.wrong: dict[str, int] = {}
        self._ran, self._ties_of_rows = ran, torch.zeros(())
        attend = simulation._attend
        for (place, role), module in simulation._modules_of.items():
            if role == "probabilities":
                module.register_forward_hook(self._probabilities)
            elif role == "weight":
                linear = next(linear for linear in work.linears if linear.weight is place)
                module.register_forward_hook(self._weights(linear, work.plan.linears[linear.name].weight))
            else:
                value = place.inputs["qkv".index(role)] if isinstance(place, ir.Node) else _value(place)
                module.register_forward_hook(self._hook(value.name or "", role))

        def attended(node: ir.Node, inputs: list[Any]) -> torch.Tensor:
            return self._attended(node.outputs[0].name or "", attend(node, inputs))

        simulation._attend = attended  # type: ignore[method-assign]

    def _hook(self, name: str, role: str) -> Any:
        def compare(module: Any, given: tuple[torch.Tensor], made: torch.Tensor) -> torch.Tensor:
            codes: UniformCodes = module.current()
            ran = torch.tensor(self._ran[_codes_name(name, codes)].astype(np.float64)).reshape(made.shape)
            exact, simulated = (one.double() / codes.scale + codes.zero_point for one in (given[0], made))
            self._count(f"{role} of {name}", exact, simulated, ran)
            return ((ran - codes.zero_point) * codes.scale).float()

        return compare

    def _weights(self, linear: Linear, codes: WeightCodes) -> Any:
        def compare(module: Any, given: tuple[()], made: torch.Tensor) -> torch.Tensor:
            weight = constant(linear.weight)
            ran = torch.tensor(codes.encode(weight, linear.out_axis).astype(np.float64))
            scale = torch.tensor(codes.scale, dtype=torch.float64).reshape(module.step.shape)
            self._count(f"weight of {linear.name}", torch.tensor(weight) / scale, made / scale, ran)
            return (ran * scale).float()

        return compare

    def _count(self, name: str, exact: torch.Tensor, simulated: torch.Tensor, ran: torch.Tensor) -> None:
        """Codes that are others, and those of them that are no ties."""
        off = (simulated - ran).abs()
        differ, tie = off > 0.5, ((exact - exact.floor() - 0.5).abs() < TIE) & (off < 1.5)
        self.codes += ran.numel()
        self.ties += int((differ & tie).sum())
        if (differ & ~tie).any():
            self.wrong[name] = int((differ & ~tie).sum())

    def _probabilities(self, module: Any, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        codes = module.current()
        p = given[0].double()
        relative = p / p.amax(-1, keepdim=True) if isinstance(codes, RowCodes) else p / codes.scale
        if isinstance(codes, LogCodes) or (isinstance(codes, RowCodes) and codes.tau):
            exact = -codes.tau * relative.clamp_min(1e-300).log2()
        else:
            exact = relative * (2**codes.bits - 1 if isinstance(codes, RowCodes) else 1)
        top = 2**codes.bits - 1
        tie = ((exact - exact.floor() - 0.5).abs() < TIE) & (exact < top + 1)
        self._ties_of_rows = tie.any(-1)

    def _attended(self, name: str, made: torch.Tensor) -> torch.Tensor:
        ran = torch.tensor(self._ran[name]).reshape(made.shape)
        differ = ((made - ran).abs() > CLOSE * ran.abs().max()).any(-1)
        self.rows += differ.numel()
        self.ties += int((differ & self._ties_of_rows).sum())
        if (differ & ~self._ties_of_rows).any():
            self.wrong[f"rows of {name}"] = int((differ & ~self._ties_of_rows).sum())
        return ran


def _value(place: Any) -> ir.Value:
    return place[0] if isinstance(place, tuple) else place  # type: ignore[no-any-return]


def _codes_name(name: str, codes: UniformCodes) -> str:
    return f"{name} {codes.scale} {codes.zero_point} {codes.bits}"


def _ran(alone: ir.Model, work: Work, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the quantized part: each tensor of codes, and what attentions give out, as ONNX Runtime makes them."""
    model = quantized_copy(alone, work.plan, held_constants(work.model.graph))
    names: dict[str, ir.Value] = {}
    for node in model.graph:
        made = node.outputs[0]
        if node.op_type == "QuantizeLinear" and not node.domain:
            x, scale, zero = node.inputs
            assert x is not None and scale is not None and zero is not None and scale.const_value is not None
            clips = [user for user, _ in made.uses() if user.op_type == "Clip"]
            bits = 8
            if clips:
                made, top = clips[0].outputs[0], clips[0].inputs[2]
                bits = int(top.const_value.numpy() + 1).bit_length() - 1  # type: ignore[union-attr]
            codes = UniformCodes(float(scale.const_value.numpy()), int(zero.const_value.numpy()), bits)  # type: ignore[union-attr]
            names[_codes_name(x.name or "", codes)] = made
        elif node.domain == "samq":
            names[made.name or ""] = made
    known = {output.name for output in model.graph.outputs}
    model.graph.outputs.extend(value for value in names.values() if value.name not in known)
    options = ort.SessionOptions()  # a Q and DQ pair that moves up through views would round what is given out
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(ir.to_proto(model).SerializeToString(), options=options)
    arrays = dict(zip([o.name for o in model.graph.outputs], session.run(None, dict(fed)), strict=True))
    return {name: arrays[value.name] for name, value in names.items()}


def _unit(units: list[Unit], part: str) -> Unit:
    kind = "block" if part == "encoder" else "two-way layer"
    return [unit for unit in units if unit.kind == kind][1 if part == "encoder" else 0]


@pytest.mark.slow
@pytest.mark.parametrize("probabilities", ["uniform", "log", "row"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_simulation_and_operators_agree(
    part: str,
    probabilities: str,
    encoder_feed: Mapping[str, np.ndarray],
    decoder_feed: Mapping[str, np.ndarray],
    tmp_path: Path,
) -> None:
    file = assets.nano_dir() / f"{part}.onnx"
    model = load_model(file)
    feed = encoder_feed if part == "encoder" else decoder_feed
    work = begin(
        Preparation(model, 4), identify(model, str(file)), [feed], Scheme(Widths(4, 4)), target="samq", label=part
    )
    work.run([Select(), Ranges("avg_minmax", "mse", probabilities)], work)
    unit = _unit(find_units(work.lifted, work.plan, "block"), part)
    cache = ActivationCache(unit.tensors, tmp_path)
    run(work.model, [feed], [cache], label="x")
    given = cache[0][: len(unit.inputs)]
    fed = {value.name or "": tensor.numpy() for value, tensor in zip(unit.inputs, given, strict=True)}
    simulation = Simulation(work.lifted, work.plan, unit.outputs, unit.inputs, Twins(free=False))
    simulation.write_back(work.plan)  # scales as float32 holds them
    ran = _ran(extract(work.model, list(unit.inputs), list(unit.outputs)), work, fed)
    compared = Compared(simulation, work, ran)
    with torch.no_grad():
        simulation(dict(zip(unit.inputs, given, strict=True)))
    assert not compared.wrong
    assert compared.codes > 1000 and compared.rows > 10
    assert compared.ties <= math.ceil(MOST_TIES * (compared.codes + compared.rows))
