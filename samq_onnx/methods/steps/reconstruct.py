# SPDX-License-Identifier: Apache-2.0
"""Learn weights and codes by gradients from the float model."""

from __future__ import annotations

import dataclasses
import os

from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.reconstruction import NotReconstructable

__all__ = ["Reconstruct"]


class Reconstruct(Step):
    """Weights, biases, norms and codes of the whole model at once, as `samq_onnx.reconstruct.trainer` says."""

    name = "reconstruction"

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        # Read when torch is loaded: its threads wait without spinning, which beside other work slows them manifold.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            from samq_onnx.reconstruct.trainer import reconstruct  # torch is optional
        except ImportError:
            report.refuse(work.label, "torch is not installed; run: pip install samq_onnx[learn]")
            return report
        try:
            found = reconstruct(work.lifted, work.plan, work.part, work.feeds, work.float_feeds(), label=work.label)
        except NotReconstructable as reason:
            report.refuse(work.label, str(reason))
            return report
        report.done.append(work.label)
        report.facts = dataclasses.asdict(found)
        return report
