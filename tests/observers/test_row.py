# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx import reference
from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.codes.row import row_weights
from samq_onnx.observers.minmax import minmax
from samq_onnx.observers.row import TAUS, row, row_errors


def _maps(sharpness: float, keys: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [3, 10, keys] and v [3, keys, 8]."""
    random = np.random.default_rng(seed)
    probabilities = reference.softmax(random.normal(size=(3, 10, keys)) * sharpness).astype(np.float32)
    return probabilities, random.normal(size=(3, keys, 8)).astype(np.float32)


def _sink() -> tuple[np.ndarray, np.ndarray]:
    """One key far above thousands of others, whose weights are near the smallest there is."""
    random = np.random.default_rng(2)
    logits = random.uniform(-10, -9, (1, 10, 4096))
    logits[..., 0] = 0
    return reference.softmax(logits).astype(np.float32), random.normal(size=(1, 4096, 8)).astype(np.float32)


def _rows(*feeds: tuple[np.ndarray, np.ndarray]) -> AttentionRows:
    """A statistic that has seen these probabilities and values."""
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    rows.samples = list(feeds)
    return rows


@pytest.mark.parametrize("bits", [4, 8])
def test_errors_are_those_of_the_codes(bits: int) -> None:
    """Every candidate, over two feeds, against the weights that the operators use."""
    feeds = [_maps(2.0, seed=0), _maps(4.0, seed=1), _sink()]
    top = 2**bits - 1
    for found, tau in zip(row_errors(_rows(*feeds), bits), TAUS, strict=True):
        expected = 0.0
        for probabilities, v in feeds:
            relative = (probabilities / probabilities.max(axis=-1, keepdims=True)).astype(np.float64)
            if tau:
                codes = np.clip(np.rint(-tau * np.log2(relative)), 0, top).astype(int)
                weights = row_weights(tau, bits)[codes]
            else:
                weights = np.rint(relative * top)
            coded = weights / weights.sum(axis=-1, keepdims=True)
            expected += np.square((coded - probabilities) @ v).sum()
        assert found == pytest.approx(expected, rel=1e-3)


def test_the_kind_suits_the_map() -> None:
    chosen = {}
    for name, (sharpness, keys, bits) in {
        "two like keys": (0.02, 2, 8),
        "many keys, sharp": (4.0, 1000, 8),
        "many keys, four bits": (4.0, 1000, 4),
    }.items():
        chosen[name] = row(_rows(_maps(sharpness, keys)), bits, minmax).tau
    assert chosen["two like keys"] == 0  # 2^-c/tau has no value near, uniform codes have
    assert chosen["many keys, sharp"] == 16
    assert 0 < chosen["many keys, four bits"] < 4  # finer codes would leave most of the row out
