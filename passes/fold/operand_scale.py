# SPDX-License-Identifier: Apache-2.0
"""Fold a scale of each channel of an attention's operands into the linears around it.

    (q * s)(k / s)^T = q k^T            rows of both projections; tables of relative position read q, so they are / s
    A (v * s), then W_out               W_out's input channels / s; exact with any post-softmax codes

Where one channel of q is a hundred times the others and its channel of k a hundredth, one step size serves neither; a
scale makes both alike, and the same goes for v against the linear that reads the attention's output.

Handles sites whose projections belong to them alone; refuses shared projections and tables, and scales of q that differ
between heads where there are tables, which all heads share.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samq_onnx.passes.fold.edit import map_inputs, private_to_attention, reader_is_private, scale_outputs
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report

__all__ = ["balanced", "fold_key_scale", "fold_value_scale"]


def fold_key_scale(lifted: Lifted, scales: Mapping[str, np.ndarray]) -> Report:
    """Multiply q and divide k, in place.

    Args:
        scales: site name -> factor of q, above 0, float [heads, head_dim].
    """
    report = Report("scale of keys")
    for site in lifted.attentions:
        if site.name not in scales:
            continue
        scale = _checked(scales[site.name])
        reason = private_to_attention(lifted, site, "q", "k", in_order=True)
        if reason is None and site.tables and (scale != scale[:1]).any():
            reason = "its heads share the relative position tables, and their scales differ"
        if reason is not None:
            report.refuse(site.name, reason)
            continue
        assert site.q is not None and site.k is not None
        scale_outputs(site.q.linear, site.q.channels, scale)
        scale_outputs(site.k.linear, site.k.channels, 1 / scale)
        for table in site.tables or ():
            replace_constant(table, constant(table) / scale[0])
        report.done.append(site.name)
    return report


def fold_value_scale(lifted: Lifted, scales: Mapping[str, np.ndarray]) -> Report:
    """Multiply v and divide what the linear behind the attention makes of it, in place.

    Args:
        scales: site name -> factor of v, above 0, float [heads, head_dim].
    """
    report = Report("scale of values")
    for site in lifted.attentions:
        if site.name not in scales:
            continue
        scale = _checked(scales[site.name])
        reason = private_to_attention(lifted, site, "v", in_order=True) or reader_is_private(site)
        if reason is not None:
            report.refuse(site.name, reason)
            continue
        assert site.v is not None and site.out is not None
        scale_outputs(site.v.linear, site.v.channels, scale)
        width = scale.shape[1]
        inverses = np.zeros((*scale.shape, width))
        inverses[:, np.arange(width), np.arange(width)] = 1 / scale
        map_inputs(site.out.linear, site.out.channels, inverses)
        report.done.append(site.name)
    return report


def _checked(scale: np.ndarray) -> np.ndarray:
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a scale that is not above 0")
    return np.asarray(scale, np.float64)


def balanced(ours: np.ndarray, theirs: np.ndarray, shared: bool = False) -> np.ndarray:
    """The factor that makes two channels alike whose product matters: sqrt(theirs / ours), its geometric mean 1.

    Args:
        ours, theirs: largest magnitude of each channel, [heads, head_dim]. shared: by all heads.
    """
    if shared:
        ours, theirs = (np.broadcast_to(x.max(axis=0), x.shape) for x in (ours, theirs))
    floor = 1e-6 * max(float(ours.max()), float(theirs.max()), 1e-30)
    ratio = np.sqrt(np.maximum(theirs, floor) / np.maximum(ours, floor))
    factor: np.ndarray = ratio / np.exp(np.mean(np.log(ratio)))
    return factor
