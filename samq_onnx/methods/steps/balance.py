# SPDX-License-Identifier: Apache-2.0
"""Make the channels of an attention's operands alike."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics import ChannelRange, Statistic
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.fold import balanced, fold_key_scale, fold_value_scale
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import AttentionSite, Projection
from samq_onnx.passes.report import Report

__all__ = ["BalanceOperands"]

INPUTS = 4  # that decide the exact fold; any choice leaves the float function as it is


class BalanceOperands(Step):
    """Scale q against k and v against the weight behind it, channel by channel (`passes.fold.operand_scale`)."""

    name = "balanced operands"
    edits = True

    def _sites(self, work: Work) -> list[AttentionSite]:
        return [site for site in work.lifted.attentions if None not in (site.q, site.k, site.v, site.out)]

    def wants(self, work: Work) -> list[Statistic]:
        wanted = [_range(projection) for site in self._sites(work) for projection in (site.q, site.k, site.v)]
        return list({statistic.key: statistic for statistic in wanted}.values())

    def apply(self, work: Work) -> Report:
        def largest(projection: Projection | None) -> np.ndarray:
            found = work.found(_range(projection))
            assert projection is not None
            reach = np.maximum(np.abs(found.lows), np.abs(found.highs)).astype(np.float64)
            made: np.ndarray = reach[projection.channels]
            return made

        keys, values = {}, {}
        for site in self._sites(work):
            assert site.out is not None
            keys[site.name] = balanced(largest(site.q), largest(site.k), site.tables is not None)
            weight = np.moveaxis(np.abs(constant(site.out.linear.weight)), 1 - site.out.linear.out_axis, 0)
            behind = weight.reshape(len(weight), -1).max(axis=1)[site.out.channels]
            values[site.name] = balanced(largest(site.v), behind)
        first, second = fold_key_scale(work.lifted, keys), fold_value_scale(work.lifted, values)
        report = Report(self.name, first.done, [*first.refused, *second.refused])
        return report


def _range(projection: Projection | None) -> ChannelRange:
    assert projection is not None
    return ChannelRange(projection.linear.output.name or "", INPUTS, channels=projection.linear.out_features)
