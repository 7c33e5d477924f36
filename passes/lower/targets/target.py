# SPDX-License-Identifier: Apache-2.0
"""What all targets have in common, and those there are, by name."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from samq_onnx.codes import PROBABILITY_CODES
from samq_onnx.errors import UserError
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan
from samq_onnx.registry import Registry

__all__ = ["TARGETS", "Target", "check_codes"]


class Target(Protocol):
    """A runtime to write models for.

    Attributes:
        name: that it is registered under.
        summary: one line for people.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def takes(self, kind: str) -> bool:
        """Whether it has post-softmax codes of this kind, a key of `samq_onnx.codes.PROBABILITY_CODES`."""
        ...

    def lower(self, lifted: Lifted, plan: QuantPlan) -> list[Report]:
        """Make a lifted float model compute with the codes of a plan, in place; one report for each pass.

        Raises:
            UserError: the plan has post-softmax codes that the target does not take.
        """
        ...

    def check(self, model: ir.Model) -> None:
        """Look through a lowered model.

        Raises:
            ValueError: it has what the target does not run.
        """
        ...


TARGETS: Registry[Target] = Registry("target", "samq_onnx.passes.lower.targets")


def check_codes(target: Target, plan: QuantPlan) -> None:
    """Check that a target takes all post-softmax codes of a plan.

    Raises:
        UserError: it does not.
    """
    for site, codes in plan.attentions.items():
        for kind, of_kind in PROBABILITY_CODES.items():
            if isinstance(codes.probabilities, of_kind) and not target.takes(kind):
                raise UserError(
                    f"attention {site}: target {target.name} takes no post-softmax codes of the kind {kind}; "
                    "choose another target, or a method that plans for this one"
                )
