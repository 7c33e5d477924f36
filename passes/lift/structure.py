# SPDX-License-Identifier: Apache-2.0
"""What lifting finds in a graph: linears, attention sites with their projections, norms and activations."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import constant

__all__ = ["AttentionSite", "Gelu", "Lifted", "Linear", "Norm", "Projection"]


@dataclasses.dataclass
class Linear:
    """y = W x + b with constant W (and b).

    Attributes:
        node: the MatMul, Gemm or Conv.
        bias_node: the Add of a separate bias, or None.
        x: input. weight: constant. bias: constant [out] or None. output: after the bias.
        out_axis: axis of ``weight`` that counts output channels.
        fill: constant [1, out], the row that the output is padded with (`passes.lift.padding`), or None.
    """

    node: ir.Node
    bias_node: ir.Node | None
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value
    out_axis: int
    fill: ir.Value | None = None

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def out_features(self) -> int:
        return int(constant(self.weight).shape[self.out_axis])

    @property
    def in_features(self) -> int:
        return constant(self.weight).size // self.out_features


@dataclasses.dataclass
class Projection:
    """The linear that makes an attention operand, or that reads the attention's output.

    Attributes:
        channels: int64 [heads, d], the output channel of each head and coordinate; of the linear that reads the
            output, its input channels.
        pooled: whether each channel is pooled by maximum on the way, so that only edits that keep the order of its
            values, by factors above 0 and shifts, may be made before instead of behind.
    """

    linear: Linear
    channels: np.ndarray
    pooled: bool = False


@dataclasses.dataclass
class AttentionSite:
    """An attention, outlined as one node of the samq domain.

    Attributes:
        node: ``Attention``, ``AttentionRelPos`` or ``AttentionBias``, of q, k, v and the tables or the bias.
        q, k, v: the projections behind the operands, None where they could not be traced.
        out: the projection that reads the output, its ``channels`` those of its input, None where there is no such one.
        tables: constants [Hq, Hk, d] and [Wq, Wk, d] of the decomposed relative position, or None.
        bias: constant [G, M, N] or None; entry b of the flattened batch gets bias[b % G].
    """

    node: ir.Node
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None
    out: Projection | None = None
    tables: tuple[ir.Value, ir.Value] | None = None
    bias: ir.Value | None = None

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def operand_names(self) -> tuple[str, str, str]:
        """Names of q, k and v, as the attention reads them."""
        q, k, v = (value.name if value is not None else None for value in self.node.inputs[:3])
        assert q and k and v
        return q, k, v

    @property
    def kind(self) -> str:
        return self.node.attributes["kind"].as_string()

    @property
    def held_tables(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the tables hold now."""
        return (constant(self.tables[0]), constant(self.tables[1])) if self.tables is not None else None

    @property
    def held_bias(self) -> np.ndarray | None:
        """What the bias holds now."""
        return constant(self.bias) if self.bias is not None else None

    @property
    def scale(self) -> float:
        return self.node.attributes["scale"].as_float()

    @property
    def heads(self) -> int:
        return len(self._channels())

    @property
    def head_dim(self) -> int:
        return int(self._channels().shape[1])

    def _channels(self) -> np.ndarray:
        projection = self.q or self.k or self.v
        return projection.channels if projection is not None else np.zeros((0, 0), np.int64)


@dataclasses.dataclass
class Norm:
    """LayerNorm over ``axis``: output = (x - mean) / sqrt(var + epsilon) * scale + bias."""

    node: ir.Node
    x: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    output: ir.Value
    axis: int
    epsilon: float

    @property
    def name(self) -> str:
        return self.node.name or ""


@dataclasses.dataclass
class Gelu:
    """output = x * Phi(x), in whatever spelling."""

    x: ir.Value
    output: ir.Value


@dataclasses.dataclass
class Lifted:
    """A model and everything lifting found in it, in graph order; ``refused`` holds one sentence for each thing it left
    alone."""

    model: ir.Model
    attentions: list[AttentionSite] = dataclasses.field(default_factory=list)
    linears: list[Linear] = dataclasses.field(default_factory=list)
    norms: list[Norm] = dataclasses.field(default_factory=list)
    gelus: list[Gelu] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
