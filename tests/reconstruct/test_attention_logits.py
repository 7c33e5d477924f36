# SPDX-License-Identifier: Apache-2.0
"""Scores in PyTorch are those of the specification."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import reference

torch = pytest.importorskip("torch")


def test_a_bias_goes_to_the_entries_of_the_batch_in_turn() -> None:
    from samq_onnx.reconstruct.torch_ops import attention_logits

    random = np.random.default_rng(0)
    q, k = (random.standard_normal((2, 3, count, 4)).astype(np.float32) for count in (5, 6))
    bias = random.standard_normal((3, 5, 6)).astype(np.float32)
    node = ir.node("AttentionBias", [], {"scale": 0.5})
    found = attention_logits(node, torch.from_numpy(q), torch.from_numpy(k), [torch.from_numpy(bias)])
    expected = reference.add_bias(0.5 * (q @ k.swapaxes(-1, -2)), bias)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
