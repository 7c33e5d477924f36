# SPDX-License-Identifier: Apache-2.0
"""The torch twins of codes, with parameters that learn.

Rounding passes the gradient on (straight-through); scales and zero points get the gradients of LSQ and LSQ+
(Esser et al. 2020, eq. 3; Bhalgat et al. 2020, eq. 5). Scales are held as logarithms, so that they stay positive.
Codes are made of float32, where products are narrower too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from samq_onnx.codes import HybridCodes, LogCodes, ProbabilityCodes, RowCodes, UniformCodes, WeightCodes
from samq_onnx.codes.row import row_weights

__all__ = ["FakeQuantActivation", "FakeQuantHybrid", "FakeQuantWeight", "fake_quant_probabilities"]

SMALLEST_PROBABILITY = 1e-30


class _Uniform(torch.autograd.Function):
    """(clamp(round(x / scale) + zero, low, high) - zero) * scale, as QuantizeLinear rounds, for whole ``zero``."""

    @staticmethod
    def forward(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return (x / scale).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        x, scale, zero, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x, scale, zero, output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        x, scale, zero, made = ctx.saved_tensors
        exact = x / scale + zero
        inside = (exact >= ctx.low - 0.5) & (exact <= ctx.high + 0.5)
        passed = gradient * inside
        to_scale = (gradient * torch.where(inside, made - x, made)).sum_to_size(scale.shape) / scale
        to_zero = ((passed - gradient) * scale).sum_to_size(zero.shape)
        return passed, to_scale, to_zero, None, None

    @staticmethod
    def vmap(info: Any, places: Any, x: torch.Tensor, *codes: Any) -> tuple[torch.Tensor, int]:
        """Of a batch of x; codes are the same for all."""
        return _Uniform.apply(x.movedim(places[0], 0), *codes), 0


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


class FakeQuantActivation(torch.nn.Module):
    """Per-tensor asymmetric codes; ``log_scale`` and ``zero`` learn."""

    def __init__(self, codes: UniformCodes) -> None:
        super().__init__()
        self.bits = codes.bits
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(codes.scale)))
        self.zero = torch.nn.Parameter(torch.tensor(float(codes.zero_point)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = 2**self.bits - 1
        zero = _rounded(self.zero.clamp(0, top))
        return _Uniform.apply(x.float(), self.log_scale.exp(), zero, 0, top)

    @property
    def step(self) -> torch.Tensor:
        """The scale."""
        return self.log_scale.exp()

    def current(self) -> UniformCodes:
        """The codes as they are now."""
        top = 2**self.bits - 1
        return UniformCodes(self.log_scale.exp().item(), int(self.zero.clamp(0, top).round().item()), self.bits)


class FakeQuantWeight(torch.nn.Module):
    """Symmetric codes of a weight along ``out_axis``; ``weight`` and ``log_scale`` learn, if it ``learns``."""

    def __init__(self, weight: np.ndarray, codes: WeightCodes, out_axis: int, learns: bool = True) -> None:
        super().__init__()
        self.bits, self.learns = codes.bits, learns
        self.change: Callable[[torch.Tensor], torch.Tensor] | None = None  # of the weight, before it gets codes
        shape = [1] * weight.ndim
        shape[out_axis] = len(codes.scale)
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.log_scale = torch.nn.Parameter(torch.tensor(np.log(np.array(codes.scale, np.float32))).reshape(shape))

    def forward(self) -> torch.Tensor:
        top = 2 ** (self.bits - 1)
        weight = self.weight if self.change is None else self.change(self.weight)
        return _Uniform.apply(weight, self.log_scale.exp(), torch.zeros((), device=weight.device), -top, top - 1)

    @property
    def step(self) -> torch.Tensor:
        """The scales."""
        return self.log_scale.exp()

    def current(self) -> WeightCodes:
        """The codes as they are now."""
        return WeightCodes(tuple(self.log_scale.detach().exp().ravel().tolist()), self.bits)

    def held(self) -> np.ndarray:
        """What the constant of the graph holds, which its codes round."""
        return self.weight.detach().cpu().numpy()


class FakeQuantRow(torch.nn.Module):
    """Post-softmax codes relative to the largest of their row; nothing of them learns."""

    weights: torch.Tensor

    def __init__(self, codes: RowCodes) -> None:
        super().__init__()
        self.given = codes
        if codes.tau:
            weights = torch.tensor(row_weights(codes.tau, codes.bits), dtype=torch.float32)
            self.register_buffer("weights", weights, persistent=False)

    def forward(self, p: torch.Tensor) -> torch.Tensor:
        tau, top = self.given.tau, 2**self.given.bits - 1
        with torch.no_grad():
            relative = p / p.amax(-1, keepdim=True)
            if tau:
                codes = (-tau * torch.log2(relative.clamp_min(SMALLEST_PROBABILITY))).round().clamp_max_(top)
                weights = self.weights[codes.int()]
            else:
                weights = (relative * top).round()
            coded = weights / weights.sum(-1, keepdim=True)
        return p + (coded - p).detach()

    def current(self) -> RowCodes:
        """The codes."""
        return self.given


class FakeQuantProbabilities(torch.nn.Module):
    """Post-softmax codes of one scale, log or uniform; the scale learns, tau stays."""

    def __init__(self, codes: LogCodes | UniformCodes) -> None:
        super().__init__()
        self.given = codes
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(codes.scale)))

    def forward(self, p: torch.Tensor) -> torch.Tensor:
        scale, top = self.log_scale.exp(), 2**self.given.bits - 1
        if isinstance(self.given, UniformCodes):
            return _Uniform.apply(p, scale, torch.zeros((), device=p.device), 0, top)
        tau = self.given.tau
        with torch.no_grad():
            codes = (-tau * torch.log2((p / scale).clamp_min(SMALLEST_PROBABILITY))).round().clamp(0, top)
            level = torch.exp2(-codes / tau)
        return p + (level * scale - p).detach() + level * (scale - scale.detach())

    def current(self) -> LogCodes | UniformCodes:
        """The codes as they are now."""
        scale = self.log_scale.exp().item()
        if isinstance(self.given, UniformCodes):
            return UniformCodes(scale, 0, self.given.bits)
        return LogCodes(scale, self.given.tau, self.given.bits)


def _on_grid(x: torch.Tensor, grid: UniformCodes) -> torch.Tensor:
    codes = ((x / grid.scale).round() + grid.zero_point).clamp(0, 2**grid.bits - 1)
    return (codes - grid.zero_point) * grid.scale


class FakeQuantHybrid(torch.nn.Module):
    """Hybrid codes of an activation (`samq_onnx.codes.hybrid`) on their grid; both scales learn, as logarithms.

    The gradient of s_log is that of the least uniform value and of all logarithmic ones, that of s_uni the code.
    """

    def __init__(self, codes: HybridCodes) -> None:
        super().__init__()
        self.given = codes
        self.log_scale = torch.nn.Parameter(torch.tensor([codes.log_scale, codes.uniform_scale]).log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scales, x = self.given, self.log_scale.exp(), x.float()
        with torch.no_grad():
            grid = self.current().grid
            above = _on_grid(x, grid) - codes.low
            level = (-torch.log2(above.clamp_min(SMALLEST_PROBABILITY) / scales[0])).round()
            near = torch.where(level >= codes.log_codes, 0.0, torch.exp2(-level.clamp(0, codes.log_codes - 1)))
            top = 2**codes.bits - codes.log_codes - 1
            code = ((above - scales[0]) / scales[1]).round().clamp(0, top)
            low = above <= scales[0]
            by_log, by_uniform = torch.where(low, near, 1.0), torch.where(low, 0.0, code)
            inside = (x >= codes.low) & (x <= codes.low + scales[0] + (top + 0.5) * scales[1])
        made = codes.low + by_log * scales[0] + by_uniform * scales[1]
        moved = (_on_grid(made, grid) - made).detach()
        passed = x * inside
        return made + moved + passed - passed.detach()

    @property
    def step(self) -> torch.Tensor:
        """The scale of the grid."""
        return torch.tensor(self.current().grid.scale, device=self.log_scale.device)

    def current(self) -> HybridCodes:
        """The codes as they are now."""
        log_scale, uniform_scale = self.log_scale.detach().exp().tolist()
        return dataclasses.replace(self.given, log_scale=log_scale, uniform_scale=uniform_scale)


class FakeQuantFixed(torch.nn.Module):
    """Post-softmax codes of any kind by their own arithmetic in numpy; nothing of them learns."""

    def __init__(self, codes: ProbabilityCodes) -> None:
        super().__init__()
        self.given = codes

    def forward(self, p: torch.Tensor) -> torch.Tensor:
        coded = torch.from_numpy(self.given.fake_quantize(p.detach().cpu().numpy())).to(p)
        return p + (coded - p).detach()

    def current(self) -> ProbabilityCodes:
        """The codes."""
        return self.given


def fake_quant_probabilities(codes: ProbabilityCodes) -> torch.nn.Module:
    """The twin of post-softmax codes."""
    if isinstance(codes, RowCodes):
        return FakeQuantRow(codes)
    if isinstance(codes, (LogCodes, UniformCodes)):
        return FakeQuantProbabilities(codes)
    return FakeQuantFixed(codes)
