# SPDX-License-Identifier: Apache-2.0
"""Rotate the residual stream of an encoder."""

from __future__ import annotations

from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.fold import rotate_stream
from samq_onnx.passes.report import Report

__all__ = ["RotateStream"]


class RotateStream(Step):
    """Spread outlier channels over all channels, exactly (`passes.fold.rotate`); a random rotation, always the same."""

    name = "rotation of the stream"
    edits = True

    def apply(self, work: Work) -> Report:
        return rotate_stream(work.lifted)
