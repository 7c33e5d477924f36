# SPDX-License-Identifier: Apache-2.0
"""Bimodal integration (BIG, PTQ4SAM section 3.2): turn two-peaked keys into one peak by signs.

    (q * g)(k * g)T = q kT   for g in {-1, +1}^d

A key channel that sits at -8 for every token is flipped to +8 together with its query channel, by folding g into
the rows of both projections. In the encoder the relative position tables read q, so their columns are multiplied
by g too; a table is shared by all heads, hence g is then chosen once for all heads.

Handles sites whose keys are bimodal and whose q and k projections belong to them alone; refuses the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.signal import find_peaks
from scipy.stats import gaussian_kde

from samq_onnx.passes.fold.edit import private_to_attention, scale_outputs
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report
from samq_onnx.sampling import stride

__all__ = ["fold_sign", "is_bimodal"]

KDE_POINTS = 128
PEAK_HEIGHT = 0.01  # of the sum of the density over the KDE points
PEAK_DISTANCE = 32  # KDE points
KDE_SAMPLES = 20_000  # evenly spaced subsample: the density estimate is long stable by then
TRIM = 0.001  # quantile cut at both ends; extreme outliers would otherwise hide the two peaks


def is_bimodal(keys: np.ndarray) -> bool:
    """Whether key activations (any shape) have exactly two peaks.

    Gaussian KDE with Scott's bandwidth on 128 points between the extremes, peaks of at least 1 % of the summed
    density and at least 32 points apart, as in PTQ4SAM's released code; unlike there, the outermost 0.1 % of the
    values are left out first.
    """
    values = keys.ravel()
    values = values[:: stride(values.size, KDE_SAMPLES)].astype(np.float64)
    low, high = np.quantile(values, [TRIM, 1 - TRIM])
    values = values[(values >= low) & (values <= high)]
    if values.size < KDE_POINTS or high <= low:
        return False
    density = gaussian_kde(values)(np.linspace(low, high, KDE_POINTS))
    peaks, _ = find_peaks(density, height=PEAK_HEIGHT * density.sum(), distance=PEAK_DISTANCE)
    return len(peaks) == 2


def fold_sign(lifted: Lifted, key_mean: Mapping[str, np.ndarray], bimodal: Mapping[str, bool]) -> Report:
    """Flip the channels of bimodal keys whose mean is negative, in place.

    Args:
        lifted: the lifted model.
        key_mean: site name -> mean of K, float [heads, head_dim]; flipped in place along with the keys.
        bimodal: site name -> verdict of `is_bimodal` on the site's keys.
    """
    report = Report("sign (BIG)")
    for site in lifted.attentions:
        if not bimodal.get(site.name, False):
            continue
        reason = private_to_attention(lifted, site, "q", "k")
        if reason is not None:
            report.refuse(site.name, reason)
            continue
        assert site.q is not None and site.k is not None
        mean = key_mean[site.name]
        deciding = np.broadcast_to(mean.mean(axis=0), mean.shape) if site.tables else mean
        sign = np.where(deciding < 0, -1.0, 1.0)
        scale_outputs(site.q.linear, site.q.channels, sign)
        scale_outputs(site.k.linear, site.k.channels, sign)
        for table in site.tables or ():
            replace_constant(table, constant(table) * sign[0])
        mean *= sign
        report.done.append(site.name)
    return report
