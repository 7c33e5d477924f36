# SPDX-License-Identifier: Apache-2.0
"""The model that is looked at: prepared, as its folds left it, with a plan beside it, and still computing in float.

Methods first fold, which leaves the function as it is, then plan, and then may move weights so that they quantize well.
What is measured one site at a time starts from the folded model; the moved weights count where weights are quantized.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.families import Part
from samq_onnx.methods import Method, Scheme
from samq_onnx.methods.step import Feeds, Step, Work
from samq_onnx.methods.steps import Select
from samq_onnx.passes.aside import outputs_aside
from samq_onnx.passes.graph import put_back
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report
from samq_onnx.pipeline import Preparation, begin, lower_model
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_fit import check_bits, check_sites

__all__ = ["Subject", "by_method", "by_plan", "lowered", "weight_bytes"]

Look = Callable[[Lifted], None]
"""Is shown the prepared model before any fold."""


@dataclasses.dataclass
class Subject:
    """A folded float model and its plan.

    Attributes:
        rounded: the constants that weight codes are of, where they are others than the folded model's.
        reports: of the method's steps; none where the plan was given.
    """

    lifted: Lifted
    plan: QuantPlan
    rounded: Mapping[str, np.ndarray]
    reports: list[Report]


class _Folds:
    """Runs steps in place of the pipeline's runner, but for those that move weights once the plan is there.

    Steps that run others do so through the same runner, so every step is seen.
    """

    def __init__(self, work: Work) -> None:
        self._run = work.run

    def __call__(self, steps: Sequence[Step], work: Work) -> None:
        for step in steps:
            planned = bool(work.plan.linears) and {linear.name for linear in work.linears} <= set(work.plan.linears)
            if not planned or (step.edits and not step.reads_plan):
                self._run([step], work)


@contextlib.contextmanager
def by_method(
    model: ir.Model,
    part: Part,
    feeds: Feeds,
    method: Method,
    scheme: Scheme,
    target: str,
    *,
    label: str,
    float_feeds: Callable[[], Feeds] | None = None,
    compensate: bool = True,
    look: Look | None = None,
) -> Iterator[Subject]:
    """What a method makes of a model, which is changed in place; arguments as `samq_onnx.pipeline.quantize_model`.

    Args:
        compensate: let the method move weights after it has planned. look: sees the model before it is folded.
    """
    with outputs_aside(model):
        prepared = Preparation(model, scheme.narrowest_weight)
        if look is not None:
            look(prepared.lifted)
        work = begin(prepared, part, feeds, scheme, target=target, float_feeds=float_feeds, label=label)
        if not compensate:
            work.run = _Folds(work)
        work.run([Select()], work)
        work.run(method.steps(part, scheme), work)
        work.plan.constants = prepared.moved()
        put_back(prepared.lifted.model.graph, work.exact)
        yield Subject(prepared.lifted, work.plan, work.plan.constants, work.reports)


@contextlib.contextmanager
def by_plan(model: ir.Model, plan: QuantPlan, *, label: str, look: Look | None = None) -> Iterator[Subject]:
    """A model as a plan has it. Weights that the plan holds rounded already are not known in float: they cost nothing.

    Raises:
        UserError: the plan does not fit the model.
    """
    with outputs_aside(model):
        check_bits(plan, label)
        prepared = Preparation(model, plan.weight_bits)
        check_sites(plan, prepared.lifted, label)
        if look is not None:
            look(prepared.lifted)
        prepared.move(plan.constants, label)
        yield Subject(prepared.lifted, plan, {}, [])


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants that a model stores."""
    held = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def lowered(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """A float model, changed in place, that computes as planned."""
    return lower_model(model, plan).model
