# SPDX-License-Identifier: Apache-2.0
"""Fold the attention scale into the query projection.

    softmax(scale * q kT + R(q)) v   =   softmax(q' kT + R'(q')) v,    q' = scale * q,  R' = R / scale

The decomposed relative position reads the unscaled query, so its tables are divided by the scale. A Mul between
the integer matmul and the softmax would otherwise cost ONNX Runtime its integer kernel.

Handles every site whose query projection belongs to it alone; refuses shared projections and shared tables.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.fold.edit import private_to_attention, scale_outputs
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report

__all__ = ["fold_attention_scale"]


def fold_attention_scale(lifted: Lifted) -> Report:
    """Set ``scale`` of every attention node to 1, in place; float outputs are equal up to rounding."""
    report = Report("attention scale")
    for site in lifted.attentions:
        if site.scale == 1.0:
            continue
        reason = private_to_attention(lifted, site, "q", in_order=site.scale > 0)
        if reason is not None:
            report.refuse(site.name, reason)
            continue
        assert site.q is not None
        scale = site.scale
        scale_outputs(site.q.linear, site.q.channels, np.full(site.q.channels.shape, scale))
        for table in site.tables or ():
            replace_constant(table, constant(table) / scale)
        site.node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
        report.done.append(site.name)
    return report
