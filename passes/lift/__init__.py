# SPDX-License-Identifier: Apache-2.0
"""Recognise what a graph computes, by topology, whatever exporter wrote it."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from samq_onnx.passes.aside import defaults_aside, outputs_aside
from samq_onnx.passes.graph import known_shape
from samq_onnx.passes.lift.attention import DOMAIN, Match, match_attention, outline
from samq_onnx.passes.lift.gelu import find_gelus
from samq_onnx.passes.lift.kinds import site_kinds
from samq_onnx.passes.lift.linear import find_linears, plain_gemms
from samq_onnx.passes.lift.norm import find_norms, own_constants
from samq_onnx.passes.lift.padding import pad_behind
from samq_onnx.passes.lift.propagate import ATTENTION_OPS, propagate
from samq_onnx.passes.lift.simplify import simplify
from samq_onnx.passes.lift.structure import AttentionSite, Gelu, Lifted, Linear, Norm, Projection
from samq_onnx.passes.lift.trace import trace_projection, trace_reader

__all__ = ["AttentionSite", "Gelu", "Lifted", "Linear", "Norm", "Projection", "lift", "simplify"]


def lift(model: ir.Model) -> Lifted:
    """Outline every attention of a simplified model, in place, and describe the whole.

    Lifting a lifted model changes nothing and finds the same again.
    """
    graph = model.graph
    plain_gemms(graph)
    common.NameFixPass()(model)
    lifted = Lifted(model, norms=find_norms(graph), gelus=find_gelus(graph))
    own_constants(graph, lifted.norms)
    matches: list[Match] = []
    for node in graph:
        if node.op_type == "Softmax" and node.domain == "":
            found = match_attention(node)
            if isinstance(found, Match):
                matches.append(found)
            else:
                lifted.refused.append(f"softmax {node.name} is not lifted: {found}")
    if matches:
        for match, kind in zip(matches, site_kinds(matches), strict=True):
            outline(graph, match, kind)
        model.graph.opset_imports[DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
        if any(known_shape(match.product.outputs[0]) is None for match in matches):
            with defaults_aside(model), outputs_aside(model):
                propagate(model)  # an attention tells that the batches of its operands are one
            common.RemoveUnusedNodesPass()(model)
    lifted.linears = find_linears(graph)
    pad_behind(graph, lifted.linears)
    by_output = {linear.output: linear for linear in lifted.linears}
    by_input: dict[ir.Value, list[Linear]] = {}
    for linear in lifted.linears:
        by_input.setdefault(linear.x, []).append(linear)
    for node in graph:
        if node.domain == DOMAIN and node.op_type in ATTENTION_OPS:
            site = _site(node, by_output, lifted.refused)
            _trace_out(site, by_input, lifted.refused)
            lifted.attentions.append(site)
    return lifted


def _trace_out(site: AttentionSite, linears: dict[ir.Value, list[Linear]], refused: list[str]) -> None:
    if site.v is None:
        return
    found = trace_reader(site.node.outputs[0], linears, *site.v.channels.shape)
    if isinstance(found, str):
        refused.append(f"the output of {site.name} has no known projection: {found}")
    else:
        site.out = found


def _site(node: ir.Node, linears: dict[ir.Value, Linear], refused: list[str]) -> AttentionSite:
    site = AttentionSite(node)
    for name, operand in zip(("q", "k", "v"), node.inputs[:3], strict=True):
        assert operand is not None
        found = trace_projection(operand, linears, rank=3)
        if isinstance(found, str):
            refused.append(f"{name} of {node.name} has no known projection: {found}")
        else:
            setattr(site, name, found)
    if len(node.inputs) == 4:
        site.bias = node.inputs[3]
    elif len(node.inputs) > 4:
        first, second = node.inputs[3:5]
        assert first is not None and second is not None
        site.tables = (first, second)
    return site
