# SPDX-License-Identifier: Apache-2.0
"""Scale and shift the channels of norms, so that one range suits all of them; what methods differ in is by how much."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.methods.step import Step, Work
from samq_onnx.passes.fold import NormReaders, fold_norm_affine, norm_readers
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Linear, Norm
from samq_onnx.passes.lift.views import VIEW_OPS
from samq_onnx.passes.report import Report

__all__ = ["ScaleNorms", "input_rows"]


class ScaleNorms(Step):
    """Give what quantized matrix products read of a norm other scales and shifts (`passes.fold.norm_affine`).

    Attributes:
        shifts: whether `affine` gives shifts.
    """

    edits = True
    shifts: ClassVar[bool]

    @abstractmethod
    def statistics(self, tensor: str, readers: NormReaders) -> Sequence[Statistic]:
        """What `affine` finds in ``work`` of the norm's output."""

    @abstractmethod
    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of each channel, float64 [channels] each; the shift is zero where the norm takes none."""

    def wants(self, work: Work) -> list[Statistic]:
        found = [readers for readers in self._readers(work).values() if not isinstance(readers, str)]
        return [statistic for readers in found for statistic in self.statistics(_output(readers), readers)]

    def apply(self, work: Work) -> Report:
        report, affine = Report(self.name), {}
        for name, readers in self._readers(work).items():
            if isinstance(readers, str):
                report.refuse(name, readers)
                continue
            affine[name] = self.affine(work, _output(readers), readers)
            if self.shifts and readers.no_shift is not None:
                report.refuse(name, f"it is scaled alone: {readers.no_shift}")
        folded = fold_norm_affine(work.lifted, affine)
        report.done = folded.done
        report.refused += folded.refused
        return report

    def _readers(self, work: Work) -> dict[str, NormReaders | str]:
        """Name of each norm that a quantized product reads -> its readers, or why it stays."""
        by_output = {norm.output: norm for norm in work.lifted.norms}
        products = [linear for linear in work.linears if linear.node.op_type != "Conv"]
        behind = {norm.name: norm for linear in products if (norm := _norm_behind(linear, by_output)) is not None}
        return {name: _over_last_axis(norm_readers(work.lifted, norm)) for name, norm in behind.items()}


def input_rows(readers: NormReaders) -> np.ndarray:
    """The weights of all readers beside each other, float32 [channels, outputs]."""
    weights = [constant(linear.weight) for linear in readers.linears]
    return np.concatenate(
        [weight if linear.out_axis else weight.T for weight, linear in zip(weights, readers.linears, strict=True)],
        axis=1,
    )


def _over_last_axis(readers: NormReaders | str) -> NormReaders | str:
    """Statistics of channels are along the last axis, which is the only one that matrix products read."""
    if isinstance(readers, str):
        return readers
    shape = readers.norm.output.shape
    if readers.norm.axis not in (-1, len(shape or ()) - 1) or any(
        one.node.op_type == "Conv" for one in readers.linears
    ):
        return "a convolution reads it too, or its channels are not its last axis"
    return readers


def _norm_behind(linear: Linear, by_output: dict[ir.Value, Norm]) -> Norm | None:
    """The norm whose output a linear reads through views."""
    value: ir.Value | None = linear.x
    while value is not None and value not in by_output:
        node = value.producer()
        if node is None or node.domain or node.op_type not in (*VIEW_OPS, "Pad"):
            return None
        value = node.inputs[0]
    return by_output[value] if value is not None else None


def _output(readers: NormReaders) -> str:
    assert readers.norm.output.name
    return readers.norm.output.name
