# SPDX-License-Identifier: Apache-2.0
"""Centre the keys: a constant per-channel offset of K never changes attention.

    softmax_j(q . (k_j + c) + r_j) = softmax_j(q . k_j + q . c + r_j) = softmax_j(q . k_j + r_j)

because q . c is the same for every key j of a query. So the key bias may be moved until the calibrated mean of
every key channel is zero, which removes bimodal keys and narrows the range that has to be quantized. Exact for
any attention of SAM, windowed or global, with or without relative position (which reads q only).

Handles key projections with a bias; refuses those without one and those that are shared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samq_onnx.passes.fold.edit import private_to_attention, shift_outputs
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report

__all__ = ["fold_key_centre"]


def fold_key_centre(lifted: Lifted, key_mean: Mapping[str, np.ndarray]) -> Report:
    """Subtract the mean key from the key bias, in place.

    Args:
        lifted: the lifted model.
        key_mean: site name -> mean of K over the calibration keys, float [heads, head_dim].
    """
    report = Report("key centring")
    for site in lifted.attentions:
        reason = private_to_attention(lifted, site, "k", in_order=True)
        if reason is None and site.k is not None and site.k.linear.bias is None:
            reason = "the key projection has no bias to absorb the offset"
        if reason is not None:
            report.refuse(site.name, reason)
            continue
        assert site.k is not None
        shift_outputs(site.k.linear, site.k.channels, -key_mean[site.name])
        report.done.append(site.name)
    return report
