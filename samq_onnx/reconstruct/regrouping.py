# SPDX-License-Identifier: Apache-2.0
"""Channels of what a norm gives, in ever fewer groups while the unit behind it is learned (CAG, AHCPTQ, ICCV 2025).

Each channel begins with a scale s and a zero point z of its own; scales learn, and after each fifth of the iterations
channels are clustered anew, into 32, 16, 8 and then 4 groups. One tensor of codes, of step d and zero point Z, holds
them all as

    x~ = d (x / s + z - Z),   W~ = diag(s / d) W,   c~ = c + W (s (Z - z))

which is a fold into norm and linears (`samq_onnx.passes.fold.norm_affine`) and exact for any s and z. While scales
learn, the codes of W~ move along with them, as in the paper those of W stay. At each clustering they are made anew from
what the scales are by then, and roundings go on from the values they stood for. In the last tenth scales of groups stay
and the step d learns, for W~ has codes that do not move any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from samq_onnx.codes import WeightCodes
from samq_onnx.observers.weight import mse_scales, scales_for_bias, weight_scales
from samq_onnx.passes.fold import NormReaders, fold_norm_affine, norm_readers
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.reconstruct.clusters import clustered
from samq_onnx.reconstruct.drop import Dropped
from samq_onnx.reconstruct.fake_quant import FakeQuantActivation
from samq_onnx.reconstruct.rounding import AdaRoundWeight
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.reconstruct.units import Unit

__all__ = ["Regrouping", "groupable", "segments"]

NARROWEST = 1e-4  # scale of a channel, as a share of the largest: what is divided by it stays exact in float32


def segments(steps: int, counts: Sequence[int]) -> list[tuple[int, int | None]]:
    """Steps between clusterings, and into how many groups the one before them is; None: into none.

    Fifths, where there are four clusterings; the last one in two halves, of which the second has groups that stay.
    """
    share = 1 / (len(counts) + 1)
    shares = [*np.arange(1, len(counts) + 1) * share, 1 - share / 2, 1.0]
    ends = [round(steps * end) for end in shares]
    return list(zip(np.diff([0, *ends]).tolist(), [None, *counts, None], strict=True))


def groupable(lifted: Lifted, unit: Unit) -> NormReaders | None:
    """The norm whose channels a unit's linears read, shifts and scales of which fold; None if there is none."""
    inside = set(unit.nodes)
    for norm in lifted.norms:
        if norm.node in inside:
            continue
        readers = norm_readers(lifted, norm)
        if isinstance(readers, str) or readers.no_shift is not None:
            continue
        linears = readers.linears
        alike = all(linear.x is linears[0].x and linear.node in inside for linear in linears)
        if alike and linears[0].x in unit.inputs and all(linear.node.op_type != "Conv" for linear in linears):
            return readers
    return None


