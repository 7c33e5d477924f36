# SPDX-License-Identifier: Apache-2.0
"""PQ-SAM without learning: groups of channels behind norms get a shift and a scale of their own.

X. Liu et al., "PQ-SAM: post-training quantization for the Segment Anything Model", ECCV 2024. First extreme outliers of
the tensor are cut: [Q1 - 10 IQR, Q3 + 10 IQR], with quartiles Q1 and Q3 and IQR = Q3 - Q1. Then channels are grouped,
again and again: those of the channels left whose central half lies within the central half of them all are a group;
where there is none, the channel in the middle is one. All values of a group have mean v and deviation s, and its
channels become (x - v) / s. Weights have one scale for the whole tensor.

The paper learns v, s and all ranges from the mean and the deviation on; here they stay what they are, and ranges are
those of least error. How channels are grouped follows its supplement (quantile range, iterative, alpha = 0.25).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import RowSamples, Statistic
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, Ranges, ScaleNorms
from samq_onnx.observers import TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.weight import mse_scales
from samq_onnx.passes.fold import NormReaders

__all__ = ["GroupChannels", "PqSam", "affine_of_groups", "groups", "one_scale", "truncated"]

ORDERS = ("first", "last")
NARROWEST = 1e-4  # deviation of a group, as a share of that of all values


@WEIGHT_OBSERVERS.add("tensor-mse")
def one_scale(rows: np.ndarray, bits: int) -> np.ndarray:
    """One scale for all output channels, with the least mean |w - w^|^2.4."""
    return np.full(len(rows), mse_scales(rows.reshape(1, -1), bits)[0])


def truncated(rows: np.ndarray, reach: float) -> np.ndarray:
    """Values cut to ``reach`` interquartile ranges beyond the quartiles of them all."""
    first, third = np.quantile(rows, [0.25, 0.75])
    cut: np.ndarray = np.clip(rows, first - reach * (third - first), third + reach * (third - first))
    return cut


def groups(rows: np.ndarray, alpha: float) -> np.ndarray:
    """The number of each channel's group, int64 [channels].

    Args:
        rows: float [rows, channels].
        alpha: a group's channels have their quantiles alpha and 1 - alpha within those of all values left.
    """
    lows, medians, highs = np.quantile(rows, [alpha, 0.5, 1 - alpha], axis=0)
    labels, number = np.full(rows.shape[1], -1), 0
    while (left := np.flatnonzero(labels < 0)).size:
        low, high = np.quantile(rows[:, left], [alpha, 1 - alpha])
        members = left[(lows[left] >= low) & (highs[left] <= high)]
        if not members.size:
            members = left[[np.abs(medians[left] - (low + high) / 2).argmin()]]
        labels[members] = number
        number += 1
    return labels


def affine_of_groups(rows: np.ndarray, labels: np.ndarray, *, shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Deviation and mean of each channel's group, float64 [channels] each; about zero, and zero, without ``shift``."""
    sums, squares = rows.mean(axis=0, dtype=np.float64), np.square(rows, dtype=np.float64).mean(axis=0)
    sizes = np.bincount(labels)
    means = np.bincount(labels, sums) / sizes * shift
    deviations = np.sqrt(np.maximum(np.bincount(labels, squares) / sizes - np.square(means), 0))
    least = max(NARROWEST * float(np.sqrt(squares.mean())), float(np.finfo(np.float32).tiny))
    return np.maximum(deviations, least)[labels], means[labels]


class GroupChannels(ScaleNorms):
    """Shifts and scales of groups; without the shift where a norm takes none."""

    name = "grouped channels"
    shifts = True

    def __init__(self, reach: float, alpha: float, truncated: str = "first") -> None:
        self.reach, self.alpha, self.order = reach, alpha, truncated

    def labels_and_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each channel's group, and the values that its mean and deviation come from."""
        cut = truncated(rows, self.reach)
        return groups(cut if self.order == "first" else rows, self.alpha), cut

    def statistics(self, tensor: str, readers: NormReaders) -> list[Statistic]:
        return [RowSamples(tensor, channels=readers.channels)]

    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        labels, rows = self.labels_and_rows(work.found(RowSamples(tensor)).rows)
        return affine_of_groups(rows, labels, shift=readers.no_shift is None)


@method(
    "pq-sam", paper="Liu et al. 2024, PQ-SAM, without its learning: truncation, outlier-aware grouping, shift and scale"
)
@dataclasses.dataclass(frozen=True)
class PqSam(Method):
    """Groups of channels behind an encoder's norms are shifted and scaled; one weight scale a tensor; least error."""

    reach: float = parameter(
        10.0, "interquartile ranges beyond the quartiles that extreme outliers are cut to", most=1e6
    )
    alpha: float = parameter(0.25, "quantile that channels of a group share", most=0.5)
    truncated: str = parameter(
        "first", "whether outliers are cut before channels are grouped, or after", lambda: ORDERS
    )
    activation: str = parameter("omse", "ranges of activations", lambda: TENSOR_OBSERVERS)
    weight: str = parameter("tensor-mse", "ranges of weights", lambda: WEIGHT_OBSERVERS)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [
            CentreKeys(),
            GroupChannels(self.reach, self.alpha, self.truncated),
            Ranges(self.activation, self.weight, "uniform"),
        ]
