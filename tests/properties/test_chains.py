# SPDX-License-Identifier: Apache-2.0
"""Passes that move views, quantizations past each other leave every bit of random chains as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samq_onnx import ops
from samq_onnx.runtime import open_session
from tests.properties import subjects
from tests.properties.chains import ROW_VIEWS, VIEWS, Chain

COLUMNS = 8
SCALE, ZERO = 0.25, 9


@st.composite
def quantized_chains(draw: st.DrawFn) -> ir.Model:
    """Views of floats, their quantization, and views of codes."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    chain = Chain(draw, shape)
    chain.views(VIEWS, 4)
    chain.quantize(SCALE, ZERO, draw(st.sampled_from([255, 255, 63, 15])))
    chain.views(VIEWS, 5, least=2)
    return chain.model()


@st.composite
def slice_chains(draw: st.DrawFn) -> ir.Model:
    """Slices of floats."""
    chain = Chain(draw, draw(st.lists(st.integers(2, 6), min_size=2, max_size=4)))
    chain.views(["Slice"], 3, least=2)
    return chain.model()


@st.composite
def linear_chains(draw: st.DrawFn) -> ir.Model:
    """Views of whole rows of codes, a linear layer, and views of its rows."""
    shape = [*draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), COLUMNS]
    chain = Chain(draw, shape, onnx.TensorProto.UINT8, keep_rows=True)
    chain.views(ROW_VIEWS, 4)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    width = draw(st.sampled_from([COLUMNS, COLUMNS, 5]))
    weight = random.integers(-128, 128, (COLUMNS, width), np.int8)
    bias = random.integers(-9000, 9000, width, np.int32)
    rows = chain.shape[:-1]
    if draw(st.booleans()):
        scale = np.float32(0.01)
        made = onnx.TensorProto.FLOAT
        chain.add("QLinear", weight, bias, scale, shape=[*rows, width], dtype=made, domain="samq")
    else:
        scale, zero = np.float32(0.004), np.float32(120)
        chain.add("QLinearQuantize", weight, bias, scale, zero, shape=[*rows, width], domain="samq", bits=8)
    chain.views(ROW_VIEWS, 4)
    return chain.model()


def _feed(model: ir.Model) -> dict[str, np.ndarray]:
    (x,) = model.graph.inputs
    assert x.shape is not None
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, x.shape.numpy(), np.uint8)
    if x.dtype == ir.DataType.UINT8:
        return {"x": codes}
    return {"x": (codes.astype(np.float32) - 100) * np.float32(SCALE / 2)}  # every other one half-way between codes


def _run(model: ir.Model) -> np.ndarray:
    ops.add_functions(model)
    return open_session(ir.to_proto(model).SerializeToString(), threads=1).run(None, _feed(model))[0]


def _kept(strategy: st.SearchStrategy[ir.Model], count: int, *passes: Callable[[subjects.Builder], None]) -> int:
    """Check that passes keep what random models give, and do nothing the second time; how many models they change."""
    changed = 0

    @subjects.examples(count)
    @given(strategy)
    def holds(model: ir.Model) -> None:
        nonlocal changed
        before, names = _run(model), [node.name for node in model.graph]
        for one in passes:
            one(subjects.Builder(model.graph))
        after = [node.name for node in model.graph]
        changed += after != names
        assert [value.name for value in model.graph.outputs] == ["y"]
        np.testing.assert_array_equal(_run(model), before, strict=True)
        for one in passes:
            one(subjects.Builder(model.graph))
        assert [node.name for node in model.graph] == after

    holds()
    return changed


@pytest.fixture(autouse=True)
def every_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gather single elements too, where it does not pay."""
    monkeypatch.setattr(subjects.views, "SHORTEST", 1)


def test_quantizing_before_views_keeps_the_codes() -> None:
    assert _kept(quantized_chains(), 60, subjects.propagate_qdq) > 25


def test_gathers_keep_the_codes() -> None:
    assert _kept(quantized_chains(), 60, subjects.gather_views) > 8


def test_merged_slices_cut_the_same() -> None:
    assert _kept(slice_chains(), 40, subjects.merge_slices) > 5


def test_all_passes_on_views_keep_the_codes() -> None:
    passes = (subjects.propagate_qdq, subjects.merge_slices, subjects.gather_views)
    assert _kept(quantized_chains(), 100, *passes) > 30


def test_rows_move_past_a_linear_bit_for_bit() -> None:
    passes = (subjects.move_rows_first, subjects.propagate_qdq, subjects.gather_views)
    assert _kept(linear_chains(), 80, *passes) > 30
