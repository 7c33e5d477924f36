# SPDX-License-Identifier: Apache-2.0
"""Activation ranges by Kullback-Leibler divergence, as in entropy calibration.

S. Migacz, "8-bit inference with TensorRT", GTC 2017, compares what a range keeps of a histogram with what codes of that
range can tell apart. P is the kept histogram, with the mass that was cut off added to its end bins. Q is the kept
histogram without that mass, merged into groups of bins that share a code; a group's mass is spread evenly over its
bins that are not empty. Both sum to one. The range with the least KL(P || Q) wins: a wide range merges more bins, a
narrow one moves more mass to the ends, where Q lacks it.

The paper has 128 groups and a range that is symmetric or starts at zero. Here both ends move, and the groups are those
of the codes, so that any number of bits goes. As in the paper, which begins with 128 of 2048 bins, a range keeps a bin
for each code and a sixteenth of all bins. Without that a sliver at zero may win: its few bins need no merging, and Q is
as crowded there as P.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS

__all__ = ["KullbackLeibler", "divergences", "least_divergence"]

CUTS = 32  # tried on each side, first over the whole side, then between the neighbours of the best
LEAST_SHARE = 16  # a range keeps at least one bin of so many
EMPTY = 1e-10  # what Q has in an empty bin


@TENSOR_OBSERVERS.add("kl")
def least_divergence(stats: TensorStats, bits: int) -> UniformCodes:
    """The range of least divergence (Migacz 2017), searched on a grid of both ends and again around the best.

    An end moves no further than zero, which every range holds. A histogram with no more bins than there are codes, that
    of a constant, shows nothing of what codes merge: then the extremes are the range.
    """
    low, high, counts, centres = min(stats.lows), max(stats.highs), stats.counts, stats.centres
    if len(counts) > 2**bits:
        edges = np.append(centres - stats.width / 2, centres[-1] + stats.width / 2)
        edges[0], edges[-1] = low, high
        first, end = _search(counts, centres, edges, bits)
        low, high = edges[first], edges[end]
    return UniformCodes.of_range(float(low), float(high), bits)


def _search(counts: np.ndarray, centres: np.ndarray, edges: np.ndarray, bits: int) -> tuple[int, int]:
    """First bin kept and the one behind the last, of the range with the least divergence."""
    below, mass = int(np.searchsorted(centres, 0.0)), _running(counts)
    firsts, ends = np.arange(below + 1), np.arange(below, len(counts) + 1)
    least = max(2**bits, len(counts) // LEAST_SHARE)
    best = (0, len(counts))
    for _ in range(2):
        tried_firsts, tried_ends = _spaced(firsts), _spaced(ends)
        first, end = (axis.ravel() for axis in np.meshgrid(tried_firsts, tried_ends, indexing="ij"))
        possible = (end - first >= least) & (edges[end] > edges[first]) & (mass[end] > mass[first])
        if not possible.any():
            break
        first, end = first[possible], end[possible]
        found = int(np.argmin(divergences(counts, centres, edges, first, end, bits)))
        best = int(first[found]), int(end[found])
        firsts, ends = _around(tried_firsts, best[0]), _around(tried_ends, best[1])
    return best


def _spaced(cuts: np.ndarray) -> np.ndarray:
    return np.unique(cuts[np.linspace(0, len(cuts) - 1, CUTS).round().astype(int)])


def _around(tried: np.ndarray, cut: int) -> np.ndarray:
    index = int(np.searchsorted(tried, cut))
    return np.arange(tried[max(index - 1, 0)], tried[min(index + 1, len(tried) - 1)] + 1)


def divergences(
    counts: np.ndarray, centres: np.ndarray, edges: np.ndarray, first: np.ndarray, end: np.ndarray, bits: int
) -> np.ndarray:
    """KL(P || Q) in nats of each range [edges[first], edges[end]], which keeps the bins first to end - 1.

    ``counts`` and ``centres`` are [bins], ``edges`` is [bins + 1]; ``first``, ``end`` and the result are [ranges]. Each
    range is wider than zero and keeps two bins at least, with something in them.

    All sums over bins come from running sums: with M the mass of a group and n its bins that are not empty, Q is M / n
    there, and the sum of P log Q over a group is that of P times one logarithm.
    """
    total = counts.sum()
    mass, filled, entropy = (_running(values) for values in (counts, counts > 0, _times_log(counts)))
    kept = mass[end] - mass[first]

    low, high = np.minimum(edges[first], 0.0), np.maximum(edges[end], 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    between = (np.arange(2**bits - 1) + 0.5 - zero[:, None]) * scale[:, None]
    bounds = np.column_stack([first, np.searchsorted(centres, between).clip(first[:, None], end[:, None]), end])
    group_mass = np.diff(mass[bounds], axis=1)
    level = group_mass / np.maximum(np.diff(filled[bounds], axis=1), 1)
    likelihood = (group_mass * _log(level)).sum(axis=1)
    own = entropy[end] - entropy[first]

    for bin_, moved in ((first, mass[first]), (end - 1, total - mass[end])):
        group = (bounds[:, 1:] > bin_[:, None]).argmax(axis=1)
        there = np.where(counts[bin_] > 0, level[np.arange(len(level)), group], EMPTY * kept)
        likelihood += moved * _log(there)
        own += _times_log(counts[bin_] + moved) - _times_log(counts[bin_])
    found: np.ndarray = (own - likelihood) / total - np.log(total / kept)
    return found


def _running(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])


def _log(values: np.ndarray) -> np.ndarray:
    logarithms: np.ndarray = np.log(np.where(values > 0, values, 1.0))
    return logarithms


def _times_log(values: np.ndarray) -> np.ndarray:
    products: np.ndarray = values * _log(values)
    return products


@method("kl", paper="Migacz, 8-bit inference with TensorRT, GTC 2017")
@dataclasses.dataclass(frozen=True)
class KullbackLeibler(Method):
    """Activation ranges that lose the least information (KL divergence); weights of least error."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="kl", weight="mse", probabilities="uniform")]
