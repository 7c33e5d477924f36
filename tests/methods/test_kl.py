# SPDX-License-Identifier: Apache-2.0
"""Ranges by KL divergence against the paper's loop, and what they do with outliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import samq_onnx
from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.methods import kl
from tests.conftest import relative_error, run_model

BITS = 4
CLOSE = 0.05  # of outputs at W8A8, relative


def loop(counts: np.ndarray, centres: np.ndarray, codes: UniformCodes, first: int, end: int) -> float:
    """KL(P || Q) of the bins first to end - 1, step by step as Migacz 2017 writes it."""
    kept = counts[first:end].astype(np.float64)
    p = kept.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[end:].sum()
    top = 2**codes.bits - 1
    group = np.clip(np.round(centres[first:end] / codes.scale) + codes.zero_point, 0, top)
    q = np.zeros_like(kept)
    for code in np.unique(group):
        filled = (group == code) & (kept > 0)
        if filled.any():
            q[filled] = kept[group == code].sum() / filled.sum()
    p, q = np.maximum(p / p.sum(), 1e-10), np.maximum(q / q.sum(), 1e-10)
    return float((p * np.log(p / q)).sum())


def statistics(values: np.ndarray) -> TensorStats:
    stats = TensorStats("x")
    stats.update(values.astype(np.float32))
    return stats


def test_divergences_are_those_of_the_papers_loop() -> None:
    rng = np.random.default_rng(0)
    edges = np.linspace(-3.03, 5.11, 201)
    centres = (edges[1:] + edges[:-1]) / 2
    counts = np.histogram(rng.normal(1.0, 1.0, 500), edges)[0].astype(np.float64)
    assert (counts == 0).any()
    pairs = [(0, 200), (0, 150), (40, 200), (30, 160), (75, 110), (1, 199)]
    first, end = np.array(pairs).T
    found = kl.divergences(counts, centres, edges, first, end, BITS)
    codes = [UniformCodes.of_range(min(edges[a], 0.0), max(edges[b], 0.0), BITS) for a, b in pairs]
    expected = [loop(counts, centres, code, a, b) for code, (a, b) in zip(codes, pairs, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_a_few_outliers_are_cut_on_their_side(bits: int) -> None:
    bulk = np.random.default_rng(1).normal(size=200_000)
    codes = kl.least_divergence(statistics(np.append(bulk, np.full(20, 40.0))), bits)
    low, high = -codes.zero_point * codes.scale, (2**bits - 1 - codes.zero_point) * codes.scale
    assert -6.0 < low < -1.0
    assert 1.0 < high < 8.0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_sliver_at_a_crowded_zero_does_not_win(bits: int) -> None:
    """Half of what a GELU gives lies close below zero."""
    values = np.random.default_rng(2).normal(size=200_000)
    values = np.where(values > 0, values, -0.17 * np.abs(np.sin(2 * values)))
    codes = kl.least_divergence(statistics(values), bits)
    assert (2**bits - 1 - codes.zero_point) * codes.scale > 2.0


def test_a_constant_is_kept() -> None:
    assert kl.least_divergence(statistics(np.full(9, 3.0)), 8) == UniformCodes.of_range(0.0, 3.0, 8)


def test_a_tiny_sam_runs(tiny_sam: Path, one_image: Path) -> None:
    for name, part in samq_onnx.quantize(tiny_sam, one_image, method="kl").parts.items():
        assert part.sample is not None
        expected = run_model(tiny_sam / f"{name}.onnx", part.sample)
        assert relative_error(expected, run_model(part.model, part.sample)) < CLOSE
