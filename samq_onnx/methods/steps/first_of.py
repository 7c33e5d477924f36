# SPDX-License-Identifier: Apache-2.0
"""Alternatives."""

from __future__ import annotations

from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.report import Report

__all__ = ["FirstOf"]


class FirstOf(Step):
    """The first of several steps that does something."""

    name = "first of"

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    def apply(self, work: Work) -> Report:
        for step in self.steps:
            before = len(work.reports)
            work.run([step], work)
            if any(report.done for report in work.reports[before:]):
                break
        return Report(self.name)
