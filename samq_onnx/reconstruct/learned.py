# SPDX-License-Identifier: Apache-2.0
"""What was learned of a unit, as something that can be kept: its part of the plan, and its constants."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.passes.graph import constant, is_constant, replace_constant
from samq_onnx.passes.lift import Lifted, Norm
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_file import plan_from_json, plan_to_json
from samq_onnx.reconstruct.reconstruction import UnitLoss
from samq_onnx.reconstruct.units import Unit

__all__ = ["Learned", "digest"]


def digest(lifted: Lifted, plan: QuantPlan, *given: object) -> str:
    """Hash of a plan, of the constants of a graph, and of other things that JSON can hold."""
    found = hashlib.sha256(json.dumps([plan_to_json(plan), *given]).encode())
    for name, value in sorted(lifted.model.graph.initializers.items()):
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            found.update(name.encode() + np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return found.hexdigest()


class Learned(Statistic):
    """A finished unit.

    Args:
        key: names the unit, and all that it was learned from. plan, lifted: before it was.
        also: norms before the unit that change with it.
    """

    def __init__(self, key: str, unit: Unit, plan: QuantPlan, lifted: Lifted, also: Sequence[Norm] = ()) -> None:
        self._key = key
        self.tensors = ()
        inside = set(unit.nodes)
        linears = [linear for linear in lifted.linears if linear.node in inside]
        self._linears = [linear.name for linear in linears if linear.name in plan.linears]
        self._sites = [s.name for s in lifted.attentions if s.node in inside and s.name in plan.attentions]
        held = [value for linear in linears for value in (linear.weight, linear.bias) if is_constant(value)]
        norms = [*also, *(norm for norm in lifted.norms if norm.node in inside)]
        held += [value for norm in norms for value in (norm.scale, norm.bias) if value]
        self._constants = list(dict.fromkeys(value.name or "" for value in held if value is not None))
        self.loss = UnitLoss(unit.name, unit.kind, 0, 0.0, 0.0)
        self._plan = QuantPlan()
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def key(self) -> str:
        return f"unit {self._key}"

    def update(self, *arrays: np.ndarray) -> None:
        raise NotImplementedError

    def take(self, plan: QuantPlan, lifted: Lifted, loss: UnitLoss) -> None:
        """Hold what the plan and the graph have of it now."""
        self.loss = loss
        self._plan = QuantPlan(
            linears={name: plan.linears[name] for name in self._linears},
            attentions={name: plan.attentions[name] for name in self._sites},
        )
        initializers = lifted.model.graph.initializers
        self._arrays = {name: constant(initializers[name]) for name in self._constants}

    def write(self, plan: QuantPlan, lifted: Lifted) -> None:
        """Put it into the plan and the graph."""
        plan.linears.update(self._plan.linears)
        plan.attentions.update(self._plan.attentions)
        for name, array in self._arrays.items():
            value = lifted.model.graph.initializers[name]
            if not np.array_equal(constant(value), array):
                replace_constant(value, array)

    def state(self) -> dict[str, np.ndarray]:
        text = json.dumps({"plan": plan_to_json(self._plan), "loss": dataclasses.asdict(self.loss)})
        found = {"text": np.frombuffer(text.encode(), np.uint8)}
        return {**found, **{f"constant {number}": array for number, array in enumerate(self._arrays.values())}}

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        document = json.loads(bytes(state["text"]).decode())
        plan = plan_from_json(document["plan"], "a kept unit")
        if list(plan.linears) != self._linears or list(plan.attentions) != self._sites:
            raise ValueError("sites of another unit")
        self.loss = UnitLoss(**document["loss"])
        self._plan = plan
        self._arrays = {name: state[f"constant {number}"] for number, name in enumerate(self._constants)}
