# SPDX-License-Identifier: Apache-2.0
"""What the quantized tensors of a model look like: histograms, ranges of channels, keys, rows of attention maps."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows, KeySamples, State, Statistic, TensorStats, taken
from samq_onnx.calibrate.stream import run
from samq_onnx.methods.step import Feeds
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted

__all__ = ["ChannelRanges", "Observed", "observe", "weight_stats"]


class ChannelRanges(Statistic):
    """Extremes of each channel, along an axis, over everything seen.

    Attributes:
        low, high: float32 [channels].
    """

    def __init__(self, tensor: str, axis: int) -> None:
        self.tensors = (tensor,)
        self.axis = axis
        self.low = self.high = np.zeros(0, np.float32)

    def update(self, *arrays: np.ndarray) -> None:
        rows = np.moveaxis(arrays[0], self.axis, -1).reshape(-1, arrays[0].shape[self.axis])
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = np.minimum(self.low, low) if self.low.size else low
        self.high = np.maximum(self.high, high) if self.high.size else high

    def state(self) -> State:
        return {"low": self.low, "high": self.high}

    def restore(self, state: State) -> None:
        self.low, self.high = (taken(state, name, None, dtype=np.float32) for name in ("low", "high"))


@dataclasses.dataclass
class Observed:
    """Of one state of a model.

    Attributes:
        tensors: name of an activation -> its statistics. weights: name of a linear -> those of its weight.
        channels: name of a linear -> ranges of its input's channels.
        keys, rows: name of an attention -> samples of its keys, rows of its map.
    """

    tensors: dict[str, TensorStats] = dataclasses.field(default_factory=dict)
    weights: dict[str, TensorStats] = dataclasses.field(default_factory=dict)
    channels: dict[str, ChannelRanges] = dataclasses.field(default_factory=dict)
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
        found.channels[linear.name] = ChannelRanges(linear.x.name or "", 1 if convolution else -1)
        found.weights[linear.name] = weight_stats(constant(linear.weight))
    for site in lifted.attentions:
        for name in site.operand_names:
            found.tensors.setdefault(name, TensorStats(name))
        tables = [constant(table) for table in site.tables or ()]
        found.keys[site.name] = KeySamples(site.operand_names[1])
        found.rows[site.name] = AttentionRows(
            site.operand_names, scale=site.scale, tables=(tables[0], tables[1]) if tables else None
        )
    wanted: list[Statistic] = [
        *found.tensors.values(), *found.channels.values(), *found.keys.values(), *found.rows.values()
    ]  # fmt: skip
    run(lifted.model, feeds, wanted, label=label)
    return found
