# SPDX-License-Identifier: Apache-2.0
"""Make keys easy to quantize: centre them, or flip the signs of those with two peaks (BIG)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samq_onnx.calibrate.statistics import ChannelMean, KeySamples, Statistic
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.fold import fold_key_centre, fold_sign, is_bimodal
from samq_onnx.passes.lift import AttentionSite
from samq_onnx.passes.report import Report

__all__ = ["CentreKeys", "FlipBimodalKeys"]

INPUTS = 4  # that decide the exact folds; any choice leaves the float function as it is


def _sites(work: Work) -> list[AttentionSite]:
    return [site for site in work.lifted.attentions if site.k is not None]


def _mean(site: AttentionSite) -> ChannelMean:
    assert site.k is not None and site.k.linear.output.name
    return ChannelMean(site.k.linear.output.name, INPUTS, channels=site.k.linear.out_features)


def _samples(site: AttentionSite) -> KeySamples:
    return KeySamples(site.operand_names[1])


def _means(work: Work, sites: Sequence[AttentionSite]) -> dict[str, np.ndarray]:
    """Mean of the keys of each site, float64 [heads, head_dim]."""
    found = {}
    for site in sites:
        assert site.k is not None
        found[site.name] = work.found(_mean(site)).mean[site.k.channels].astype(np.float64)
    return found


class CentreKeys(Step):
    """Move the mean of the keys out of the range that has to be quantized: exact (`passes.fold.key_centre`)."""

    name = "key centring"
    edits = True

    def wants(self, work: Work) -> list[Statistic]:
        return [_mean(site) for site in _sites(work)]

    def apply(self, work: Work) -> Report:
        return fold_key_centre(work.lifted, _means(work, _sites(work)))


class FlipBimodalKeys(Step):
    """BIG (PTQ4SAM section 3.2, `passes.fold.sign`), where keys are not centred.

    Two peaks come from channels on either side of zero. Centred, none is: flipping them would only widen q.

    Args:
        kinds: of the sites that it looks at (`passes.lift.kinds`), all if None.
    """

    name = "sign (BIG)"
    edits = True

    def __init__(self, kinds: frozenset[str] | None = None) -> None:
        self.kinds = kinds

    def _sites(self, work: Work) -> list[AttentionSite]:
        centred = work.done(CentreKeys.name)
        sites = [site for site in _sites(work) if site.name not in centred]
        return [site for site in sites if self.kinds is None or site.kind in self.kinds]

    def wants(self, work: Work) -> list[Statistic]:
        return [statistic for site in self._sites(work) for statistic in (_mean(site), _samples(site))]

    def apply(self, work: Work) -> Report:
        sites = self._sites(work)
        bimodal = {site.name: is_bimodal(work.found(_samples(site)).values) for site in sites}
        return fold_sign(work.lifted, _means(work, sites), bimodal)
