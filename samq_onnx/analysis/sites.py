# SPDX-License-Identifier: Apache-2.0
"""One site of a lifted graph alone: its output in float, with some of its tensors through their codes and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from samq_onnx.calibrate.statistics import row_probabilities
from samq_onnx.calibrate.stream import open_block
from samq_onnx.codes import ProbabilityCodes
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.runtime import run_session

__all__ = ["AttentionRun", "LinearRun", "SiteCodes", "SiteRun", "attention_through_codes", "site_runs"]

OPERANDS = ("q", "k", "v")
ROWS = 1 << 22  # entries of a map that are held at once

SiteCodes: TypeAlias = LinearPlan | AttentionPlan


class SiteRun(Protocol):
    """A linear or an attention.

    Attributes:
        name: of the site. inputs: names of the tensors that it reads. output: of the one that it makes.
    """

    name: str
    inputs: tuple[str, ...]
    output: str

    def roles(self, codes: SiteCodes) -> tuple[str, ...]:
        """What of the site has codes."""
        ...

    def run(self, arrays: Sequence[np.ndarray], codes: SiteCodes, roles: Collection[str]) -> np.ndarray:
        """The output for ``inputs``, float32, the tensors of these roles quantized and all others in float."""
        ...


def _session_model(lifted: Lifted, inputs: Sequence[ir.Value], output: ir.Value) -> ir.Model:
    graph = ir.convenience.extract(lifted.model.graph, inputs, [output])
    graph.opset_imports.update(lifted.model.opset_imports)
    for value in (*graph.inputs, *graph.outputs):
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    functions = [function.clone() for function in lifted.model.functions.values()]
    return ir.Model(graph, ir_version=lifted.model.ir_version, functions=functions)


class LinearRun:
    """A linear: roles ``input``, ``weight`` (its bias goes with it) and ``output``.

    Args:
        rounded: constants that a method moved so that they quantize well, by name: what the weight codes are of.
    """

    def __init__(self, lifted: Lifted, linear: Linear, rounded: Mapping[str, np.ndarray]) -> None:
        self.name = linear.name
        self.inputs: tuple[str, ...] = (linear.x.name or "",)
        self.output = linear.output.name or ""
        self._axis = linear.out_axis
        self._held = {value.name or "": constant(value) for value in (linear.weight, linear.bias) if value is not None}
        self._weight = linear.weight.name or ""
        self._rounded = {name: rounded.get(name, array) for name, array in self._held.items()}
        model = _session_model(lifted, [linear.x], linear.output)
        for name in self._held:
            value = model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
        self._session = open_block(model, gives_back=True)

    def roles(self, codes: SiteCodes) -> tuple[str, ...]:
        assert isinstance(codes, LinearPlan)
        return ("input", "weight", *(["output"] if codes.output is not None else []))

    def run(self, arrays: Sequence[np.ndarray], codes: SiteCodes, roles: Collection[str]) -> np.ndarray:
        assert isinstance(codes, LinearPlan)
        x = arrays[0]
        if "input" in roles:
            x = (codes.input.fake_quantize(x) if codes.hybrid is None else codes.hybrid.on_grid(x)).astype(np.float32)
        held = self._held
        if "weight" in roles:
            stored = codes.weight.encode(self._rounded[self._weight], self._axis)
            held = {**self._rounded, self._weight: codes.weight.decode(stored, self._axis)}
        made: np.ndarray = run_session(self._session, {self.inputs[0]: x, **held}, self.name, [self.output])[0]
        if "output" in roles and codes.output is not None:
            made = codes.output.fake_quantize(made).astype(np.float32)
        return made


class AttentionRun:
    """An attention: roles ``q``, ``k``, ``v`` and ``probabilities``."""

    def __init__(self, lifted: Lifted, site: AttentionSite) -> None:
        self.name = site.name
        self.inputs: tuple[str, ...] = site.operand_names
        self.output = site.node.outputs[0].name or ""
        self._scale = site.scale
        self._tables, self._bias = site.held_tables, site.held_bias
        operands = [value for value in site.node.inputs[:3] if value is not None]
        model = _session_model(lifted, list(dict.fromkeys(operands)), site.node.outputs[0])
        self._session = open_block(model, gives_back=True)

    def roles(self, codes: SiteCodes) -> tuple[str, ...]:
        return (*OPERANDS, "probabilities")

    def run(self, arrays: Sequence[np.ndarray], codes: SiteCodes, roles: Collection[str]) -> np.ndarray:
        assert isinstance(codes, AttentionPlan)
        q, k, v = (
            getattr(codes, role).fake_quantize(array).astype(np.float32) if role in roles else array
            for role, array in zip(OPERANDS, arrays, strict=True)
        )
        if "probabilities" in roles or len(set(self.inputs)) < len(self.inputs):  # one tensor, of several roles
            chosen = codes.probabilities if "probabilities" in roles else None
            return attention_through_codes(q, k, v, self._scale, self._tables, chosen, self._bias)
        feed = dict(zip(self.inputs, (q, k, v), strict=True))
        made: np.ndarray = run_session(self._session, feed, self.name, [self.output])[0]
        return made


def attention_through_codes(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    tables: tuple[np.ndarray, np.ndarray] | None,
    codes: ProbabilityCodes | None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Attention whose post-softmax map goes through codes and back, some rows of it at a time.

    Args:
        q, k, v: float32 [..., M or N, d]. tables: of relative position, or None. codes: of the map; None leaves it.
        bias: [G, M, N], or None.
    """
    queries, keys, values = (array.reshape(-1, *array.shape[-2:]) for array in (q, k, v))
    maps, count = queries.shape[:2]
    made = np.empty((maps, count, values.shape[2]), np.float32)
    step = max(1, ROWS // keys.shape[1])
    for index in range(maps):
        part = slice(index, index + 1)
        for start in range(0, count, step):
            rows = np.arange(start, min(start + step, count))[None]
            entries = np.array([index])
            p = row_probabilities(queries[part, rows[0]], keys[part], rows, scale, tables, bias, entries)
            made[part, rows[0]] = (p if codes is None else codes.fake_quantize(p).astype(np.float32)) @ values[part]
    return made.reshape(*q.shape[:-1], v.shape[-1])


def site_runs(
    lifted: Lifted, plan: QuantPlan, rounded: Mapping[str, np.ndarray], only: Collection[str] | None = None
) -> dict[str, SiteRun]:
    """All quantized sites of a plan, or those of some names, in graph order; ``rounded`` as in `LinearRun`."""
    wanted = {*plan.linears, *plan.attentions} if only is None else set(only)
    made: dict[str, SiteRun] = {}
    for linear in lifted.linears:
        if linear.name in wanted:
            made[linear.name] = LinearRun(lifted, linear, rounded)
    for site in lifted.attentions:
        if site.name in wanted:
            made[site.name] = AttentionRun(lifted, site)
    return made
