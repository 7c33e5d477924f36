# SPDX-License-Identifier: Apache-2.0
"""One model through all stages: lift -> fold -> calibrate -> plan -> (learn or compensate) -> lower."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import numpy as np
import onnx_ir as ir

from samq_onnx import ops
from samq_onnx.calibrate import (
    OBSERVERS,
    AttentionRows,
    ChannelMean,
    Collector,
    Judge,
    KeySamples,
    LogError,
    RowError,
    TensorStats,
    UniformRange,
    run,
    scales_for_bias,
    uniform_codes,
    weight_scales,
)
from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.errors import UserError
from samq_onnx.families import Role, identify
from samq_onnx.feeds import Selection
from samq_onnx.passes.aside import defaults_aside, outputs_aside
from samq_onnx.passes.fold import FoldReport, fold_attention_scale, fold_key_centre, fold_sign, is_bimodal
from samq_onnx.passes.fold.edit import constant, is_shared, replace_constant
from samq_onnx.passes.lift import AttentionSite, Linear, Structure, lift, simplify
from samq_onnx.passes.lower import lower, raise_opset
from samq_onnx.passes.lower.fuse import float_outputs
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan
from samq_onnx.recipe import Recipe
from samq_onnx.reconstruct import InputMoments, Learned, NotLearnable, compensate
from samq_onnx.scope import split_linears

__all__ = ["Outcome", "quantize_model"]

OBSERVED_PROMPTS = 128
FOLD_FEEDS = 8  # feeds that decide the exact folds; any choice leaves the float function as it is
RECIPE = "samq_onnx.recipe"  # metadata of a quantized model
CONV_OUTPUT_BITS = 8  # a convolution needs codes at its output to run in integers; 8 bits cost no accuracy

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass
class Outcome:
    """What quantization made of a model, and what it has to say about it."""

    model: ir.Model
    plan: QuantPlan
    kinds: dict[str, int]
    is_sam: bool
    linears: int
    folds: list[FoldReport]
    refused: list[str]
    learned: Learned | None


def quantize_model(
    model: ir.Model, feeds: Feeds, recipe: Recipe, *, targets: Feeds | None = None, label: str = "model"
) -> Outcome:
    """Quantize a float model, in place.

    Args:
        model: the float model; its inputs and outputs stay as they are.
        feeds: calibration inputs, graph input name -> array.
        recipe: what to do.
        targets: the same inputs as the float model would get them, where ``feeds`` come from a quantized encoder.
        label: what progress bars call the model.

    Raises:
        UserError: calibration met something it cannot use, or nothing of the model can be quantized.
    """
    if any(node.domain == ops.DOMAIN for node in model.graph.all_nodes()):
        raise UserError("the model has operators of samq_onnx; give the float model that it was made from")
    decoder = identify(model, label).role is Role.DECODER
    with outputs_aside(model):
        return _quantized(model, feeds, recipe, targets or feeds, label, decoder)


def _quantized(model: ir.Model, feeds: Feeds, recipe: Recipe, targets: Feeds, label: str, decoder: bool) -> Outcome:
    with defaults_aside(model):
        raise_opset(model, recipe.weight_bits)
    simplify(model)
    structure = lift(model)
    _check_finite(structure)
    if structure.attentions:
        ops.add_functions(model)
    observed = _some(feeds) if decoder else feeds
    folds = _fold(model, structure, observed, recipe, label)
    chosen, kept = split_linears(structure)
    plan = _calibrate(model, structure, chosen, observed, recipe, label)
    plan.kept_float.update(kept)
    refused = list(structure.refused)
    learned = None
    if recipe.learn:
        try:
            learned = _learn(model, structure, plan, feeds, targets, label)
        except NotLearnable as reason:
            refused.append(f"nothing learned: {reason}")
    # a decoder's error lies in few tokens and a rare foreground, which mean errors over all rows do not see
    if recipe.compensate and learned is None and not decoder:
        _compensate(model, chosen, plan, feeds, label)
    comparable = _comparable(structure, chosen)
    refused += lower(model, structure, plan)
    if not any(node.domain == ops.DOMAIN or node.op_type == "QuantizeLinear" for node in model.graph):
        kept_why = [f"{count} {reason}" for reason, count in Counter(plan.kept_float.values()).items()]
        if any(value.is_graph_input() for value in model.graph.initializers.values()):
            kept_why.append("weights are inputs of the graph, which a feed may replace")
        why = "; ".join(kept_why + refused[:2]) or "the graph has no product with constant weights"
        raise UserError(
            f"{label}: 0 of {len(structure.linears)} linears can be quantized ({why}); give a float32 model "
            "whose weights are constants"
        )
    left = float_outputs(model.graph) | {value.name for node in model.graph for value in node.outputs}
    _describe(model, plan, [name for name in comparable if name in left])
    kinds: dict[str, int] = {}
    for site in structure.attentions:
        kinds[site.kind] = kinds.get(site.kind, 0) + 1
    return Outcome(model, plan, kinds, structure.is_sam, len(plan.linears), folds, refused, learned)


def _some(feeds: Feeds) -> Feeds:
    """As many prompts as statistics need, drawn from all images."""
    chosen = np.random.default_rng(0).permutation(len(feeds))[:OBSERVED_PROMPTS]
    return Selection(feeds, sorted(chosen.tolist()))


def _check_finite(structure: Structure) -> None:
    values = [value for linear in structure.linears for value in (linear.weight, linear.bias)]
    values += [value for norm in structure.norms for value in (norm.scale, norm.bias)]
    for value in values:
        if value is not None and value.const_value is not None and not np.isfinite(constant(value)).all():
            raise UserError(f"weights {value.name} are not all finite numbers; export the model again")


def _operands(site: AttentionSite) -> tuple[str, str, str]:
    q, k, v = (value.name for value in site.node.inputs[:3] if value is not None)
    assert q and k and v
    return q, k, v


def _fold(model: ir.Model, structure: Structure, feeds: Feeds, recipe: Recipe, label: str) -> list[FoldReport]:
    """Make the graph easier to quantize without changing what it computes."""
    reports = [fold_attention_scale(structure)]
    wanted = [site for site in structure.attentions if site.k is not None] if recipe.key_centring or recipe.sign else []
    if not wanted:
        return reports
    means: dict[str, ChannelMean] = {}
    samples: dict[str, KeySamples] = {}
    for site in wanted:
        assert site.k is not None and site.k.linear.output.name
        means[site.name] = ChannelMean(site.k.linear.output.name)
        samples[site.name] = KeySamples(_operands(site)[1])
    run(model, feeds[:FOLD_FEEDS], [*means.values(), *samples.values()], label=f"{label}: keys")
    key_mean = {
        site.name: means[site.name].mean[site.k.channels].astype(np.float64) for site in wanted if site.k is not None
    }
    centred: set[str] = set()
    if recipe.key_centring:
        reports.append(fold_key_centre(structure, key_mean))
        centred.update(reports[-1].done)
    if recipe.sign:
        # Two peaks come from channels on either side of zero. Centred, none is: flipping them would only widen q.
        bimodal = {name: name not in centred and is_bimodal(sample.values) for name, sample in samples.items()}
        reports.append(fold_sign(structure, key_mean, bimodal))
    return reports


def _calibrate(
    model: ir.Model, structure: Structure, chosen: list[Linear], feeds: Feeds, recipe: Recipe, label: str
) -> QuantPlan:
    """Collect statistics once, then decide every number of the plan."""
    ranges: dict[str, TensorStats] = {}
    maps: dict[str, AttentionRows] = {}
    for linear in chosen:
        for value in (linear.x, linear.output) if linear.node.op_type == "Conv" else (linear.x,):
            assert value.name
            ranges.setdefault(value.name, TensorStats(value.name))
    for site in structure.attentions:
        for name in _operands(site):
            ranges.setdefault(name, TensorStats(name))
        maps[site.name] = AttentionRows(
            _operands(site),
            scale=site.scale,
            tables=tuple(map(constant, site.tables)) if site.tables else None,
            judge=_judge(recipe),
        )
    collectors: list[Collector] = [*ranges.values(), *maps.values()]
    run(model, feeds, collectors, label=f"{label}: ranges")

    def uniform(stats: TensorStats, bits: int) -> UniformCodes:
        return uniform_codes(stats, OBSERVERS[recipe.observer], bits)

    bits = recipe.activation_bits
    plan = QuantPlan(recipe)
    for linear in chosen:
        assert linear.x.name and linear.output.name
        scales = weight_scales(constant(linear.weight), linear.out_axis, recipe.weight_bits, how=recipe.weight_range)
        x = uniform(ranges[linear.x.name], bits)
        if linear.bias is not None:
            needed = scales_for_bias(constant(linear.bias), x.scale)
            scales = np.maximum(scales, needed if scales.size > 1 else needed.max(initial=0))
        plan.linears[linear.name] = LinearPlan(
            input=x,
            weight=WeightCodes(tuple(np.float32(scales).ravel().tolist()), recipe.weight_bits),
            output=uniform(ranges[linear.output.name], CONV_OUTPUT_BITS) if linear.node.op_type == "Conv" else None,
        )
    for site in structure.attentions:
        q, k, v = (uniform(ranges[name], bits) for name in _operands(site))
        plan.attentions[site.name] = AttentionPlan(q, k, v, maps[site.name].judge.codes())
    return plan


def _judge(recipe: Recipe) -> Judge:
    """Who chooses the post-softmax codes of a site."""
    bits = recipe.activation_bits
    judges: dict[str, Callable[[], Judge]] = {
        "uniform": lambda: UniformRange(OBSERVERS[recipe.observer], bits),
        "log": lambda: LogError(bits),
        "row": lambda: RowError(bits),
    }
    return judges[recipe.probabilities]()


def _compensate(model: ir.Model, chosen: list[Linear], plan: QuantPlan, feeds: Feeds, label: str) -> None:
    """Move weights onto their grid so that they absorb quantization error, in place."""
    products = [linear for linear in chosen if linear.node.op_type != "Conv" and not _is_shared(linear)]
    moments: dict[str, InputMoments] = {}
    for linear in products:
        assert linear.x.name
        moments.setdefault(linear.x.name, InputMoments(linear.x.name, plan.linears[linear.name].input))
    run(model, feeds, list(moments.values()), label=f"{label}: weights")
    for linear in products:
        assert linear.x.name
        weight = constant(linear.weight)
        bias = constant(linear.bias) if linear.bias is not None else None
        codes = plan.linears[linear.name].weight
        made, made_bias = compensate(
            weight if linear.out_axis else weight.T, bias, np.array(codes.scale), codes.bits, moments[linear.x.name]
        )
        replace_constant(linear.weight, made if linear.out_axis else made.T)
        if linear.bias is not None and made_bias is not None:
            replace_constant(linear.bias, made_bias)


def _is_shared(linear: Linear) -> bool:
    return any(value is not None and is_shared(value) for value in (linear.weight, linear.bias))


def _learn(model: ir.Model, structure: Structure, plan: QuantPlan, feeds: Feeds, targets: Feeds, label: str) -> Learned:
    # Read when torch is loaded: its threads wait without spinning, which beside other work slows them several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from samq_onnx.reconstruct.learn import learn  # torch is optional
    except ImportError as error:
        raise NotLearnable("torch is not installed; run: pip install samq_onnx[learn]") from error
    return learn(model, structure, plan, feeds, targets, label=label)


def _comparable(structure: Structure, chosen: list[Linear]) -> list[str]:
    """Values that mean the same in the float and in the quantized model, where lowering keeps them."""
    folded = {
        projection.linear.node
        for site in structure.attentions
        for projection in (site.q, site.k)
        if projection is not None
    }
    outputs = [site.node.outputs[0].name for site in structure.attentions]
    outputs += [linear.output.name for linear in chosen if linear.node not in folded]
    return [name for name in outputs if name]


def _describe(model: ir.Model, plan: QuantPlan, comparable: list[str]) -> None:
    model.metadata_props["samq_onnx.version"] = metadata.version("samq_onnx")
    model.metadata_props[RECIPE] = json.dumps(dataclasses.asdict(plan.recipe))
    model.metadata_props["samq_onnx.comparable"] = json.dumps(comparable)
