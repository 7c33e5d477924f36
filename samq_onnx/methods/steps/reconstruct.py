# SPDX-License-Identifier: Apache-2.0
"""Learn weights and codes by gradients from the float model."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.reconstruction import NotReconstructable

if TYPE_CHECKING:
    from samq_onnx.reconstruct.trainer import Learns

__all__ = ["NO_TORCH", "WORSE", "Reconstruct", "learn_whole", "may_learn", "torch_is_there"]

NO_TORCH = "torch is not installed; run: pip install samq_onnx[learn]"
WORSE = "learning brought it no nearer to float; it stays as it was"


def torch_is_there() -> bool:
    """Whether torch, which is optional, can be imported; to be asked first."""
    # Read when torch is loaded: its threads wait without spinning, which beside other work slows them manifold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return find_spec("torch") is not None


def may_learn(work: Work, report: Report) -> bool:
    """Whether there are torch and time; a report says which is not."""
    if not torch_is_there():
        report.refuse(work.label, NO_TORCH)
    elif (over := work.effort.told(work.label)) is not None:
        report.refuse(work.label, over)
    else:
        return True
    return False


def learn_whole(work: Work, report: Report, learns: Learns | None = None) -> Report:
    """Learn a whole model (`samq_onnx.reconstruct.trainer`); the report says how it went."""
    from samq_onnx.reconstruct.trainer import reconstruct

    try:
        found = reconstruct(
            work.lifted, work.plan, work.part, work.feeds, work.float_feeds(),
            label=work.label, learns=learns, effort=work.effort, kept=work.kept,
        )  # fmt: skip
    except NotReconstructable as reason:
        report.refuse(work.label, str(reason))
        return report
    if found.better:
        report.done.insert(0, work.label)
    else:
        report.refuse(work.label, WORSE)
    report.facts = dataclasses.asdict(found)
    return report


class Reconstruct(Step):
    """Weights, biases, norms and codes of the whole model at once, as `samq_onnx.reconstruct.trainer` says."""

    name = "reconstruction"

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        return learn_whole(work, report) if may_learn(work, report) else report
