# SPDX-License-Identifier: Apache-2.0
"""Random small networks, quantized: kernels and function bodies give the same bits, near those of float."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samq_onnx.verify import sqnr
from tests.conftest import quantized_outcome, run_model
from tests.properties import subjects
from tests.properties.networks import feed_of, networks

METHODS = [
    ("minmax", "w8a8"),
    ("ptq4sam-s", "w4a4"),
    ("samq", "w8a8"),
    ("samq", "w6a6"),
]
# SQNR in dB, of single networks and the median of a method, less than any that was seen.
LEAST = {"w8a8": 20.0, "w6a6": 11.0, "w4a4": 2.0}
MEDIAN = {"w8a8": 31.0, "w6a6": 20.0, "w4a4": 8.0}
ATTENTIONS = {"UniformAttention", "QAttention", "LogRowAttention", "UniformRowAttention"}
MADE = {"QLinear", "QLinearLut", "QLinearQuantize", "QLinearResidual", "LayerNormQuantize"}


def test_kernels_and_bodies_give_the_same_bits_near_float(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    found: list[float] = []

    @subjects.examples(6, shrink=False)
    @given(networks(), st.sampled_from([2, 256]))
    def holds(method: str, bits: str, proto: onnx.ModelProto, many_rows: int) -> None:
        monkeypatch.setattr(subjects.qlinear, "MANY_ROWS", many_rows)
        feeds = [feed_of(proto, seed) for seed in range(3)]
        (expected,) = run_model(ir.from_proto(proto), feeds[0])
        model = quantized_outcome(ir.from_proto(proto), feeds, method, bits).model
        made.update(node.op_type for node in model.graph if node.domain)
        (native,), (body,) = (run_model(model, feeds[0], native=native) for native in (True, False))
        np.testing.assert_array_equal(native, body)
        found.append(sqnr(expected, native))
        assert found[-1] > LEAST[bits]

    for method, bits in METHODS:
        found.clear()
        holds(method, bits)
        print(method, bits, found)
        assert np.median(found) > MEDIAN[bits]
    assert set(made) >= MADE
    assert {kind.removesuffix("Quantize").removesuffix("RelPos") for kind in made} >= ATTENTIONS, made