class _Grouped(torch.nn.Module):
    """Codes of a tensor behind channels that are scaled and shifted; ``log_factor`` are the logarithms of s."""

    labels: torch.Tensor
    point: torch.Tensor
    given: torch.Tensor

    def __init__(self, codes: torch.nn.Module, uniform: FakeQuantActivation, channels: int) -> None:
        super().__init__()
        self.codes, self.tensor_step = codes, uniform.step.item()
        self.zero = float(uniform.current().zero_point)
        self.log_factor = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("labels", torch.arange(channels))
        self.register_buffer("point", torch.zeros(channels))
        self.register_buffer("given", torch.ones(channels))

    def hold(self, scale: np.ndarray, point: np.ndarray) -> None:
        """Begin with these, one parameter for each pair that is different; float64 [channels] each."""
        device = self.log_factor.device
        pairs, labels = np.unique(np.stack([scale, point], axis=1), axis=0, return_inverse=True)
        self.log_factor = torch.nn.Parameter(torch.tensor(np.log(pairs[:, 0]), dtype=torch.float32, device=device))
        self.labels = torch.tensor(labels.reshape(-1), device=device)
        self.point = torch.tensor(point, dtype=torch.float32, device=device)
        self.given = self.scale().detach()

    def scale(self) -> torch.Tensor:
        """s of each channel."""
        return self.log_factor.exp()[self.labels]

    def moved(self) -> torch.Tensor:
        """By what weights are multiplied since `hold` [channels]; ones, but with a gradient."""
        return self.scale() / self.given

    def shift(self) -> torch.Tensor:
        """s (Z - z)."""
        return self.scale() * (self.zero - self.point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.codes(self.tensor_step * (x / self.scale() + (self.point - self.zero)))
        return made

    @property
    def step(self) -> torch.Tensor:
        """The step of the tensor."""
        return self.codes.step  # type: ignore[return-value]

    def current(self) -> object:
        """The codes as they are now."""
        return self.codes.current()  # type: ignore[operator]


class Regrouping:
    """The channels in front of a unit, which must be `groupable`.

    Args:
        inputs: what the norm gives in the float model, input by input. features: as `clustered`.
    """

    def __init__(
        self,
        lifted: Lifted,
        simulation: Simulation,
        readers: NormReaders,
        inputs: Iterable[torch.Tensor],
        features: str,
    ) -> None:
        self._lifted, self._readers, self._features = lifted, readers, features
        self._linears = [linear for linear in readers.linears if simulation.holds(linear)]
        dropped = simulation.input_codes(self._linears[0])
        assert isinstance(dropped, Dropped) and isinstance(dropped.codes, FakeQuantActivation)
        self._uniform = dropped.codes
        self._grouped = _Grouped(dropped, self._uniform, readers.channels).to(self._uniform.log_scale.device)
        self._weights: list[tuple[Linear, AdaRoundWeight, np.ndarray]] = []
        for linear in self._linears:
            weight = simulation.weight_of(linear)
            assert isinstance(weight, AdaRoundWeight)
            held = constant(linear.weight).astype(np.float64)
            self._weights.append((linear, weight, held))
            simulation.read_by(linear, self._grouped)
            weight.change = _moved(self._grouped, held.ndim, linear.out_axis)
            matrix = torch.tensor(held if linear.out_axis else held.T, dtype=torch.float32)
            assert linear.bias is not None
            simulation.change(linear.bias, _biased(self._grouped, matrix.to(self._uniform.log_scale.device)))
        lows, highs = np.zeros(readers.channels), np.zeros(readers.channels)
        count = 0
        for x in inputs:
            rows = x.flatten(0, -2).double()
            lows, highs, count = lows + rows.amin(0).numpy(), highs + rows.amax(0).numpy(), count + 1
        top = 2**self._uniform.bits - 1
        scale = (highs - lows) / count / top
        scale = np.maximum(scale, max(NARROWEST * float(scale.max()), float(np.finfo(np.float32).tiny)))
        self._settle(scale, np.rint(-lows / count / scale), first=True)
        self.fixed = False

    def cluster(self, count: int) -> None:
        """Let there be so many groups."""
        scale = self._grouped.scale().detach().cpu().double().numpy()
        scale, point = clustered(scale, self._grouped.point.cpu().double().numpy(), count, self._features)
        self._settle(scale, np.rint(point))

    def fix(self) -> None:
        """Let groups be what they are from here on."""
        self._settle(self._grouped.scale().detach().cpu().double().numpy(), self._grouped.point.cpu().double().numpy())
        self.fixed = True

    def learning(self, scales: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """Of the scales of a unit those that learn now: of groups, or in their place the step of the tensor."""
        mine, other = self._uniform.log_scale, self._grouped.log_factor
        return [scale for scale in scales if self.fixed or scale is not mine] + ([] if self.fixed else [other])

    def fold(self) -> None:
        """Put groups into the norm and the linears, whose weights are then those that have codes."""
        scale, shift = (
            one.detach().cpu().numpy().astype(np.float64) for one in (self._grouped.scale(), self._grouped.shift())
        )
        report = fold_norm_affine(self._lifted, {self._readers.norm.name: (scale / self._grouped.tensor_step, shift)})
        assert report.done

    def _settle(self, scale: np.ndarray, point: np.ndarray, first: bool = False) -> None:
        """Codes of weights for channels of these scales; roundings go on from what they stood for."""
        before = self._grouped.scale().detach().cpu().double().numpy()
        for linear, weight, held in self._weights:
            along = [1] * held.ndim
            along[1 - linear.out_axis] = -1
            soft = None if first else weight().detach().cpu().double().numpy() * (scale / before).reshape(along)
            folded = held * (scale / self._grouped.tensor_step).reshape(along)
            matrix = held if linear.out_axis else held.T
            bits = weight.current().bits
            scales = weight_scales(folded, linear.out_axis, bits, mse_scales)
            shifted = constant(linear.bias) + (scale * (self._grouped.zero - point)) @ matrix
            scales = np.maximum(scales, scales_for_bias(shifted, self._grouped.tensor_step))
            weight.restart(folded, WeightCodes(tuple(np.float32(scales).ravel().tolist()), bits), soft)
        self._grouped.hold(scale, point)


def _moved(grouped: _Grouped, rank: int, out_axis: int):  # type: ignore[no-untyped-def]
    along = [1] * rank
    along[1 - out_axis] = -1
    return lambda weight: weight * grouped.moved().reshape(along)


def _biased(grouped: _Grouped, matrix: torch.Tensor):  # type: ignore[no-untyped-def]
    return lambda bias: bias + grouped.shift() @ matrix
