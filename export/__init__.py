# SPDX-License-Identifier: Apache-2.0
"""From a Segment Anything checkpoint to ``encoder.onnx`` and ``decoder.onnx`` in float32.

This package needs torch (``pip install samq_onnx[export]``); nothing else of samq_onnx does.
"""

from __future__ import annotations

import os
from typing import Any

from samq_onnx.export.requirements import check_requirements

__all__ = ["export_sam"]


def export_sam(
    checkpoint: str | os.PathLike[str],
    model_type: str | None,
    out_dir: str | os.PathLike[str],
    batched: bool = False,
) -> dict[str, Any]:
    """Write ``encoder.onnx`` and ``decoder.onnx`` of a checkpoint to a folder; see `samq_onnx.export.job.export`.

    Raises:
        UserError: a package is not installed, or as `samq_onnx.export.job.export`.
    """
    check_requirements()
    from samq_onnx.export.job import export

    return export(checkpoint, model_type, out_dir, batched)
