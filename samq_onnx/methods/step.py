# SPDX-License-Identifier: Apache-2.0
"""What a step of a method is, and what it works on."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.families import Part
from samq_onnx.methods.scheme import Scheme
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan
from samq_onnx.reconstruct.effort import Effort, Kept

__all__ = ["Feeds", "Step", "Work"]

Feeds: TypeAlias = Sequence[Mapping[str, np.ndarray]]
Found = TypeVar("Found", bound=Statistic)


@dataclasses.dataclass
class Work:
    """A model on its way through the steps of a method.

    Attributes:
        part: its role. lifted: its prepared graph, and what was found in it.
        scheme: the bits. plan: what was decided so far.
        takes: whether the target knows a kind of post-softmax codes.
        feeds: inputs that the quantized model will get. float_feeds: makes the same ones as the float model gets them.
        observed: as many of ``feeds`` as statistics need.
        label: what progress bars call the model.
        linears: those that are quantized. reports: of the steps so far.
        statistics: what was collected since the graph was edited last, by key.
        exact: what the constants of the float model hold, by name, as the last step that edits it left them. Steps that
            fit weights to their codes change the constants of ``lifted`` and not these.
        run: the steps given, as part of a step.
        reader: file of the float decoder that reads an encoder's embedding, where it is known.
        effort: what learning may cost. kept: where units that are learned wait for a run that goes on, if anywhere.
    """

    part: Part
    lifted: Lifted
    scheme: Scheme
    plan: QuantPlan
    takes: Callable[[str], bool]
    feeds: Feeds
    float_feeds: Callable[[], Feeds]
    observed: Feeds
    label: str
    run: Callable[[Sequence[Step], Work], None]
    linears: list[Linear] = dataclasses.field(default_factory=list)
    reports: list[Report] = dataclasses.field(default_factory=list)
    statistics: dict[str, Statistic] = dataclasses.field(default_factory=dict)
    exact: dict[str, ir.TensorProtocol | None] = dataclasses.field(default_factory=dict)
    reader: Path | None = None
    effort: Effort = dataclasses.field(default_factory=Effort)
    kept: Kept | None = None

    @property
    def model(self) -> ir.Model:
        return self.lifted.model

    def found(self, statistic: Found) -> Found:
        """The statistic that was collected where one with this key was wanted."""
        collected = self.statistics[statistic.key]
        assert isinstance(collected, type(statistic))
        return collected

    def exact_constant(self, value: ir.Value) -> np.ndarray:
        """What a constant holds in the float model."""
        tensor = self.exact[value.name or ""]
        assert tensor is not None
        return tensor.numpy()

    def done(self, name: str) -> set[str]:
        """The sites where the step of this name did something."""
        return {site for report in self.reports if report.name == name for site in report.done}


class Step(ABC):
    """One thing that a method does: edit constants of the float graph, or fill the plan, or reconstruct.

    Attributes:
        name: in reports.
        edits: whether it changes tensors of the float graph, so that what was collected before no longer holds.
        reads_plan: whether what it wants depends on what the steps before it put into the plan.
    """

    name: ClassVar[str]
    edits: ClassVar[bool] = False
    reads_plan: ClassVar[bool] = False

    def wants(self, work: Work) -> Sequence[Statistic]:
        """Statistics that `apply` finds in ``work``."""
        return ()

    @abstractmethod
    def apply(self, work: Work) -> Report:
        """Do it; says where it was done, and where not and why."""
