# SPDX-License-Identifier: Apache-2.0
"""What is simulated is what runs: every linear and attention of SAM-Nano, on its own activations, to the last code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from samq_onnx import assets
from samq_onnx.calibrate.blocks import extract
from samq_onnx.calibrate.stream import open_block, run
from samq_onnx.calibrate.two_streams import quantized_copy
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.steps import Ranges, Select
from samq_onnx.models import load_model
from samq_onnx.passes.graph import held_constants
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, entering, find_units

TIES = 2e-2  # share of outputs that may differ: the code of one input at a tie moves a whole row of a linear
CLOSE = 2e-3  # of the deviation of an output: sums of floats, and the error function


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
    units = find_units(work.lifted, work.plan, "layer") if probabilities == "uniform" else []
    for site in work.lifted.attentions:
        inputs = tuple(entering([site.node], site.node.outputs))
        units.append(Unit(site.name, "attention", tuple(site.node.outputs), (site.node,), inputs))
    plans = [(linear.output, work.plan.linears[linear.name].output) for linear in work.linears]
    outputs = {value: codes for value, codes in plans if codes is not None}
    caches = [ActivationCache(unit.tensors, tmp_path) for unit in units]
    run(work.model, [feed], caches, label="x")
    shares = {}
    for unit, cache in zip(units, caches, strict=True):
        given = cache[0][: len(unit.inputs)]
        simulation = Simulation(work.lifted, work.plan, unit.outputs, unit.inputs, Twins(free=False))
        with torch.no_grad():
            (simulated,) = simulation(dict(zip(unit.inputs, given, strict=True)))
        alone = extract(work.model, list(unit.inputs), list(unit.outputs))
        quantized = quantized_copy(alone, work.plan, held_constants(work.model.graph))
        fed = {value.name or "": tensor.numpy() for value, tensor in zip(unit.inputs, given, strict=True)}
        (ran,) = open_block(quantized).run(None, fed)
        if unit.outputs[0] in outputs:  # of a convolution, which its readers get through codes
            ran = outputs[unit.outputs[0]].fake_quantize(ran)
        differ = np.abs(simulated.numpy() - ran) > CLOSE * ran.std()
        shares[f"{unit.kind} {unit.name}"] = float(differ.mean())
    assert not {name: share for name, share in shares.items() if share > TIES}
    assert np.median(list(shares.values())) < TIES / 10
