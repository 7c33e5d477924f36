# SPDX-License-Identifier: Apache-2.0
"""Which linears of a model are quantized: the first and last layers of SAM stay in float, as in PTQ4SAM."""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.families import Role
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.passes.lift.views import VIEW_OPS
from samq_onnx.passes.report import Report

__all__ = ["Select"]

FIRST = "first layer (before any attention)"
OTHER_TYPE = "its weights are not float32"
LAST = "last layer (after all attention of the decoder)"


def _reach(starts: list[ir.Node], *, forward: bool) -> set[ir.Node]:
    seen: set[ir.Node] = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        for neighbour in node.successors() if forward else node.predecessors():
            if neighbour not in seen:
                seen.add(neighbour)
                pending.append(neighbour)
    return seen


class Select(Step):
    """Choose the linears to quantize, and say why the others stay float.

    In a model without attention every linear is quantized. Otherwise what reads the image stays float (patch
    embedding); stages of convolutions behind it, as of TinyViT, do not. Where masks come out, all before attention
    that are no attention projections stay float (prompt encoder), and those after all attention (mask head, IoU head),
    except the projection that reads the last attention's output.
    """

    name = "select"
    edits = True  # no tensor, but which linears the steps behind it ask about

    def apply(self, work: Work) -> Report:
        masks = work.part.role in (Role.DECODER, Role.WHOLE)
        work.linears, work.plan.kept_float = _split(work.lifted, masks)
        return Report(self.name, [linear.name for linear in work.linears])


def _split(lifted: Lifted, masks: bool) -> tuple[list[Linear], dict[str, str]]:
    """Linears to quantize, and name -> reason for those that stay float."""
    kept = {linear.name: OTHER_TYPE for linear in lifted.linears if not _is_float32(linear)}
    linears = [linear for linear in lifted.linears if linear.name not in kept]
    if not lifted.attentions:
        return linears, kept
    sites = [site.node for site in lifted.attentions]
    after, before = _reach(sites, forward=True), _reach(sites, forward=False)
    projections = {
        projection.linear.node
        for site in lifted.attentions
        for projection in (site.q, site.k, site.v)
        if projection is not None
    }
    nodes = {linear.node for linear in lifted.linears}
    outputs = set(_next_linears(sites, nodes))
    chosen = []
    for linear in linears:
        node = linear.node
        if node not in after and node not in projections and (masks or not nodes & _reach([node], forward=False)):
            kept[linear.name] = FIRST
        elif masks and node not in before and node not in outputs:
            kept[linear.name] = LAST
        else:
            chosen.append(linear)
    return chosen, kept


def _is_float32(linear: Linear) -> bool:
    return linear.weight.const_value is not None and linear.weight.const_value.dtype == ir.DataType.FLOAT


def _next_linears(sites: list[ir.Node], linears: set[ir.Node]) -> list[ir.Node]:
    """The linears that read an attention's output through views only."""
    found, pending = [], [user for site in sites for user in site.successors()]
    while pending:
        node = pending.pop()
        if node in linears:
            found.append(node)
        elif node.op_type in VIEW_OPS:
            pending.extend(node.successors())
    return found
