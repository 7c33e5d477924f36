# SPDX-License-Identifier: Apache-2.0
"""PQ-SAM with learning: shifts and scales of groups of channels, and all step sizes, learned together.

X. Liu et al., "PQ-SAM: post-training quantization for the Segment Anything Model", ECCV 2024. It begins as
`samq_onnx.methods.pq_sam` does, extreme outliers cut and channels grouped. Then the shift and the scale of each group
and the steps of all weights and activations are learned together from the output of the whole model (GADT), weights
with one step for the whole tensor; shifts and scales fold into norms and weights in the end.

Other than there, as far as it is known: the loss of a decoder is that of its masks, and scales learn as logarithms.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import RowSamples
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.pq_sam import GroupChannels, affine_of_groups
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, LearnScales, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.passes.fold import NormReaders

__all__ = ["PqSamL"]

RATE = 1e-3


class RememberedGroups(GroupChannels):
    """`GroupChannels`, and which group each channel is in.

    Attributes:
        labels: name of a norm -> number of each channel's group.
    """

    def __init__(self, reach: float, alpha: float) -> None:
        super().__init__(reach, alpha)
        self.labels: dict[str, np.ndarray] = {}

    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        labels, rows = self.labels_and_rows(work.found(RowSamples(tensor)).rows)
        self.labels[readers.norm.name] = labels
        return affine_of_groups(rows, labels, shift=readers.no_shift is None)


@method("pq-sam-l", paper="Liu et al. 2024, PQ-SAM: truncation, outlier-aware grouping, learned shift and scale (GADT)")
@dataclasses.dataclass(frozen=True)
class PqSamL(Method):
    """PQ-SAM's groups of channels, their shifts and scales learned together with the step sizes of the whole model."""

    iterations: int = parameter(500, "of the whole model; the paper has 10000", most=1e6)
    reach: float = parameter(
        10.0, "interquartile ranges beyond the quartiles that extreme outliers are cut to", most=1e6
    )
    alpha: float = parameter(0.25, "quantile that channels of a group share", most=0.5)
    activation: str = parameter("omse", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        grouping = RememberedGroups(self.reach, self.alpha)
        learn = LearnScales(grouping.labels, self.iterations, RATE)
        return [CentreKeys(), grouping, Ranges(self.activation, "tensor-mse", "uniform"), learn]
