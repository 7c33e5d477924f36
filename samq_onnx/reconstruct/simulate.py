# SPDX-License-Identifier: Apache-2.0
"""The quantized part of a lifted graph as a torch module that computes with the codes of a plan.

The part reaches from the first quantized nodes to the wanted outputs. What enters it is not computed here: it is
the module's input. All weights, biases and norms in the part learn, of quantized and of float layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import constant, is_constant, replace_constant
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.reconstruct.fake_quant import FakeQuantActivation, FakeQuantWeight, fake_quant_probabilities
from samq_onnx.reconstruct.torch_ops import OPERATORS, attention_logits

__all__ = ["Simulation"]

OPERANDS = ("q", "k", "v")


def _part(graph: ir.Graph, first: Iterable[ir.Node], outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """Nodes on the ways from ``first`` to ``outputs``, in graph order."""
    reached = set(first)
    for node in graph:
        if any(before in reached for before in node.predecessors()):
            reached.add(node)
    needed: set[ir.Node] = set()
    pending = [value.producer() for value in outputs]
    while pending:
        maker = pending.pop()
        if maker is not None and maker in reached and maker not in needed:
            needed.add(maker)
            pending.extend(maker.predecessors())
    return [node for node in graph if node in needed]


class Simulation(torch.nn.Module):
    """The graph between the quantized nodes of ``plan`` and ``outputs``.

    Attributes:
        inputs: values that enter, in a fixed order; ``forward`` takes their tensors by value.
        unknown: operators of the part that have no torch version here; if any, it cannot run.
    """

    def __init__(self, lifted: Lifted, plan: QuantPlan, outputs: Sequence[ir.Value]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        linears = {linear.node: linear for linear in lifted.linears if linear.name in plan.linears}
        sites = {site.node: site for site in lifted.attentions if site.name in plan.attentions}
        self.nodes = _part(lifted.model.graph, [*linears, *sites], outputs)
        self.unknown = sorted({n.op_type for n in self.nodes if n.domain != DOMAIN and n.op_type not in OPERATORS})
        inside = set(self.nodes)
        made = {value for node in self.nodes for value in node.outputs}
        read = dict.fromkeys(value for node in self.nodes for value in node.inputs if value is not None)
        self.inputs = [value for value in read if value not in made and value.const_value is None]
        self._linears = {node: linear for node, linear in linears.items() if node in inside}
        self._sites = {node: site for node, site in sites.items() if node in inside}
        self._modules_of: dict[tuple[ir.Value | ir.Node, str], torch.nn.Module] = {}
        self._constants: dict[ir.Value, torch.Tensor] = {}
        self._free: dict[ir.Value, torch.nn.Parameter] = {}
        for linear in self._linears.values():
            codes = plan.linears[linear.name]
            self._hold(linear.x, "input", FakeQuantActivation(codes.input))
            self._hold(linear.weight, "weight", FakeQuantWeight(constant(linear.weight), codes.weight, linear.out_axis))
            if codes.output is not None:
                self._hold(linear.output, "output", FakeQuantActivation(codes.output))
        for node, site in self._sites.items():
            operands = plan.attentions[site.name]
            for name in OPERANDS:
                self._hold(node, name, FakeQuantActivation(getattr(operands, name)))
            self._hold(node, "probabilities", fake_quant_probabilities(operands.probabilities))
        learning = {value for linear in lifted.linears for value in (linear.weight, linear.bias)}
        learning |= {value for norm in lifted.norms for value in (norm.scale, norm.bias)}
        for value in read:
            if value.const_value is None or (value, "weight") in self._modules_of:
                continue
            array = torch.tensor(value.const_value.numpy())
            if value in learning and is_constant(value) and not value.is_graph_output():
                self._free[value] = torch.nn.Parameter(array)
                self.register_parameter(f"free{len(self._free)}", self._free[value])
            else:
                self._constants[value] = array

    def _hold(self, key: ir.Value | ir.Node, role: str, module: torch.nn.Module) -> None:
        if (key, role) not in self._modules_of:
            self._modules_of[key, role] = module
            self.add_module(f"codes{len(self._modules_of)}", module)

    @property
    def work(self) -> int:
        """MACs of the linears for one input, as far as shapes are static."""
        total = 0
        for linear in self._linears.values():
            sizes = linear.output.shape or ()
            made = math.prod(size for size in sizes if isinstance(size, int))
            total += made * linear.in_features
        return total

    def weights(self) -> list[torch.nn.Parameter]:
        """Weights, biases and norms."""
        return [*self._free.values(), *(m.weight for m in self._modules_of.values() if isinstance(m, FakeQuantWeight))]

    def log_scales(self) -> list[torch.nn.Parameter]:
        """Logarithms of all scales."""
        found = (getattr(module, "log_scale", None) for module in self._modules_of.values())
        return [scale for scale in found if scale is not None]

    def zeros(self) -> list[torch.nn.Parameter]:
        """Zero points of all activations."""
        return [module.zero for module in self._modules_of.values() if isinstance(module, FakeQuantActivation)]

    def forward(self, tensors: Mapping[ir.Value, torch.Tensor]) -> list[torch.Tensor]:
        known: dict[ir.Value, torch.Tensor] = {**self._constants, **self._free, **tensors}
        codes = self._modules_of
        for node in self.nodes:
            inputs = [None if v is None else known[v] if v in known else codes[v, "weight"]() for v in node.inputs]
            if node in self._linears:
                linear = self._linears[node]
                inputs[0] = codes[linear.x, "input"](inputs[0])
            made = self._attend(node, inputs) if node.domain == DOMAIN else OPERATORS[node.op_type](node, inputs)
            for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
                quantized = codes.get((value, "output"))
                known[value] = tensor if quantized is None else quantized(tensor)
        return [known[value] for value in self.outputs]

    def _attend(self, node: ir.Node, inputs: Sequence[Any]) -> torch.Tensor:
        q, k, v, *terms = inputs
        if node not in self._sites:
            return attention_logits(node, q, k, terms).softmax(-1) @ v
        q, k, v = (self._modules_of[node, name](x) for name, x in zip(OPERANDS, (q, k, v), strict=True))
        p = attention_logits(node, q, k, terms).softmax(-1)
        return self._modules_of[node, "probabilities"](p) @ v

    def write_back(self, plan: QuantPlan) -> None:
        """Put what was learned into the constants of the graph and into the plan."""
        codes = self._modules_of
        for (key, role), module in codes.items():
            if isinstance(module, FakeQuantWeight) and role == "weight":
                assert isinstance(key, ir.Value)
                replace_constant(key, module.weight.detach().numpy())
        for value, parameter in self._free.items():
            replace_constant(value, parameter.detach().numpy())
        for linear in self._linears.values():
            output = codes.get((linear.output, "output"))
            plan.linears[linear.name] = LinearPlan(
                codes[linear.x, "input"].current(),  # type: ignore[operator]
                codes[linear.weight, "weight"].current(),  # type: ignore[operator]
                output.current() if output is not None else None,  # type: ignore[operator]
            )
        for node, site in self._sites.items():
            q, k, v, p = (codes[node, name].current() for name in (*OPERANDS, "probabilities"))  # type: ignore[operator]
            plan.attentions[site.name] = AttentionPlan(q, k, v, p)
