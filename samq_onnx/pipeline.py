# SPDX-License-Identifier: Apache-2.0
"""One model through all stages: lift -> fold -> calibrate -> (reconstruct) -> plan -> lower.

Everything up to the plan is a method's steps. They are taken in groups: consecutive steps up to one that edits the
graph share one pass over the inputs, which collects the union of what they want. From a plan and the float model
alone, `lower_model` makes the same quantized model again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from samq_onnx import ops
from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.calibrate.statistics_file import StatisticsFile
from samq_onnx.calibrate.stream import run
from samq_onnx.documents import brief
from samq_onnx.errors import UserError
from samq_onnx.families import Part, Role
from samq_onnx.feeds import Selection
from samq_onnx.methods import Method, Scheme
from samq_onnx.methods.step import Feeds, Step, Work
from samq_onnx.methods.steps import Select
from samq_onnx.passes.aside import outputs_aside
from samq_onnx.passes.fold import fold_attention_scale
from samq_onnx.passes.graph import constant, held_constants, replace_constant
from samq_onnx.passes.lift import Lifted, lift
from samq_onnx.passes.lower.fuse import float_outputs
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.passes.normal import normalise
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_fit import check_bits, check_sites
from samq_onnx.reconstruct.effort import Effort

__all__ = ["COMPARABLE", "Outcome", "lower_model", "quantize_model"]

OBSERVED_PROMPTS = 128
WRITTEN = 3  # times as long as a model is prepared, it takes to be lowered, written and looked at
COMPARABLE = "samq_onnx.comparable"  # metadata of a quantized model
TARGET = "samq_onnx.target"


@dataclasses.dataclass
class Outcome:
    """What became of a model, and what there is to say about it.

    Attributes:
        model: the quantized one. plan: that it follows.
        sites: kind of attention -> how many there are.
        reports: of steps and passes, in order.
    """

    model: ir.Model
    plan: QuantPlan
    sites: dict[str, int]
    reports: list[Report]


class Preparation:
    """A model brought to the form that plans speak of, and what its constants were then.

    Normalised (`passes.normal`), lifted, attention scales folded: the same for every method and target.

    Raises:
        UserError: weights that are not finite.
    """

    def __init__(self, model: ir.Model, weight_bits: int) -> None:
        self.normal = normalise(model, weight_bits)
        self.lifted = lift(model)
        _check_finite(self.lifted)
        if self.lifted.attentions:
            ops.add_functions(model)
        self.report = fold_attention_scale(self.lifted)
        self._held = {name: value.const_value for name, value in model.graph.initializers.items()}

    def moved(self) -> dict[str, np.ndarray]:
        """The constants that hold something else now."""
        initializers = self.lifted.model.graph.initializers
        return {
            name: constant(initializers[name])
            for name, tensor in self._held.items()
            if name in initializers and initializers[name].const_value is not tensor
        }

    def move(self, constants: dict[str, np.ndarray], where: str) -> None:
        """Let constants hold what a plan says.

        Raises:
            UserError: there is no such constant, or one of another shape.
        """
        initializers = self.lifted.model.graph.initializers
        for name, array in constants.items():
            held = self._held.get(name)
            if held is None or held.shape.numpy() != array.shape or held.dtype != ir.DataType.from_numpy(array.dtype):
                raise UserError(
                    f"{where}: the model has no constant {brief(name)} of its shape; quantize the model again"
                )
            replace_constant(initializers[name], array)


def quantize_model(
    model: ir.Model,
    part: Part,
    feeds: Feeds,
    method: Method,
    scheme: Scheme,
    *,
    target: str,
    float_feeds: Callable[[], Feeds] | None = None,
    label: str = "model",
    kept: StatisticsFile | None = None,
    fed: str = "",
    describe: dict[str, str] | None = None,
    effort: Effort | None = None,
    reader: Path | None = None,
) -> Outcome:
    """Quantize a float model, in place.

    Args:
        model: the float model; its inputs and outputs stay as they are. part: its role.
        feeds: calibration inputs, graph input name -> array.
        method: what to do. scheme: with how many bits. target: what for.
        float_feeds: makes the same inputs as the float model gets them, where ``feeds`` come from a quantized encoder.
        label: what progress bars call the model.
        kept: statistics of earlier runs. fed: names what is fed, for them.
        describe: metadata of the quantized model.
        effort: what learning may cost. reader: file of the float decoder that reads an encoder's embedding.

    Raises:
        UserError: calibration met something it cannot use, or nothing of the model can be quantized.
    """
    if any(node.domain == ops.DOMAIN for node in model.graph.all_nodes()):
        raise UserError("the model has operators of samq_onnx; give the float model that it was made from")
    effort = effort or Effort()
    with outputs_aside(model):
        started = effort.clock.now()
        prepared = Preparation(model, scheme.narrowest_weight)
        behind = WRITTEN * (effort.clock.now() - started)
        work = begin(
            prepared, part, feeds, scheme,
            target=target, float_feeds=float_feeds, label=label, kept=kept, fed=fed, effort=effort.part(1.0, behind),
            reader=reader,
        )  # fmt: skip
        work.run([Select()], work)
        attentions = [site.name for site in prepared.lifted.attentions]
        convolutions = [linear.name for linear in work.linears if linear.node.op_type == "Conv"]
        products = [linear.name for linear in work.linears if linear.node.op_type != "Conv"]
        scheme.check_sites(products, convolutions, attentions, work.plan.kept_float)
        work.run(method.steps(part, scheme), work)
        work.plan.constants = prepared.moved()
        work.plan.metadata = dict(describe or {})
        return _lowered(prepared, work.plan, work.reports, label)


def begin(
    prepared: Preparation,
    part: Part,
    feeds: Feeds,
    scheme: Scheme,
    *,
    target: str,
    float_feeds: Callable[[], Feeds] | None = None,
    label: str = "model",
    kept: StatisticsFile | None = None,
    fed: str = "",
    effort: Effort | None = None,
    reader: Path | None = None,
) -> Work:
    """A prepared model before the first step; arguments as `quantize_model`."""
    observed = _some(feeds) if part.role is Role.DECODER else feeds
    return Work(
        part=part,
        lifted=prepared.lifted,
        scheme=scheme,
        plan=QuantPlan(target, scheme.narrowest_weight),
        takes=TARGETS[target].takes,
        feeds=feeds,
        float_feeds=float_feeds or (lambda: feeds),
        observed=observed,
        label=label,
        run=lambda steps, work: _run_steps(steps, work, kept, fed, prepared),
        reports=[prepared.normal, prepared.report],
        exact=held_constants(prepared.lifted.model.graph),
        effort=effort or Effort(),
        reader=reader,
        kept=_Learned(kept, fed) if kept is not None else None,
    )


@dataclasses.dataclass
class _Learned:
    """Units that were learned, in a file of statistics, which is written after each."""

    file: StatisticsFile
    fed: str

    def restore(self, statistic: Statistic) -> bool:
        return self.file.restore(self.fed, statistic)

    def keep(self, statistic: Statistic) -> None:
        self.file.keep(self.fed, statistic)
        self.file.save()


def lower_model(model: ir.Model, plan: QuantPlan, *, label: str = "model") -> Outcome:
    """Make a float model compute with the codes of a plan, in place, for the plan's target.

    Raises:
        UserError: the plan does not fit the model, or the target.
    """
    with outputs_aside(model):
        check_bits(plan, label)
        prepared = Preparation(model, plan.weight_bits)
        check_sites(plan, prepared.lifted, label)
        prepared.move(plan.constants, label)
        return _lowered(prepared, plan, [prepared.normal, prepared.report], label)


def _lowered(prepared: Preparation, plan: QuantPlan, reports: list[Report], label: str) -> Outcome:
    lifted = prepared.lifted
    model = lifted.model
    target = TARGETS[plan.target]
    comparable = _comparable(lifted, plan)
    reports += [Report("lift", refused=list(lifted.refused)), *target.lower(lifted, plan)]
    if not any(node.domain == ops.DOMAIN or node.op_type == "QuantizeLinear" for node in model.graph):
        raise UserError(_nothing(lifted, plan, reports, label))
    target.check(model)
    left = float_outputs(model.graph) | {value.name for node in model.graph for value in node.outputs}
    model.metadata_props.update(plan.metadata)
    model.metadata_props["samq_onnx.version"] = metadata.version("samq_onnx")
    model.metadata_props[COMPARABLE] = json.dumps([name for name in comparable if name in left])
    model.metadata_props[TARGET] = plan.target
    return Outcome(model, plan, dict(Counter(site.kind for site in lifted.attentions)), reports)


def _nothing(lifted: Lifted, plan: QuantPlan, reports: list[Report], label: str) -> str:
    """Why nothing of a model is quantized."""
    kept = [f"{count} {reason}" for reason, count in Counter(plan.kept_float.values()).items()]
    if any(value.is_graph_input() for value in lifted.model.graph.initializers.values()):
        kept.append("weights are inputs of the graph, which a feed may replace")
    refused = [line for report in reports for line in report.refused]
    why = "; ".join(kept + refused[:2]) or "the graph has no product with constant weights"
    return (
        f"{label}: 0 of {len(lifted.linears)} linears can be quantized ({why}); give a float32 model whose weights are "
        "constants"
    )


def _run_steps(steps: Sequence[Step], work: Work, kept: StatisticsFile | None, fed: str, prepared: Preparation) -> None:
    """Apply steps in order, in as few passes over the inputs as what they want allows."""
    pending = list(steps)
    while pending:
        group = [pending.pop(0)]
        while pending and not group[-1].edits and not pending[0].reads_plan:
            group.append(pending.pop(0))
        wanted = {statistic.key: statistic for step in group for statistic in step.wants(work)}
        new = [statistic for key, statistic in wanted.items() if key not in work.statistics]
        work.statistics.update({statistic.key: statistic for statistic in new})
        context = f"{fed} {len(work.observed)} {_state(prepared)}" if kept is not None else ""
        _collect(work, new, kept, context, group[0].name)
        for step in group:
            work.reports.append(step.apply(work))
            if step.edits:
                work.statistics.clear()
                work.exact = held_constants(work.model.graph)


def _collect(work: Work, statistics: list[Statistic], kept: StatisticsFile | None, context: str, what: str) -> None:
    """Let statistics see the inputs, but those that are known."""
    missing = [one for one in statistics if kept is None or not kept.restore(context, one)]
    run(work.model, work.observed, missing, label=f"{work.label}: {what}")
    if kept is not None:
        for statistic in missing:
            kept.keep(context, statistic)
        kept.save()  # a run that is killed later goes on from here


def _state(prepared: Preparation) -> str:
    """Hash of what steps have made of the graph's constants so far."""
    digest = hashlib.sha256()
    for name, array in sorted(prepared.moved().items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def _some(feeds: Feeds) -> Feeds:
    """As many prompts as statistics need, drawn from all images."""
    chosen = np.random.default_rng(0).permutation(len(feeds))[:OBSERVED_PROMPTS]
    return Selection(feeds, sorted(chosen.tolist()))


def _check_finite(lifted: Lifted) -> None:
    values = [value for linear in lifted.linears for value in (linear.weight, linear.bias)]
    values += [value for norm in lifted.norms for value in (norm.scale, norm.bias)]
    for value in values:
        if value is not None and value.const_value is not None and not np.isfinite(value.const_value.numpy()).all():
            raise UserError(f"weights {value.name} are not all finite numbers; export the model again")


def _comparable(lifted: Lifted, plan: QuantPlan) -> list[str]:
    """Values that mean the same in the float and in the quantized model, where lowering keeps them."""
    folded = {
        projection.linear.node
        for site in lifted.attentions
        for projection in (site.q, site.k)
        if projection is not None
    }
    outputs = [site.node.outputs[0].name for site in lifted.attentions]
    outputs += [one.output.name for one in lifted.linears if one.name in plan.linears and one.node not in folded]
    return [name for name in outputs if name]
