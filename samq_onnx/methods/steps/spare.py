# SPDX-License-Identifier: Apache-2.0
"""Leave the sites in float that cost much accuracy and save little time."""

from __future__ import annotations

import math

import onnx_ir as ir

from samq_onnx.analysis.judge import OutputJudge
from samq_onnx.analysis.sensitivity import ALL, Trial, sensitivity
from samq_onnx.analysis.sites import SiteCodes, site_runs
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.lift import AttentionSite, Linear
from samq_onnx.passes.report import Report
from samq_onnx.sampling import spread

__all__ = ["Spare"]

TOKENS = 7  # of a prompt, where their number is not known
REASON = "quantized alone it costs {:.0%} of what all that may stay float cost, and saves {:.1%} of the products"


class Spare(Step):
    """Take sites out of the plan, dearest first for the products that they have, up to a share of all products.

    What a site costs is the error that it alone leaves at the model's output (`samq_onnx.analysis.sensitivity`), on few
    inputs.

    Args:
        share: of the model's products that may stay in float. inputs: that sites are tried on.
        least: of what all candidates cost; a site that costs less stays quantized. convolutions: only these are
            candidates.
    """

    name = "sites left in float"
    reads_plan = True

    def __init__(self, share: float, inputs: int, least: float = 0.02, convolutions: bool = False) -> None:
        self.share, self.inputs, self.least, self.convolutions = share, inputs, least, convolutions

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        products = {linear.name: _of_linear(linear) for linear in work.linears}
        products |= {site.name: _of_attention(site) for site in work.lifted.attentions}
        total = sum(products.values())
        candidates = [
            *(one.name for one in work.linears if one.node.op_type == "Conv" or not self.convolutions),
            *(site.name for site in work.lifted.attentions if not self.convolutions),
        ]
        asked = work.scheme.sites  # a width that a user asks for is kept
        candidates = [name for name in candidates if 0 < products[name] <= self.share * total and name not in asked]
        losses = self._losses(work, candidates)
        everything = sum(losses.values())
        left = self.share * total
        for name in sorted(losses, key=lambda name: -losses[name] / products[name]):
            if losses[name] < self.least * everything or products[name] > left:
                continue
            left -= products[name]
            _take_out(work, name, REASON.format(losses[name] / everything, products[name] / total))
            report.done.append(name)
            report.facts[name] = losses[name]
        report.facts["loss of all, one by one"] = everything
        report.facts["share of products in float"] = self.share - left / total if total else 0.0
        return report

    def _losses(self, work: Work, candidates: list[str]) -> dict[str, float]:
        """Error of the outputs with a site quantized alone."""
        if not candidates:
            return {}
        runs = site_runs(work.lifted, work.plan, {}, candidates)
        codes: dict[str, SiteCodes] = {**work.plan.linears, **work.plan.attentions}
        trials = {name: [Trial(ALL, codes[name])] for name in candidates}
        places = spread(len(work.observed), self.inputs)
        chosen, judge = Selection(work.observed, places), OutputJudge(work.part)
        found = sensitivity(work.lifted, runs, trials, chosen, judge, label=work.label, seconds=math.inf)
        return {name: loss[ALL].cost for name, loss in found.losses.items()}


def _take_out(work: Work, name: str, reason: str) -> None:
    if work.plan.attentions.pop(name, None) is None:
        del work.plan.linears[name]
        work.plan.kept_float[name] = reason
        work.linears = [linear for linear in work.linears if linear.name != name]


def _rows(value: ir.Value | None) -> int:
    sizes = value.shape[:-1] if value is not None and value.shape is not None else ()
    return math.prod(size if isinstance(size, int) else TOKENS for size in sizes)


def _of_linear(linear: Linear) -> int:
    if linear.node.op_type == "Conv":
        sizes = linear.output.shape[2:] if linear.output.shape is not None else ()
        rows = math.prod(size for size in sizes if isinstance(size, int))
    else:
        rows = _rows(linear.x)
    return rows * linear.in_features * linear.out_features


def _of_attention(site: AttentionSite) -> int:
    q, k = site.node.inputs[:2]
    keys = k.shape[-2] if k is not None and k.shape is not None else TOKENS
    return 2 * _rows(q) * (keys if isinstance(keys, int) else TOKENS) * site.head_dim
