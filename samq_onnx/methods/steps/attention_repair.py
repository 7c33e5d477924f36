# SPDX-License-Identifier: Apache-2.0
"""Let one projection of a decoder's attention make good what quantization does to the operands of the others."""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.methods.method import parameter
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.fold.edit import private_to_attention
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.lift import AttentionSite, Linear, Projection
from samq_onnx.passes.lift.kinds import DECODER_KINDS
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.attention_repair import RIDGE, logit_change, value_change
from samq_onnx.reconstruct.operand_moments import LogitMoments, ValueMoments

__all__ = ["AttentionRepairSettings", "RepairAttention"]

PARTNER = {"q": "k", "k": "q"}


@dataclasses.dataclass(frozen=True)
class AttentionRepairSettings:
    """Parameters of `RepairAttention`."""

    ridge: float = parameter(RIDGE, "how strongly weights are held, as a share of the mean moment", most=1e6)


class RepairAttention(Step):
    """CAR-SAM's closed forms (`samq_onnx.reconstruct.attention_repair`) for one operand of every decoder attention.

    The plan has to have the codes of the operands; it holds others of this one afterwards, so ranges come again.
    Refuses projections that are not known, make more than this operand, or share their constants.

    Args:
        operand: ``"q"``, ``"k"`` or ``"v"``.
    """

    name = "attention repair"
    edits = True
    reads_plan = True

    def __init__(self, operand: str, settings: AttentionRepairSettings) -> None:
        self.operand, self.settings = operand, settings

    def _refusal(self, work: Work, site: AttentionSite) -> str | None:
        if any(projection is None for projection in (site.q, site.k, site.v)):
            return "not all linears that make its operands are known"
        assert site.q is not None and site.k is not None and site.v is not None
        if any(one.linear.node.op_type == "Conv" or not one.linear.output.name for one in (site.q, site.k, site.v)):
            return "a convolution makes its operands"
        if any(one.pooled for one in (site.q, site.k, site.v)):
            return "its operands are pooled"
        return private_to_attention(work.lifted, site, self.operand)

    def _sites(self, work: Work) -> list[AttentionSite]:
        sites = [site for site in work.lifted.attentions if site.kind in DECODER_KINDS]
        return [site for site in sites if self._refusal(work, site) is None and site.name in work.plan.attentions]

    def _statistic(self, work: Work, site: AttentionSite) -> LogitMoments | ValueMoments:
        plan = work.plan.attentions[site.name]
        mine: Projection = getattr(site, self.operand)
        x = mine.linear.x.name or ""
        if self.operand in PARTNER:
            other = PARTNER[self.operand]
            partner: Projection = getattr(site, other)
            name = partner.linear.output.name or ""
            return LogitMoments(x, name, partner.channels, getattr(plan, other), keys=other == "k")
        q, k, v = site.q, site.k, site.v
        assert q is not None and k is not None and v is not None
        names = (q.linear.output.name or "", k.linear.output.name or "", v.linear.output.name or "")
        channels, codes = (q.channels, k.channels, v.channels), (plan.q, plan.k, plan.v)
        return ValueMoments(x, names, channels, codes, plan.probabilities, site.scale)

    def wants(self, work: Work) -> list[Statistic]:
        return [self._statistic(work, site) for site in self._sites(work)]

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        for site in work.lifted.attentions:
            if site.kind in DECODER_KINDS and (reason := self._refusal(work, site)) is not None:
                report.refuse(f"{site.name}, {self.operand}", reason)
        for site in self._sites(work):
            moments = work.found(self._statistic(work, site))
            projection: Projection = getattr(site, self.operand)
            weight, bias = _weight(projection.linear)
            for head, channels in enumerate(projection.channels):
                held = np.concatenate([weight[:, channels], bias[None, channels]])
                change = self._change(moments, head, held, projection.linear.bias is not None)
                weight[:, channels] += change[:-1]
                bias[channels] += change[-1]
            _replace(projection.linear, weight, bias)
            report.done.append(f"{site.name}, {self.operand}")
        return report

    def _change(self, moments: LogitMoments | ValueMoments, head: int, held: np.ndarray, biased: bool) -> np.ndarray:
        """Of weight and bias, [in + 1, d]; that of the bias is zero where there is none."""
        ridge = self.settings.ridge
        used = slice(None if biased else -1)  # without a bias the constant input is none
        change = np.zeros_like(held)
        if isinstance(moments, ValueMoments):
            change[used] = value_change(moments.gram[head, used, used], moments.target[head, used], ridge)
            return change
        if not moments.keys:  # the mean key stays where it is: softmax does not see it, but the range of the keys does
            used = slice(-1)
        change[used] = logit_change(
            moments.gram[used, used], moments.partner[head], moments.error[head], held[used], ridge
        )
        if not moments.keys and biased:
            change[-1] = -moments.mean @ change[:-1]
        return change


def _weight(linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weight [in, out] and bias [out], float64; zeros for no bias."""
    weight = constant(linear.weight).astype(np.float64)
    bias = np.zeros(linear.out_features) if linear.bias is None else constant(linear.bias).astype(np.float64)
    return (weight if linear.out_axis else weight.T).copy(), bias


def _replace(linear: Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    replace_constant(linear.weight, weight if linear.out_axis else weight.T)
    if linear.bias is not None:
        replace_constant(linear.bias, bias)
