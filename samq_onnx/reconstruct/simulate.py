# SPDX-License-Identifier: Apache-2.0
"""The quantized part of a lifted graph as a torch module that computes with the codes of a plan.

The part reaches from the first quantized nodes, or from given values, to the wanted outputs. What enters it is not
computed here: it is the module's input. What learns in it is up to its twins of codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch

from samq_onnx.codes import HybridCodes, ProbabilityCodes, UniformCodes, WeightCodes
from samq_onnx.observers.weight import scales_for_bias
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import constant, is_constant, replace_constant
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.reconstruct.fake_quant import (
    FakeQuantActivation,
    FakeQuantHybrid,
    FakeQuantWeight,
    fake_quant_probabilities,
)
from samq_onnx.reconstruct.rounding import AdaRoundWeight
from samq_onnx.reconstruct.torch_ops import OPERATORS, attention_logits
from samq_onnx.reconstruct.units import between, entering

__all__ = ["Simulation", "Twins"]

OPERANDS = ("q", "k", "v")

Kind = TypeVar("Kind", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class Twins:
    """How the codes of a plan stand in torch, and what learns of the rest.

    Attributes:
        rounds: weights learn which of two codes they take (`AdaRoundWeight`), rather than where they lie.
        wrap: is put around the codes of activations and post-softmax maps.
        free: whether biases, norms and the weights of float layers learn.
        fixed: weights that do not.
    """

    rounds: bool = False
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda codes: codes
    free: bool = True
    fixed: frozenset[ir.Value] = frozenset()


class Simulation(torch.nn.Module):
    """The graph between ``given`` values, or the first quantized nodes of ``plan``, and ``outputs``.

    Args:
        given: values that are not computed here even where the graph does; None: all from the first quantized node on.
        twins: what learns.
        exact: name of a weight -> what it holds in the float model, where ``lifted`` holds something else by now.
        also: nodes that it computes too, where they lie before all others.

    Attributes:
        inputs: values that enter, in a fixed order; ``forward`` takes their tensors by value.
        unknown: operators of the part that have no torch version here; if any, it cannot run.
    """

    def __init__(
        self,
        lifted: Lifted,
        plan: QuantPlan,
        outputs: Sequence[ir.Value],
        given: Sequence[ir.Value] | None = None,
        twins: Twins | None = None,
        exact: Mapping[str, np.ndarray] | None = None,
        also: Sequence[ir.Node] = (),
    ) -> None:
        super().__init__()
        twins, exact = twins or Twins(), exact or {}
        self._twins = twins
        self.outputs = list(outputs)
        linears = {linear.node: linear for linear in lifted.linears if linear.name in plan.linears}
        sites = {site.node: site for site in lifted.attentions if site.name in plan.attentions}
        first = [*linears, *sites] if given is None else [node for value in given for node, _ in value.uses()]
        self.nodes = between(lifted.model.graph, [*first, *also], outputs, given or ())
        self.unknown = sorted({n.op_type for n in self.nodes if n.domain != DOMAIN and n.op_type not in OPERATORS})
        inside = set(self.nodes)
        self.inputs = entering(self.nodes, outputs, given or ())
        read = dict.fromkeys(value for node in self.nodes for value in node.inputs if value is not None)
        self._linears = {node: linear for node, linear in linears.items() if node in inside}
        self._sites = {node: site for node, site in sites.items() if node in inside}
        self._biased = {
            linear.bias_node or node: ((linear.bias_node or node).inputs.index(linear.bias), linear)
            for node, linear in self._linears.items()
            if linear.bias is not None
        }
        self._modules_of: dict[tuple[object, str], torch.nn.Module] = {}
        self._of_input: dict[ir.Node, torch.nn.Module] = {}
        self._constants: dict[ir.Value, torch.Tensor | str] = {}
        self._free: dict[ir.Value, torch.nn.Parameter] = {}
        self._changes: dict[ir.Value, Callable[[torch.Tensor], torch.Tensor]] = {}
        for node, linear in self._linears.items():
            codes = plan.linears[linear.name]
            key = linear.x, codes.input, codes.hybrid
            self._of_input[node] = self._hold(key, "input", self._activation, codes.hybrid or codes.input)
            self._hold(linear.weight, "weight", self._weight, linear, codes.weight, exact)
            if codes.output is not None:
                self._hold(linear.output, "output", self._activation, codes.output)
        for node, site in self._sites.items():
            operands = plan.attentions[site.name]
            for name in OPERANDS:
                self._hold(node, name, self._activation, getattr(operands, name))
            self._hold(node, "probabilities", self._probabilities, operands.probabilities)
        learning = {value for linear in lifted.linears for value in (linear.weight, linear.bias)}
        learning |= {value for norm in lifted.norms for value in (norm.scale, norm.bias)}
        for value in read:
            if value.const_value is None or (value, "weight") in self._modules_of or value in self.inputs:
                continue
            array = torch.tensor(value.const_value.numpy())
            if twins.free and value in learning and is_constant(value) and not value.is_graph_output():
                self._free[value] = torch.nn.Parameter(array)
                self.register_parameter(f"free{len(self._free)}", self._free[value])
            elif array.is_floating_point():
                self._constants[value] = f"constant{len(self._constants)}"
                self.register_buffer(f"constant{len(self._constants) - 1}", array)
            else:
                self._constants[value] = array  # of shapes and places, which are read here

    def _activation(self, codes: UniformCodes | HybridCodes) -> torch.nn.Module:
        made = FakeQuantHybrid(codes) if isinstance(codes, HybridCodes) else FakeQuantActivation(codes)
        return self._twins.wrap(made)

    def _probabilities(self, codes: ProbabilityCodes) -> torch.nn.Module:
        return self._twins.wrap(fake_quant_probabilities(codes))

    def _weight(self, linear: Linear, codes: WeightCodes, exact: Mapping[str, np.ndarray]) -> torch.nn.Module:
        held = constant(linear.weight)
        fixed = linear.weight in self._twins.fixed
        if not self._twins.rounds or fixed:
            return FakeQuantWeight(held, codes, linear.out_axis, learns=not fixed)
        given = codes.encode(held, linear.out_axis)
        return AdaRoundWeight(exact.get(linear.weight.name or "", held), codes, linear.out_axis, given)

    def _hold(
        self, key: object, role: str, make: Callable[..., torch.nn.Module], *arguments: object
    ) -> torch.nn.Module:
        if (key, role) not in self._modules_of:
            module = make(*arguments)
            self._modules_of[key, role] = module
            self.add_module(f"codes{len(self._modules_of)}", module)
        return self._modules_of[key, role]

    @property
    def work(self) -> int:
        """MACs of the linears for one input, as far as shapes are static."""
        total = 0
        for linear in self._linears.values():
            sizes = linear.output.shape or ()
            made = math.prod(size for size in sizes if isinstance(size, int))
            total += made * linear.in_features
        return total

    def kinds(self, kind: type[Kind]) -> Iterator[Kind]:
        """Its modules of a class, in the order of the graph."""
        return (module for module in self.modules() if isinstance(module, kind))

    def change(self, value: ir.Value, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Compute with ``change`` of what a constant holds."""
        self._changes[value] = change

    def weight_of(self, linear: Linear) -> torch.nn.Module:
        """The module of a quantized linear's weight."""
        return self._modules_of[linear.weight, "weight"]

    def input_codes(self, linear: Linear) -> torch.nn.Module:
        """The module of what a quantized linear reads."""
        return self._of_input[linear.node]

    def read_by(self, linear: Linear, codes: torch.nn.Module) -> None:
        """Let a quantized linear read through another module."""
        self.add_module(f"input of {linear.name}".replace(".", "/"), codes)
        self._of_input[linear.node] = codes

    def holds(self, linear: Linear) -> bool:
        """Whether it is a quantized linear of this part."""
        return linear.node in self._linears

    def weights(self) -> list[torch.nn.Parameter]:
        """Weights, biases and norms."""
        return [*self._free.values(), *(module.weight for module in self.kinds(FakeQuantWeight))]

    def log_scales(self) -> list[torch.nn.Parameter]:
        """Logarithms of all scales."""
        return [module.log_scale for module in self.modules() if hasattr(module, "log_scale")]  # type: ignore[misc]

    def zeros(self) -> list[torch.nn.Parameter]:
        """Zero points of all activations."""
        return [module.zero for module in self.kinds(FakeQuantActivation)]

    def forward(
        self, tensors: Mapping[ir.Value, torch.Tensor], wanted: Sequence[ir.Value] | None = None
    ) -> list[torch.Tensor]:
        """The outputs, or other ``wanted`` values."""
        return self.compute(self.nodes, tensors, self.outputs if wanted is None else wanted)

    def compute(
        self, nodes: Sequence[ir.Node], tensors: Mapping[ir.Value, torch.Tensor], wanted: Sequence[ir.Value]
    ) -> list[torch.Tensor]:
        """What some of its nodes, in graph order, make of values that they read."""
        known: dict[ir.Value, torch.Tensor] = dict(self._free)
        for value, held in self._constants.items():
            known[value] = getattr(self, held) if isinstance(held, str) else held
        for value, change in self._changes.items():
            known[value] = change(known[value])
        known.update(tensors)
        codes, given = self._modules_of, set(tensors)
        for node in nodes:
            inputs = [None if v is None else known[v] if v in known else codes[v, "weight"]() for v in node.inputs]
            if node in self._biased:
                place, linear = self._biased[node]
                inputs[place] = self._rounded_bias(linear, inputs[place])
            if node in self._linears:
                inputs[0] = self._of_input[node](inputs[0])
            made = self._attend(node, inputs) if node.domain == DOMAIN else OPERATORS[node.op_type](node, inputs)
            for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
                if value not in given:
                    quantized = codes.get((value, "output"))
                    known[value] = tensor if quantized is None else quantized(tensor)
        return [known[value] for value in wanted]

    def _rounded_bias(self, linear: Linear, bias: Any) -> torch.Tensor:
        """A bias in units of both scales, as sums of integers take it; the gradient of the rounding is one."""
        with torch.no_grad():
            of_input: torch.Tensor = self._of_input[linear.node].step  # type: ignore[assignment]
            of_weight: torch.Tensor = self._modules_of[linear.weight, "weight"].step  # type: ignore[assignment]
            unit = of_input * of_weight.flatten()
            moved = (bias / unit).round() * unit - bias
        made: torch.Tensor = bias + moved
        return made

    def product(self, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        """What a quantized matrix product makes of rows [rows, in]."""
        weight = self._modules_of[linear.weight, "weight"]()
        made: torch.Tensor = self._of_input[linear.node](x) @ (weight if linear.out_axis else weight.t())
        return made if linear.bias is None else made + self._rounded_bias(linear, self._held_constant(linear.bias))

    def padding(self, linear: Linear, like: torch.Tensor) -> torch.Tensor:
        """The row [out] that its output is padded with; zeros where it is not."""
        return like.new_zeros(like.shape[-1]) if linear.fill is None else self._held_constant(linear.fill).reshape(-1)

    def _held_constant(self, value: ir.Value) -> torch.Tensor:
        held = self._constants.get(value)
        found: torch.Tensor = (
            self._free[value] if held is None else getattr(self, held) if isinstance(held, str) else held
        )
        return self._changes[value](found) if value in self._changes else found

    def attend(
        self, site: AttentionSite, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """An attention of this part on some of its queries, those at ``places``; operands [windows, heads, n, d]."""
        tables = [self._held_constant(table) for table in site.tables or ()]
        return self._attention(site.node, q, k, v, lambda q, k: attention_logits(site.node, q, k, tables, places))

    def _attend(self, node: ir.Node, inputs: Sequence[Any]) -> torch.Tensor:
        q, k, v, *terms = inputs
        return self._attention(node, q, k, v, lambda q, k: attention_logits(node, q, k, terms))

    def _attention(
        self,
        node: ir.Node,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        if node not in self._sites:
            return logits(q, k).softmax(-1) @ v
        q, k, v = (self._modules_of[node, name](x) for name, x in zip(OPERANDS, (q, k, v), strict=True))
        made: torch.Tensor = self._modules_of[node, "probabilities"](logits(q, k).softmax(-1)) @ v
        return made

    def write_back(self, plan: QuantPlan) -> None:
        """Put what was learned into the constants of the graph and into the plan."""
        codes = self._modules_of
        for value, parameter in self._free.items():
            replace_constant(value, parameter.detach().cpu().numpy())
        for node, linear in self._linears.items():
            output, weight = codes.get((linear.output, "output")), codes[linear.weight, "weight"]
            learned = self._of_input[node].current()  # type: ignore[operator]
            hybrid = learned if plan.linears[linear.name].hybrid is not None else None
            plan.linears[linear.name] = LinearPlan(
                learned if hybrid is None else hybrid.grid,
                _held_codes(linear, weight, learned.grid.scale if hybrid is not None else learned.scale),
                output.current() if output is not None else None,  # type: ignore[operator]
                hybrid,
            )
            replace_constant(linear.weight, weight.held())  # type: ignore[operator]
        for node, site in self._sites.items():
            q, k, v, p = (codes[node, name].current() for name in (*OPERANDS, "probabilities"))  # type: ignore[operator]
            plan.attentions[site.name] = AttentionPlan(q, k, v, p)


def _held_codes(linear: Linear, weight: torch.nn.Module, input_scale: float) -> WeightCodes:
    """Codes of a weight, with scales that its bias has room for; such as are too small are of rows of zeros."""
    found: WeightCodes = weight.current()  # type: ignore[operator]
    if linear.bias is None:
        return found
    needed = scales_for_bias(constant(linear.bias), input_scale)
    scales = np.maximum(found.scale, needed if len(found.scale) > 1 else needed.max())
    return dataclasses.replace(found, scale=tuple(np.float32(scales).ravel().tolist()))
