# SPDX-License-Identifier: Apache-2.0
"""What the quantized tensors of a model look like: histograms, ranges of channels, keys, rows of attention maps."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows, ChannelRange, KeySamples, Statistic, TensorStats
from samq_onnx.calibrate.stream import run
from samq_onnx.methods.step import Feeds
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted

__all__ = ["Observed", "observe", "weight_stats"]


@dataclasses.dataclass
class Observed:
    """Of one state of a model.

    Attributes:
        tensors: name of an activation -> its statistics. weights: name of a linear -> those of its weight.
        channels: name of a linear or an attention -> role -> ranges of its channels; the role is ``input``, or ``q``,
            ``k`` or ``v`` where a linear makes it.
        keys, rows: name of an attention -> samples of its keys, rows of its map.
    """

    tensors: dict[str, TensorStats] = dataclasses.field(default_factory=dict)
    weights: dict[str, TensorStats] = dataclasses.field(default_factory=dict)
    channels: dict[str, dict[str, ChannelRange]] = dataclasses.field(default_factory=dict)
    keys: dict[str, KeySamples] = dataclasses.field(default_factory=dict)
    rows: dict[str, AttentionRows] = dataclasses.field(default_factory=dict)


def weight_stats(weight: np.ndarray) -> TensorStats:
    """Statistics of an array that is there as a whole."""
    stats = TensorStats("weight")
    stats.update(weight)
    return stats


def observe(lifted: Lifted, feeds: Feeds, *, label: str) -> Observed:
    """Run a lifted float model over some inputs and look at whatever may have codes."""
    found = Observed()
    for linear in lifted.linears:
        convolution = linear.node.op_type == "Conv"
        for value in (linear.x, *([linear.output] if convolution else [])):
            found.tensors.setdefault(value.name or "", TensorStats(value.name or ""))
        found.channels[linear.name] = {"input": ChannelRange(linear.x.name or "", axis=1 if convolution else -1)}
        found.weights[linear.name] = weight_stats(constant(linear.weight))
    made: dict[str, ChannelRange] = {}
    for site in lifted.attentions:
        found.channels[site.name] = {
            role: made.setdefault(name, ChannelRange(name))
            for role, projection in (("q", site.q), ("k", site.k), ("v", site.v))
            if projection is not None and (name := projection.linear.output.name)
        }
        for name in site.operand_names:
            found.tensors.setdefault(name, TensorStats(name))
        found.keys[site.name] = KeySamples(site.operand_names[1])
        found.rows[site.name] = AttentionRows(
            site.operand_names, scale=site.scale, tables=site.held_tables, bias=site.held_bias
        )
    wanted: list[Statistic] = [
        *found.tensors.values(), *found.keys.values(), *found.rows.values(), *made.values(),
        *(found.channels[linear.name]["input"] for linear in lifted.linears),
    ]  # fmt: skip
    run(lifted.model, feeds, wanted, label=label)
    return found
